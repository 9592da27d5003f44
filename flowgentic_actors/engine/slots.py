"""Slots: the hash of keys. Which shard has which slot is up to the slot table, not to this."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from itertools import compress
from typing import Any, Final

from msgspec.structs import replace

from flowgentic_actors.engine.commands import ABOUT_A_THREAD, ABOUT_AN_ITEM, SEARCHES, Command
from flowgentic_actors.engine.records import (
    ItemDeleted,
    ItemsExpired,
    ItemsRefreshed,
    ItemStored,
    Record,
    ThreadsExpired,
)

SLOTS: Final = 4096

_SHIFT: Final = 32 - SLOTS.bit_length() + 1

_ABOUT_A_THREAD: Final = frozenset(ABOUT_A_THREAD)
_ABOUT_AN_ITEM: Final = frozenset(ABOUT_AN_ITEM)
_SEARCHES: Final = frozenset(SEARCHES)


@lru_cache(maxsize=4096)
def slot_of_thread(thread_id: str) -> int:
    """The slot of a thread: all of its checkpoints share it."""
    return _hash("t", thread_id)


def slot_of_namespace(namespace: tuple[str, ...], depth: int) -> int:
    """The slot of the items in a namespace.

    Args:
        namespace: The namespace; as a prefix, it has at least `depth` labels.
        depth: Leading labels that count, as in `MemoryConfig.namespace_depth`.
    """
    return _slot("n", *namespace[:depth])


def slot_of_cached(key: tuple[tuple[str, ...], str]) -> int:
    """The slot of a cached value: those of one namespace are spread over all."""
    return _slot("c", *key[0], key[1])


def slot_of_command(command: Command, depth: int) -> int | None:
    """The slot of the one key that a command is about; None when it is about many.

    Args:
        command: The command.
        depth: As in `slot_of_namespace`.
    """
    about: Any = command
    kind = type(command)
    if kind in _ABOUT_A_THREAD:
        return None if about.thread_id is None else slot_of_thread(about.thread_id)
    if kind in _ABOUT_AN_ITEM:
        return _slot("n", *about.namespace[:depth])
    if kind in _SEARCHES and len(about.prefix) >= depth:
        return _slot("n", *about.prefix[:depth])
    return None


def part_of(record: Record, within: Callable[[int], bool], depth: int) -> Record | None:
    """The part of a record about some slots: itself if it is all, None if there is none.

    Args:
        record: The record.
        within: Whether a slot is one of them.
        depth: As in `slot_of_namespace`.
    """
    match record:
        case ItemStored() | ItemDeleted():
            return record if within(slot_of_namespace(record.namespace, depth)) else None
        case ItemsRefreshed() | ItemsExpired():
            items = [i for i in record.items if within(slot_of_namespace(i[0], depth))]
            if len(items) == len(record.items):
                return record
            return replace(record, items=tuple(items)) if items else None
        case ThreadsExpired(thread_ids):
            threads = [t for t in thread_ids if within(slot_of_thread(t))]
            return ThreadsExpired(tuple(threads)) if threads else None
        case _:
            return record if within(slot_of_thread(record.thread_id)) else None


class SlotSet:
    """A set of slots.

    Args:
        packed: One bit for each, as `pack` gives it; empty for none.
    """

    __slots__ = ("_has", "packed")

    def __init__(self, packed: bytes = b"") -> None:
        self.packed = packed
        number = int.from_bytes(packed, "little")
        # One byte for each: looked up at every request.
        self._has = f"{number:0{SLOTS}b}".encode().translate(_BITS)[::-1]

    def __contains__(self, slot: int) -> bool:
        return self._has[slot] == 1

    def __len__(self) -> int:
        return self._has.count(1)

    def __iter__(self) -> Iterator[int]:
        return compress(range(SLOTS), self._has)

    @staticmethod
    def pack(slots: Iterable[int]) -> bytes:
        """Pack slots into `SLOTS / 8` bytes."""
        number = 0
        for slot in slots:
            number |= 1 << slot
        return number.to_bytes(SLOTS // 8, "little")


_BITS: Final = bytes.maketrans(b"01", b"\x00\x01")


def _hash(*labels: str) -> int:
    # CRC-32 is the same in every process and version, unlike hash(); labels cannot contain NUL.
    # It is linear, so ids that differ in one digit would crowd into few slots: the multiplication
    # (Knuth's) spreads them, and the product's high bits are the slot.
    crc = zlib.crc32("\0".join(labels).encode("utf-8", "surrogatepass"))
    return ((crc * 0x9E3779B1) & 0xFFFF_FFFF) >> _SHIFT


_slot = lru_cache(maxsize=4096)(_hash)
