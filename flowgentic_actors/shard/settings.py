"""The settings of a shard and of its actor, built once from the configuration and passed whole."""

from __future__ import annotations

from typing import Literal, Self

import msgspec

from flowgentic_actors.acknowledgement import Ack
from flowgentic_actors.engine import Shard
from flowgentic_actors.engine.shard import CACHE_BYTES
from flowgentic_actors.engine.thread_plans import Retention
from flowgentic_actors.shard.quotas import Quotas
from flowgentic_actors.shard.sweeper import SWEEP_SECONDS
from flowgentic_actors.storage.log import SEGMENT_BYTES


class ShardSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of a shard, in an actor or in the program's own process.

    Attributes:
        item_bytes: Quota of the bytes of items, None for no limit.
        thread_bytes: Quota of the bytes of threads, None for no limit.
        cache_bytes: Bytes that cached values may take.
        keep_last: Checkpoints to keep of each namespace of a thread, None for all.
        thread_ttl: Seconds for which a thread is kept after its last write, None for ever.
        sweep_seconds: Time between two looks at what is over.
    """

    item_bytes: int | None = None
    thread_bytes: int | None = None
    cache_bytes: int = CACHE_BYTES
    keep_last: int | None = None
    thread_ttl: float | None = None
    sweep_seconds: float = SWEEP_SECONDS

    def divided(self, parts: int) -> Self:
        """A copy with the quotas divided among a number of shards."""
        return msgspec.structs.replace(
            self,
            item_bytes=self.item_bytes and self.item_bytes // parts,
            thread_bytes=self.thread_bytes and self.thread_bytes // parts,
            cache_bytes=self.cache_bytes // parts,
        )

    def make_shard(self, hot_bytes: int | None = None) -> Shard:
        """Make an empty shard; `hot_bytes` as in `Shard`."""
        ttl_us = None if self.thread_ttl is None else int(self.thread_ttl * 1_000_000)
        retention = Retention(self.keep_last, ttl_us)
        return Shard(hot_bytes, retention=retention, cache_bytes=self.cache_bytes)

    @property
    def quotas(self) -> Quotas:
        """The quotas of the shard."""
        return Quotas(self.item_bytes, self.thread_bytes)


class JournalSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of a shard's journal.

    Attributes:
        ack: What is true of a write once it is acknowledged.
        appends: `"direct"`: the event loop appends to the journal, for files of this node.
            `"thread"`: a thread does, for file systems that may take their time.
        segment_bytes: Size of a segment; compaction is considered from this much garbage.
    """

    ack: Ack = Ack()
    appends: Literal["direct", "thread"] = "direct"
    segment_bytes: int = SEGMENT_BYTES


class TierSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of the memory tier that holds values which memory has let go.

    Attributes:
        factory: `"module:callable"` that makes the tier; see `memory_tier.TierFactory`.
        total_bytes: Its size.
        managers: Processes that hold its values.
    """

    factory: str
    total_bytes: int
    managers: int = 1


class ActorSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings that the actors of all shards of a cluster have in common.

    Attributes:
        journal: How the journal is written.
        limits: How much a shard keeps, and for how long.
        hot_bytes: Bytes of values to keep in memory, None for all.
        tier: Where values come from when memory has let them go, None for the journal alone.
        claimed: Whether an actor has no clients before it is told which slots are its own.
    """

    journal: JournalSettings = JournalSettings()
    limits: ShardSettings = ShardSettings()
    hot_bytes: int | None = None
    tier: TierSettings | None = None
    claimed: bool = False


class ActorArguments(msgspec.Struct, frozen=True, kw_only=True):
    """The arguments of a shard actor's factory, as JSON.

    Attributes:
        folder: The shard's private folder.
        tier_path: Path on this node beside which its memory tier keeps files.
        settings: What it has in common with the others.
    """

    folder: str
    tier_path: str
    settings: ActorSettings
