"""The settings that are passed on whole, built once from the configuration of a cluster."""

from __future__ import annotations

from typing import Any, Final, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from flowgentic_actors.config import MemoryConfig
from flowgentic_actors.config_values import size_in_bytes
from flowgentic_actors.errors import InvalidRequestError
from flowgentic_actors.shard.settings import (
    ActorSettings,
    JournalSettings,
    ShardSettings,
    TierSettings,
)

S = TypeVar("S", bound=Struct)

_FASTEST: Final = 1 << 40  # bytes a second: as good as without a limit


def shard_settings(config: MemoryConfig, shards: int) -> ShardSettings:
    """The settings of one shard: its part of the quotas, and what is the same for all."""
    settings = ShardSettings(
        item_bytes=config.store_total_mem,
        thread_bytes=config.checkpoint_total_mem,
        cache_bytes=config.cache_total_mem,
        keep_last=config.keep_last,
        thread_ttl=config.checkpoint_ttl,
    )
    interval = (config.ttl or {}).get("sweep_interval_minutes")
    if interval is not None:
        settings = replace(settings, sweep_seconds=60.0 * interval)
    return settings.divided(shards)


def journal_settings(config: MemoryConfig) -> JournalSettings:
    """The settings of a shard's journal."""
    return JournalSettings(ack=config.acknowledged, segment_bytes=config.segment_bytes)


def actor_settings(config: MemoryConfig, tier: TierSettings | None) -> ActorSettings:
    """The settings of the actors of one node, with its memory tier."""
    return ActorSettings(
        journal=journal_settings(config),
        limits=shard_settings(config, config.actors_per_node),
        hot_bytes=config.hot_memory,
        tier=tier,
    )


def taken_from(config: MemoryConfig, struct: type[S], **others: Any) -> S:
    """A struct whose fields have the configuration's values of the same names.

    Args:
        config: The configuration.
        struct: Its class.
        **others: Fields that have another value, or no setting of their name.
    """
    names = set(struct.__struct_fields__) & set(type(config).model_fields) - set(others)
    return struct(**{name: getattr(config, name) for name in names}, **others)


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
