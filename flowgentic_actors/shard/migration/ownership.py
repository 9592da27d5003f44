"""Slot ownership: which slots a shard answers for, where slots may move."""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import Struct

from flowgentic_actors.engine.commands import CacheGet, CacheKey, CacheSet, Command
from flowgentic_actors.engine.slots import (
    SlotSet,
    slot_of_cached,
    slot_of_command,
    slot_of_namespace,
    slot_of_thread,
)
from flowgentic_actors.errors import SlotsMovedError
from flowgentic_actors.wire.addresses import Address


class PullOrder(Struct, array_like=True, frozen=True):
    """The order to take slots over from another shard.

    Attributes:
        move: Number of this attempt: with another one, all is taken anew.
        source: Where the shard is that has them, None while it serves nowhere.
        name: The name of its actors.
        slots: The slots, packed.
        rate: Bytes of entries to take in a second, at most.
    """

    move: int
    source: Address | None
    name: str
    slots: bytes
    rate: int


class SlotOwnership(Struct, array_like=True, frozen=True):
    """The slots that a shard owns, freezes and takes over.

    Attributes:
        since: Version of the table in which its slots changed last.
        depth: Leading labels of a namespace that decide its slot.
        owned: The slots that are its own, packed.
        frozen: Those of them that change hands just now: it answers nothing about them. Packed.
        known: While slots may become others', or others' its own: version of the table that is in
            force. 0 otherwise.
        pull: Slots to take over.
        frozen_for: Number of the move for which slots are held, 0 for none.
    """

    since: int
    depth: int
    owned: bytes
    frozen: bytes = b""
    known: int = 0
    pull: PullOrder | None = None
    frozen_for: int = 0


_NOBODYS: Final[CacheKey] = ((), "\0")
"""A key under which nothing is ever cached."""


class OwnedSlots:
    """The ownership in force: checks commands against it.

    Args:
        ownership: The claim.
    """

    def __init__(self, ownership: SlotOwnership) -> None:
        self.ownership = ownership
        owned, held = SlotSet(ownership.owned), SlotSet(ownership.frozen)
        self.owned, self.frozen = owned, held
        self._depth = ownership.depth
        answered = int.from_bytes(owned.packed, "little") & ~int.from_bytes(held.packed, "little")
        self._answers = SlotSet(answered.to_bytes(max(len(owned.packed), 1), "little"))

    def check(self, command: Command) -> None:
        """Refuse a command that another shard has to be asked.

        Of what is asked of all shards, each must answer by the same table, or that one at least
        must not have changed for it: what moves meanwhile would be found twice, or not at all.

        Raises:
            SlotsMovedError: If the command is about a slot that is not, or soon will not be, this
                shard's, or about all of them by an older or newer table.
        """
        slot = slot_of_command(command, self._depth)
        if slot is not None:
            if slot not in self._answers:
                whose = "changes hands just now" if slot in self.frozen else "is another shard's"
                raise SlotsMovedError(f"slot {slot} {whose}")
            return
        table = getattr(command, "table", 0)
        if table and (table < self.ownership.since or 0 < self.ownership.known < table):
            raise SlotsMovedError(
                f"slots have moved: it was asked by version {table} of the table, and this shard's "
                f"slots changed last in version {self.ownership.since}"
            )

    def cached(self, command: CacheGet | CacheSet) -> CacheGet | CacheSet:
        """A command without the cached values whose slots are not owned, or frozen.

        They are not refused: nothing that is cached has to be found.
        """
        if isinstance(command, CacheGet):
            keys = tuple(k if self._answers_cached(k) else _NOBODYS for k in command.keys)
            return msgspec.structs.replace(command, keys=keys)
        entries = tuple(e for e in command.entries if self._answers_cached(e.key))
        return msgspec.structs.replace(command, entries=entries)

    def shows_thread(self, thread_id: str) -> bool:
        """Whether a thread's slot is owned."""
        return slot_of_thread(thread_id) in self.owned

    def shows_namespace(self, namespace: tuple[str, ...]) -> bool:
        """Whether the slot of a namespace's items is owned."""
        return slot_of_namespace(namespace, self._depth) in self.owned

    def _answers_cached(self, key: CacheKey) -> bool:
        return slot_of_cached(key) in self._answers
