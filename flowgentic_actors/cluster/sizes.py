"""What the configuration of a cluster means for one of its shards."""

from __future__ import annotations

from flowgentic_actors.config import MemoryConfig
from flowgentic_actors.shard.settings import ShardSettings


def shard_settings(config: MemoryConfig, shards: int) -> ShardSettings:
    """A shard's part of what a cluster may hold, and what is the same for all."""
    ttl = config.ttl or {}
    interval = ttl.get("sweep_interval_minutes")
    settings = ShardSettings(
        item_bytes=_part(config.store_total_mem, shards),
        thread_bytes=_part(config.checkpoint_total_mem, shards),
        cache_bytes=config.cache_total_mem // shards,
        keep_last=config.keep_last,
        thread_ttl=config.checkpoint_ttl,
    )
    if interval is None:
        return settings
    return settings.sweeping_every(60.0 * interval)


def _part(total: int | None, shards: int) -> int | None:
    return None if total is None else total // shards
