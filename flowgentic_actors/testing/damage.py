"""Damage of memories on disk: each opens with its content, or is refused with a reason.

    python -m flowgentic_actors.testing.damage --count 10000 --seed 1

Files of a memory lose bytes, bits, their ends or themselves. What is opened then must have all that
was acknowledged. The one loss that is legal is what a crash may cost as well: entries from some
point on of the segment that was still written to, of a memory that was not closed in order.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from flowgentic_actors.cluster.persistence.manifest import MANIFEST
from flowgentic_actors.cluster.persistence.stored_memory import StoredMemory
from flowgentic_actors.engine import Shard
from flowgentic_actors.engine.commands import DeleteItem, PutItem, SearchItems
from flowgentic_actors.engine.model import ItemPosition
from flowgentic_actors.engine.replies import ItemPage
from flowgentic_actors.errors import FlowgenticError, JournalError
from flowgentic_actors.shard.embedded.journaled import JournaledShard
from flowgentic_actors.shard.journaling.compaction import compact
from flowgentic_actors.shard.journaling.entries import encode_entry, internal_entry
from flowgentic_actors.shard.settings import JournalSettings
from flowgentic_actors.storage.disk import RealDisk
from flowgentic_actors.storage.journal import Journal
from flowgentic_actors.storage.segment import ACTIVE, DATA, SEALED, Segment

_SEGMENT: Final = 600  # bytes: some entries each
_NAMESPACE: Final = ("n",)
_DELETED: Final = 0.3  # of the writes, where there is something to delete
_MOST: Final = 3  # damages of one memory
_RIGHT: Final = "opened right"

State = frozenset[tuple[str, bytes]]
"""The keys and values of all items."""


class Sample(NamedTuple):
    """A memory to damage.

    Attributes:
        name: What is particular about it.
        path: Its folder.
        states: What an opening may find.
    """

    name: str
    path: Path
    states: frozenset[State]


class DamageFinding(NamedTuple):
    """A finding: what went wrong.

    Attributes:
        number: Which of the memories: with the seed it can be had again.
        sample: What it was.
        damages: What was done to it.
        told: What came of it.
    """

    number: int
    sample: str
    damages: tuple[str, ...]
    told: str


# ---------------------------------------------------------------------- memories


def samples(folder: Path, rng: random.Random) -> list[Sample]:
    """Make memories: with and without compacted sets, closed in order and not."""
    return [
        _sample(folder / f"{number}", rng, writes, compactions=compactions, orderly=orderly)
        for number, (writes, compactions, orderly) in enumerate(
            [(3, 0, True), (30, 0, True), (30, 0, False), (60, 2, True), (60, 1, False)]
        )
    ]


def _sample(
    path: Path, rng: random.Random, writes: int, *, compactions: int, orderly: bool
) -> Sample:
    states: list[State] = [frozenset()]
    items: dict[str, bytes] = {}
    disk, until = RealDisk(), path.with_name(f"{path.name}-killed")
    memory, shard = StoredMemory(path), Shard()
    folder = _open_memory(memory, path)
    journal = Journal(disk, folder, durable=False, segment_bytes=_SEGMENT)
    assert not list(journal.replay())
    journal.prepare()
    stretch = writes // (compactions + 1) + 1
    sealed = 0
    for number in range(1, writes + 1):
        command: PutItem | DeleteItem
        key = f"k{rng.randrange(writes)}"
        if key in items and rng.random() < _DELETED:
            del items[key]
            command = DeleteItem(_NAMESPACE, key)
        else:
            items[key] = rng.randbytes(rng.randrange(80))
            command = PutItem(_NAMESPACE, key, ("bytes", items[key]))
        record = shard.decide(command, number).record
        assert record is not None
        journal.append([encode_entry(internal_entry(record, number))])
        journal.prepare()
        shard.apply(record)
        states.append(frozenset(items.items()))
        if journal.sealed_to > sealed:  # up to the write before this one
            sealed, states = journal.sealed_to, states[-2:]
        if number % stretch == 0 and (written := compact(disk, folder, sealed)) is not None:
            journal.remove(journal.adopt(journal.check(written)))
    name = f"{writes} writes, {compactions} compactions"
    if orderly:
        journal.close()
        memory.close(orderly=True)
        return Sample(f"{name}, closed in order", path, frozenset(states[-1:]))
    shutil.copytree(path, until)  # as a process that is killed leaves it
    journal.close()
    memory.close(orderly=True)
    return Sample(f"{name}, killed", until, frozenset(states))


def _open_memory(memory: StoredMemory, path: Path) -> Path:
    manifest, _ = memory.open(name="damage", instance="i", shards=1, namespace_depth=2)
    return manifest.folders(path)[0]


def _contents(path: Path) -> State:
    memory = StoredMemory(path)
    try:
        shard = JournaledShard(
            _open_memory(memory, path), journal=JournalSettings(segment_bytes=_SEGMENT)
        )
        try:
            return _items_of(shard)
        finally:
            shard.close()
    finally:
        memory.close(orderly=False)


def _items_of(shard: JournaledShard) -> State:
    found: list[tuple[str, bytes]] = []
    after: ItemPosition | None = None
    while True:
        page = shard.ask(SearchItems((), b"", 10**6, 0, after), None)
        assert isinstance(page, ItemPage)
        found += [(row.key, row.value[1]) for row in page.rows]
        if (after := page.after) is None:
            return frozenset(found)


# ---------------------------------------------------------------------- damages


def _cut_at(file: Path, length: int) -> str:
    os.truncate(file, length)
    return f"{file.name} cut to {length} bytes"


def _cut(file: Path, rng: random.Random) -> str:
    return _cut_at(file, rng.randrange(file.stat().st_size))


def _cut_between_entries(file: Path, rng: random.Random) -> str:
    ends = [DATA]
    if file.suffix not in (ACTIVE, SEALED):
        return _cut(file, rng)
    with suppress(JournalError):  # it is damaged already, or no segment
        segment = Segment.open(RealDisk(), file)
        try:
            ends += [segment.offset(lsn) for lsn, _ in segment.entries()]
        finally:
            segment.close()
    return _cut_at(file, min(rng.choice(ends), file.stat().st_size))


def _remove(file: Path, _rng: random.Random) -> str:
    file.unlink()
    return f"{file.name} removed"


def _flip(file: Path, rng: random.Random) -> str:
    data = bytearray(file.read_bytes())
    places = [rng.randrange(len(data)) for _ in range(rng.choice((1, 1, 1, 4)))]
    for place in places:
        data[place] ^= 1 << rng.randrange(8)
    file.write_bytes(data)
    return f"{file.name}: bits flipped at {places}"


def _blank(file: Path, rng: random.Random) -> str:
    data = bytearray(file.read_bytes())
    begin = rng.randrange(len(data))
    end = min(len(data), begin + rng.choice((16, 512, 4096)))
    data[begin:end] = bytes(end - begin)
    file.write_bytes(data)
    return f"{file.name}: zeros from {begin} to {end}"


def _extend(file: Path, rng: random.Random) -> str:
    with file.open("ab") as opened:
        opened.write(rng.randbytes(rng.choice((1, 40, 600))))
    return f"{file.name}: bytes added"


def _confuse(file: Path, rng: random.Random) -> str:
    other = rng.choice([each for each in sorted(file.parent.iterdir()) if each.is_file()])
    shutil.copyfile(other, file) if other != file else None
    return f"{file.name} in the place of {other.name}"


DAMAGES: Final[tuple[Callable[[Path, random.Random], str], ...]] = (
    _cut,
    _cut_between_entries,
    _cut_between_entries,
    _remove,
    _flip,
    _blank,
    _extend,
    _confuse,
)


def damage(path: Path, rng: random.Random) -> tuple[str, ...]:
    """Damage some files of a memory; returns a description of the damage.

    The manifest is damaged alone: it is a text that people may change.
    """
    done: list[str] = []
    for _ in range(rng.choice((1, 1, 2, _MOST))):
        files = sorted(file for file in path.rglob("*") if file.is_file() and file.stat().st_size)
        if not files:
            break
        file = rng.choice(files)
        if file.name == MANIFEST and done:
            continue
        done.append(rng.choice(DAMAGES)(file, rng))
        if file.name == MANIFEST:
            break
    return tuple(done)


# ---------------------------------------------------------------------- the campaign


def run(
    count: int,
    seed: int = 0,
    told: Callable[[int, Counter[str]], None] = lambda *_: None,
) -> tuple[Counter[str], list[DamageFinding]]:
    """Damage memories, one after the other, and open each.

    Args:
        count: How many.
        seed: Decides the memories and their damages.
        told: Called after each thousand with how many there were, and what came of them.

    Returns:
        How often what came of it, and what should not have.
    """
    outcomes: Counter[str] = Counter()
    findings: list[DamageFinding] = []
    with tempfile.TemporaryDirectory() as folder:
        made = samples(Path(folder), random.Random(seed))  # noqa: S311 - seeded
        for number in range(count):
            rng = random.Random(f"{seed} {number}")  # noqa: S311
            sample, copy = rng.choice(made), Path(folder) / "damaged"
            shutil.copytree(sample.path, copy)
            damages = damage(copy, rng)
            outcome, wrong = _open(copy, sample)
            outcomes[outcome] += 1
            if wrong:
                findings.append(DamageFinding(number, sample.name, damages, outcome))
            shutil.rmtree(copy)
            if (number + 1) % 1000 == 0:
                told(number + 1, outcomes)
    return outcomes, findings


def _open(path: Path, sample: Sample) -> tuple[str, bool]:
    """Open a damaged memory; returns the result, and whether it is wrong."""
    try:
        found = _contents(path)
    except FlowgenticError as error:
        return f"refused: {type(error).__name__}", not str(error)
    except Exception as error:  # noqa: BLE001 - whatever is no refusal in words is a finding
        return f"{type(error).__name__}: {error}", True
    if found in sample.states:
        return _RIGHT, False
    most = max(map(len, sample.states))
    return f"opened with {len(found)} items, and not with {most}", True


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> int:
    """Run a campaign; 1 when there are findings."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=10_000, help="memories to damage")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    def told(number: int, outcomes: Counter[str]) -> None:
        _say(f"{number:,} memories: {dict(outcomes.most_common())}")

    outcomes, findings = run(options.count, options.seed, told)
    for finding in findings[:20]:
        _say(f"  {finding}")
    _say(f"{options.count:,} memories, {len(findings)} findings: {dict(outcomes.most_common())}")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
