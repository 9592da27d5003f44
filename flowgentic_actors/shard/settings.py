"""How much a shard keeps, as it is handed to whoever makes one."""

from __future__ import annotations

from typing import Self

import msgspec

from flowgentic_actors.engine import Shard
from flowgentic_actors.engine.shard import CACHE_BYTES
from flowgentic_actors.engine.threads import Retention
from flowgentic_actors.shard.quotas import Quotas
from flowgentic_actors.shard.sweeper import SWEEP_SECONDS


class ShardSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What is the same for a shard in an actor and one in the program's own process.

    Attributes:
        item_bytes: Ceiling of the bytes of items, None for no limit.
        thread_bytes: The same for threads.
        cache_bytes: Bytes that cached values may take.
        keep_last: Checkpoints to keep of each namespace of a thread, None for all.
        thread_ttl: Seconds for which a thread is kept that nobody writes to, None for ever.
        sweep_seconds: Time between two looks at what is over.
    """

    item_bytes: int | None = None
    thread_bytes: int | None = None
    cache_bytes: int = CACHE_BYTES
    keep_last: int | None = None
    thread_ttl: float | None = None
    sweep_seconds: float = SWEEP_SECONDS

    def sweeping_every(self, seconds: float) -> Self:
        """The same with another time between two looks."""
        return msgspec.structs.replace(self, sweep_seconds=seconds)

    def divided(self, parts: int) -> Self:
        """What is left for each when as many share it."""
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
        """How much may be stored."""
        return Quotas(self.item_bytes, self.thread_bytes)

    def encode(self) -> str:
        """As text, for an actor's arguments."""
        return msgspec.json.encode(self).decode()

    @classmethod
    def decode(cls, text: str) -> Self:
        """What `encode` made; the defaults where it is empty."""
        return msgspec.json.decode(text, type=cls) if text else cls()
