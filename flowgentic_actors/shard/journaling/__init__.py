"""The journal of a shard: entries, compaction, re-sharding, readers."""
