"""Storage: a shard's journal, and the files below it."""
