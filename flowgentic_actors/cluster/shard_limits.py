"""The limits of one shard, from the configuration of its cluster."""

from __future__ import annotations

from typing import Final

from flowgentic_actors.config import MemoryConfig
from flowgentic_actors.config_values import size_in_bytes
from flowgentic_actors.errors import InvalidRequestError
from flowgentic_actors.shard.settings import ShardSettings

_FASTEST: Final = 1 << 40  # bytes a second: as good as without a limit


def shard_settings(config: MemoryConfig, shards: int) -> ShardSettings:
    """The settings of one shard: its part of the quotas, and what is the same for all."""
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


def transfer_rate(given: float | str) -> int:
    """Bytes per second, from a number or text such as `"64 MiB"`.

    Raises:
        InvalidRequestError: If that is no rate.
    """
    try:
        rate = size_in_bytes(given)
    except ValueError as error:
        raise InvalidRequestError(f"max_bytes_per_second: {error}") from error
    if float(rate) < 1:
        raise InvalidRequestError(f"max_bytes_per_second must be at least 1, not {given}")
    return int(min(float(rate), _FASTEST))


def _part(total: int | None, shards: int) -> int | None:
    return None if total is None else total // shards
