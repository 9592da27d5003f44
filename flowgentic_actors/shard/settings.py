"""The settings of a shard: how much it keeps, and for how long."""

from __future__ import annotations

from typing import Self

import msgspec

from flowgentic_actors.engine import Shard
from flowgentic_actors.engine.shard import CACHE_BYTES
from flowgentic_actors.engine.thread_plans import Retention
from flowgentic_actors.shard.quotas import Quotas
from flowgentic_actors.shard.sweeper import SWEEP_SECONDS


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

    def sweeping_every(self, seconds: float) -> Self:
        """A copy with another interval of sweeping."""
        return msgspec.structs.replace(self, sweep_seconds=seconds)

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

    def encode(self) -> str:
        """The settings as text, for an actor's arguments."""
        return msgspec.json.encode(self).decode()

    @classmethod
    def decode(cls, text: str) -> Self:
        """Decode the text made by `encode`; the defaults for an empty one."""
        return msgspec.json.decode(text, type=cls) if text else cls()
