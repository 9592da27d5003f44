"""Replication: a leader and a follower for each shard."""
