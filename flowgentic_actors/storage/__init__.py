"""Where bytes live: a shard's journal."""
