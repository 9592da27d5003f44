"""Clusters of several nodes: membership, placement of shards, loss of nodes, rebalancing."""
