"""Two copies of a shard: a leader and a follower."""
