"""Cached values: bounded by bytes, the least recently used go first.

Nothing of a cache is recorded: it may be lost at any time, and a caller without a value makes it
anew.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from msgspec import Struct

from flowgentic_actors.engine.commands import (
    CacheClear,
    CacheCommand,
    CacheEntry,
    CacheGet,
    CacheKey,
    CacheSet,
)
from flowgentic_actors.engine.model import Blob
from flowgentic_actors.engine.replies import Cached, Done

_AROUND: Final = 400  # bytes that an entry costs beyond its value, about

_DONE = Done()


class _Entry(Struct, frozen=True, gc=False):
    value: Blob
    expires_us: int  # 0 for never
    size: int


class Cache:
    """The cached values of a shard.

    Args:
        limit: Bytes that they may take, with their keys and what is around them.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._entries: OrderedDict[CacheKey, _Entry] = OrderedDict()  # least recently used first
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._entries)

    def answer(self, command: CacheCommand, now_us: int) -> Cached | Done:
        """Carry out a command."""
        match command:
            case CacheGet(keys):
                return Cached(tuple(self._get(key, now_us) for key in keys))
            case CacheSet(entries):
                for entry in entries:
                    self._set(entry, now_us)
            case CacheClear(None):
                self._entries.clear()
                self.bytes = 0
            case CacheClear(namespaces):
                doomed = set(namespaces or ())
                for key in [key for key in self._entries if key[0] in doomed]:
                    self._remove(key)
        return _DONE

    def redo(self, command: CacheCommand, now_us: int) -> None:
        """Complete an interrupted command; see `Shard.redo`."""
        self.bytes = sum(entry.size for entry in self._entries.values())
        self.answer(command, now_us)

    def _get(self, key: CacheKey, now_us: int) -> Blob | None:
        entry = self._entries.get(key)
        if entry is not None and entry.expires_us and entry.expires_us <= now_us:
            self._remove(key)
            entry = None
        if entry is None:
            self.misses += 1
            return None
        self.hits += 1
        self._entries.move_to_end(key)
        return entry.value

    def _set(self, entry: CacheEntry, now_us: int) -> None:
        self._remove(entry.key)
        namespace, key = entry.key
        size = len(entry.value[1]) + sum(map(len, namespace)) + len(key) + _AROUND
        if size > self._limit:
            return  # it would drive out all others and not fit even then
        expires_us = now_us + entry.ttl_us if entry.ttl_us else 0
        self._entries[entry.key] = _Entry(entry.value, expires_us, size)
        self.bytes += size
        while self.bytes > self._limit:
            self._remove(next(iter(self._entries)))
            self.evicted += 1

    def _remove(self, key: CacheKey) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.bytes -= entry.size
