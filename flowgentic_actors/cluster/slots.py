"""Which shard a key belongs to: keys hash to fixed slots, a table maps slots to shards."""

from __future__ import annotations

import zlib
from functools import lru_cache
from typing import Final

import msgspec

SLOTS: Final = 4096
_SHIFT: Final = 32 - SLOTS.bit_length() + 1


class SlotTable(msgspec.Struct, frozen=True, array_like=True):
    """Where every slot lives.

    Attributes:
        version: Grows with every change.
        shards: Shard of each slot.
        namespace_depth: Leading labels of a namespace that decide its slot.
    """

    version: int
    shards: tuple[int, ...]
    namespace_depth: int

    def of_thread(self, thread_id: str) -> int:
        """The shard of a thread: all of a thread's checkpoints share it."""
        return self.shards[_slot("t", thread_id)]

    def of_namespace(self, namespace: tuple[str, ...]) -> int:
        """The shard of the items in a namespace."""
        return self.shards[_slot("n", *namespace[: self.namespace_depth])]

    def of_cached(self, key: tuple[tuple[str, ...], str]) -> int:
        """The shard of a cached value: those of one namespace are spread over all."""
        return self.shards[_slot("c", *key[0], key[1])]

    def below(self, prefix: tuple[str, ...]) -> tuple[int, ...]:
        """The shards that may hold items below a prefix: one, or all when it is short."""
        if len(prefix) >= self.namespace_depth:
            return (self.of_namespace(prefix),)
        return tuple(range(max(self.shards) + 1))


def even_table(shards: int, namespace_depth: int) -> SlotTable:
    """Spread the slots evenly over a number of shards."""
    return SlotTable(1, tuple(slot * shards // SLOTS for slot in range(SLOTS)), namespace_depth)


@lru_cache(maxsize=4096)
def _slot(*labels: str) -> int:
    # CRC-32 is the same in every process and version, unlike hash(); labels cannot contain NUL.
    # It is linear, so ids that differ in one digit would crowd into few slots: the multiplication
    # (Knuth's) spreads them, and the product's high bits are the slot.
    crc = zlib.crc32("\0".join(labels).encode("utf-8", "surrogatepass"))
    return ((crc * 0x9E3779B1) & 0xFFFF_FFFF) >> _SHIFT
