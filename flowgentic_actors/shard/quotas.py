"""Quotas: how much a shard may hold."""

from __future__ import annotations

from typing import NamedTuple

from flowgentic_actors.engine import Shard
from flowgentic_actors.engine.records import ItemStored, Record
from flowgentic_actors.errors import MemoryFullError


class Quotas(NamedTuple):
    """The most bytes of values in one shard, of items and of threads; None for no limit."""

    items: int | None = None
    threads: int | None = None

    @property
    def any(self) -> bool:
        """Whether there is any limit."""
        return self.items is not None or self.threads is not None

    def check(self, shard: Shard, record: Record) -> None:
        """Refuse a record that would make the shard exceed a quota.

        Raises:
            MemoryFullError: If it would.
        """
        if isinstance(record, ItemStored):
            ceiling, used, what, setting = self.items, shard.item_bytes, "items", "store"
        else:
            ceiling, used, what, setting = self.threads, shard.thread_bytes, "threads", "checkpoint"
        if ceiling is None:
            return
        growth = shard.growth(record)
        if growth > 0 and used + growth > ceiling:
            raise MemoryFullError(
                f"this shard's {what} hold {used} bytes and may hold {ceiling} (its part of "
                f"{setting}_total_mem): {growth} more do not fit. Delete what is not needed, or "
                f"open the cluster with a larger {setting}_total_mem"
            )
