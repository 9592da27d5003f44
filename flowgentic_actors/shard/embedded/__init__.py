"""Shards in the user's own process."""
