"""The slot table: keys hash to fixed slots, the table maps slots to shards."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from functools import cached_property, lru_cache
from hashlib import blake2b
from heapq import heapify, heappop, heappush, heapreplace
from typing import Final

import msgspec

from flowgentic_actors.engine.slots import (
    SLOTS,
    slot_of_cached,
    slot_of_namespace,
    slot_of_thread,
)

_MASK: Final = (1 << 64) - 1


class SlotTable(msgspec.Struct, frozen=True, array_like=True, dict=True):
    """The shard of every slot.

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
        return self.shards[slot_of_thread(thread_id)]

    def of_namespace(self, namespace: tuple[str, ...]) -> int:
        """The shard of the items in a namespace."""
        return self.shards[slot_of_namespace(namespace, self.namespace_depth)]

    def of_cached(self, key: tuple[tuple[str, ...], str]) -> int:
        """The shard of a cached value: those of one namespace are spread over all."""
        return self.shards[slot_of_cached(key)]

    def shifted(self, first: int) -> SlotTable:
        """The table with its shards renumbered from `first` on."""
        if not first:
            return self
        return msgspec.structs.replace(self, shards=tuple([first + each for each in self.shards]))

    @cached_property
    def owners(self) -> tuple[int, ...]:
        """The shards that have any slot; where shards were removed, some numbers are missing."""
        return tuple(sorted(set(self.shards)))

    @cached_property
    def slots(self) -> dict[int, list[int]]:
        """The slots of each shard that has any."""
        found: dict[int, list[int]] = {}
        for slot, shard in enumerate(self.shards):
            found.setdefault(shard, []).append(slot)
        return found


def even_table(shards: int, namespace_depth: int) -> SlotTable:
    """Spread the slots evenly over a number of shards."""
    return SlotTable(1, tuple(slot * shards // SLOTS for slot in range(SLOTS)), namespace_depth)


def rebalanced(table: SlotTable, weights: Mapping[int, float]) -> SlotTable:
    """The next table after shards were added, removed or given other weights.

    As few slots move as can be: a removed shard's, and those above a quota. To which shard that is
    below its quota is decided by weighted rendezvous, the highest score of (slot, shard) first.

    Scores alone would need no quotas and no table before, but balance worse: the largest of 10, 100
    and 1,000 equal shards would have 1.07, 1.37 and 2.93 times the mean, and as many slots would
    move when it is removed. Here it is 1.00, 1.01 and 1.22 times: among 1,000, some have 4 slots
    and some 5. Scores with quotas but no table before balance as well, but one more than 100 shards
    would move 2.3 times the slots that it gets.

    Args:
        table: The table so far.
        weights: How much every shard is to hold, in proportion to the others; 0 for nothing.

    Raises:
        ValueError: If a weight is negative or not finite, or none is above 0.
    """
    if any(not 0 <= weight < math.inf for weight in weights.values()) or not any(weights.values()):
        raise ValueError(f"weights must be finite, not negative, and not all 0: {dict(weights)}")
    held = Counter(table.shards)
    quotas = _quotas(weights, held)
    spare = {shard: held[shard] - quotas.get(shard, 0) for shard in held}
    room = {shard: quota - held[shard] for shard, quota in quotas.items() if quota > held[shard]}
    shards = list(table.shards)
    marks = {shard: (_mark("shard", shard), weights[shard]) for shard in room}
    ranked: dict[int, list[int]] = {}
    wishes: list[tuple[float, int]] = []
    for slot, giver in enumerate(shards):
        if spare[giver] > 0:
            mark = _mark("slot", slot)
            scores = {shard: _score(mark, *marks[shard]) for shard in sorted(room)}
            ranked[slot] = sorted(scores, key=scores.__getitem__)  # the best comes last
            wishes.append((-scores[ranked[slot][-1]], slot))
    heapify(wishes)
    while room:
        _, slot = heappop(wishes)
        giver, taker = shards[slot], ranked[slot][-1]
        if not spare[giver]:
            continue
        if taker not in room:
            ranked[slot].pop()
            score = _score(_mark("slot", slot), *marks[ranked[slot][-1]])
            heappush(wishes, (-score, slot))
            continue
        shards[slot] = taker
        spare[giver] -= 1
        room[taker] -= 1
        if not room[taker]:
            del room[taker]
    return SlotTable(table.version + 1, tuple(shards), table.namespace_depth)


def moves(old: SlotTable, new: SlotTable) -> dict[tuple[int, int], list[int]]:
    """The slots whose shard differs in a newer table, by (source, target)."""
    found: dict[tuple[int, int], list[int]] = {}
    for slot, (giver, taker) in enumerate(zip(old.shards, new.shards, strict=True)):
        if giver != taker:
            found.setdefault((giver, taker), []).append(slot)
    return found


def _quotas(weights: Mapping[int, float], held: Mapping[int, int]) -> dict[int, int]:
    """The number of slots of each shard, in proportion to its weight.

    By Sainte-Laguë's method: each slot goes to the shard with the highest weight / (2 x slots + 1),
    so one divisor rounds all weights to their quotas. The largest remainders would be nearer to a
    heavy shard's part, but when a shard is added or removed they may move a slot between two that
    are not concerned (a paradox known from elections).

    Args:
        weights: The weights.
        held: Slots that each shard has: among equals, who has a slot keeps it.
    """
    quotas = dict.fromkeys(weights, 0)

    def claim(shard: int) -> tuple[float, bool, int]:
        has = quotas[shard]
        return -weights[shard] / (2 * has + 1), has >= held.get(shard, 0), shard

    claims = [claim(shard) for shard, weight in weights.items() if weight]
    heapify(claims)
    for _ in range(SLOTS):
        shard = claims[0][2]
        quotas[shard] += 1
        heapreplace(claims, claim(shard))
    return quotas


def _score(slot: int, shard: int, weight: float) -> float:
    """The score of a shard for a slot; the highest wins, in proportion to the weights.

    Args:
        slot: The slot's mark.
        shard: The shard's mark.
        weight: The shard's weight.
    """
    mixed = (slot ^ shard) * 0xBF58476D1CE4E5B9 & _MASK  # as SplitMix64 does
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & _MASK
    return -weight / math.log((mixed >> 12 | 1) / (1 << 52))  # of a number above 0, below 1


@lru_cache(maxsize=2 * SLOTS)
def _mark(kind: str, number: int) -> int:
    """Hash a number to 64 bits, the same in every process."""
    return int.from_bytes(blake2b(f"{kind} {number}".encode(), digest_size=8).digest(), "big")
