"""A history of reads and writes, checked while it grows.

The test records when each operation begins and how it ends, in the order in which that
happens; the checker says at once what no correct memory could have answered. It keeps only what
later reads can still be held against, so a history may be as long as one likes. Pure: no I/O, no
clock.

Two kinds of things are checked. An **item** of the store (`ItemHistory`) has one writer and any
number of readers, and behaves like a register: a read that begins after a write was acknowledged
sees it or a later one, what one reader has seen no later read may miss, and nothing is read that
was not written. A **thread** of checkpoints (`ThreadHistory`) holds every acknowledged checkpoint
and pending write once and in order, up to its deletion. A write whose outcome is not known may
have happened or not, but not after a later one of its writer was acknowledged.
"""

from __future__ import annotations

import enum
import zlib
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from flowgentic_actors.errors import NotSentError, RejectedError

_KEPT_STEPS = 20_000
_KEPT_FINDINGS = 1000

ABSENT: Final = None
"""What is read where nothing is stored."""


class Outcome(enum.Enum):
    """How a write ended."""

    DONE = "acknowledged"
    FAILED = "did not happen"
    UNKNOWN = "may have happened"


def outcome_of(error: BaseException) -> Outcome:
    """The outcome of a write that ended with an error."""
    nothing_happened = isinstance(error, NotSentError | RejectedError)
    return Outcome.FAILED if nothing_happened else Outcome.UNKNOWN


@dataclass(frozen=True)
class Finding:
    """An observation that contradicts every correct memory.

    Attributes:
        kind: `lost`: an acknowledged write is not there. `stale`: what was read before is not
            there any more. `phantom`: never written. `duplicate`: there twice, or carried out
            twice. `reordered`: in another order. `damaged`: not the value that was written.
            `hung`: a call neither answered nor failed in time.
        where: The key or thread.
        what: In words.
        before: The last recorded steps there.
    """

    kind: str
    where: str
    what: str
    before: tuple[str, ...] = ()

    def __str__(self) -> str:
        steps = "".join(f"\n      {step}" for step in self.before)
        return f"{self.kind}: {self.where}: {self.what}{steps}"


class Findings:
    """The findings, and the steps that led to them."""

    def __init__(self) -> None:
        self.tick = 0
        self.count = 0
        self.list: list[Finding] = []
        self._steps: deque[tuple[int, object, str]] = deque(maxlen=_KEPT_STEPS)

    def step(self, where: object, what: str) -> int:
        """Add a step; returns its number in the order of all steps."""
        self.tick += 1
        self._steps.append((self.tick, where, what))
        return self.tick

    def add(self, kind: str, where: object, what: str) -> None:
        """Add a finding."""
        self.count += 1
        if len(self.list) < _KEPT_FINDINGS:
            steps = [f"{tick} {text}" for tick, place, text in self._steps if place == where]
            self.list.append(Finding(kind, str(where), what, tuple(steps[-12:])))


# ---------------------------------------------------------------------- values


def make_value(where: str, number: int, text: str) -> dict[str, Any]:
    """Make a value that identifies its place and write, with a checksum."""
    return {"where": where, "number": number, "text": text, "sum": _sum(where, number, text)}


def number_in(value: Mapping[str, Any], where: str) -> int | None:
    """The number of the write of a value; None when it is damaged or of another place."""
    try:
        number, text = value["number"], value["text"]
        good = value["where"] == where and value["sum"] == _sum(where, number, text)
    except (KeyError, TypeError, AttributeError):
        return None
    return int(number) if good else None


def _sum(where: str, number: int, text: str) -> int:
    return zlib.crc32(f"{where}/{number}/{text}".encode())


# ---------------------------------------------------------------------- items


@dataclass
class _Item:
    """The known state of a key: writes are numbered from 1, 0 is the absence before them.

    Attributes:
        attempted: The last write that began.
        acknowledged: The last write that was acknowledged.
        seen: The last write that a read has shown.
        failed: Later writes that did not happen.
        deletions: Deletions that a read may still show, 0 among them at first.
        seen_stamp: When the memory says that `seen` was written.
        stamp: The write that `seen_stamp` belongs to.
    """

    attempted: int = 0
    acknowledged: int = 0
    seen: int = 0
    failed: set[int] = field(default_factory=set)
    deletions: set[int] = field(default_factory=lambda: {0})
    stamp: int = 0
    seen_stamp: object = None


@dataclass(frozen=True)
class ItemRead:
    """A read in progress, with what was certain when it began."""

    where: str
    acknowledged: int
    seen: int


class ItemHistory:
    """Checks items, each with one writer that does one thing at a time, and many readers.

    Args:
        findings: Where to say what was found.
    """

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self._items: dict[str, _Item] = {}

    def begin_write(self, where: str, *, delete: bool = False) -> int:
        """Note that a write or deletion begins; returns its number."""
        item = self._items.setdefault(where, _Item())
        item.attempted += 1
        if delete:
            item.deletions.add(item.attempted)
        self._findings.step(where, f"{'delete' if delete else 'write'} {item.attempted} begins")
        return item.attempted

    def end_write(self, where: str, number: int, outcome: Outcome) -> None:
        """Note that a write has ended."""
        self._findings.step(where, f"write {number} {outcome.value}")
        item = self._items[where]
        match outcome:
            case Outcome.DONE:
                item.acknowledged = number
                self._prune(item)
            case Outcome.FAILED:
                if item.seen >= number:
                    self._findings.add("phantom", where, f"read {number}, which then was refused")
                item.failed.add(number)
                item.deletions.discard(number)

    def begin_read(self, where: str) -> ItemRead:
        """Note that a read begins."""
        item = self._items.setdefault(where, _Item())
        return ItemRead(where, item.acknowledged, item.seen)

    def end_read(
        self, read: ItemRead, value: Mapping[str, Any] | None, stamp: object = None
    ) -> None:
        """Check the answer of a read.

        Args:
            read: What `begin_read` gave.
            value: What was read, None when nothing was there.
            stamp: The time of the write, as the memory tells it: one write has one.
        """
        where, item = read.where, self._items[read.where]
        if value is ABSENT:
            self._read_absence(read, item)
            return
        number = number_in(value, where)
        if number is None:
            self._findings.add("damaged", where, f"read {str(value)[:200]}")
            return
        self._findings.step(where, f"read {number}")
        if number < 1 or number > item.attempted or number in item.deletions:
            self._findings.add("phantom", where, f"read {number}, of {item.attempted} written")
        elif self._current(read, item, number):
            if item.stamp == number and stamp != item.seen_stamp:
                self._findings.add(
                    "duplicate", where, f"{number} is of {item.seen_stamp}, then of {stamp}"
                )
            if number >= item.stamp:
                item.stamp, item.seen_stamp = number, stamp
            item.seen = max(item.seen, number)
            self._prune(item)

    def _read_absence(self, read: ItemRead, item: _Item) -> None:
        self._findings.step(read.where, "read nothing")
        least = max(read.acknowledged, read.seen)
        # Which deletion it was is not told: the earliest that it can be is certain.
        number = min((n for n in item.deletions if n >= least), default=None)
        if number is None:
            kind = "lost" if read.acknowledged >= read.seen else "stale"
            self._findings.add(
                kind,
                read.where,
                f"nothing there; acknowledged {read.acknowledged}, read before {read.seen}",
            )
        else:
            item.seen = max(item.seen, number)
            self._prune(item)

    def _current(self, read: ItemRead, item: _Item, number: int) -> bool:
        if number in item.failed:
            kind, why = "phantom", "which was refused"
        elif number < read.acknowledged:
            kind, why = "lost", f"acknowledged {read.acknowledged}"
        elif number < read.seen:
            kind, why = "stale", f"read before {read.seen}"
        else:
            return True
        self._findings.add(kind, read.where, f"read {number}, {why}")
        return False

    @staticmethod
    def _prune(item: _Item) -> None:
        # Reads under way remember what was certain when they began, and may show a deletion from
        # before: those of the last few writes are kept.
        least = max(item.acknowledged, item.seen) - 1000
        item.failed = {n for n in item.failed if n >= least}
        item.deletions = {n for n in item.deletions if n >= least}


# ---------------------------------------------------------------------- threads


@dataclass
class _Step:
    """One write to a thread.

    Attributes:
        delete: Whether it deletes the thread.
        checkpoint: Id of the checkpoint that it stores, or stores pending writes on.
        parent: Id of the checkpoint's parent.
        task: Task of the pending writes, None for a checkpoint.
        content: What it stores.
        outcome: How it ended, None while it is under way.
        done: Tick at which it was acknowledged.
        seen: Tick at which a read first showed it.
    """

    delete: bool = False
    checkpoint: str = ""
    parent: str | None = None
    task: str | None = None
    content: object = None
    outcome: Outcome | None = None
    done: int | None = None
    seen: int | None = None

    def certain(self, tick: int) -> bool:
        """Whether the step had certainly happened at a tick."""
        done = self.done is not None and self.done <= tick
        return done or (self.seen is not None and self.seen <= tick)

    def __str__(self) -> str:
        if self.delete:
            return "the deletion"
        return f"checkpoint {self.checkpoint}" + (f" writes of {self.task}" if self.task else "")


@dataclass(frozen=True)
class ReadCheckpoint:
    """A checkpoint as a read returned it.

    Attributes:
        checkpoint: Its id.
        parent: Its parent's id.
        content: Its content, comparable with what was written.
        writes: Its pending writes as (task, content), in order.
    """

    checkpoint: str
    parent: str | None
    content: object
    writes: tuple[tuple[str, object], ...] = ()


@dataclass(frozen=True)
class ThreadRead:
    """A read in progress.

    Attributes:
        thread: The thread.
        tick: When it began.
        latest: Whether it asks for the latest checkpoint only.
    """

    thread: str
    tick: int
    latest: bool


class ThreadHistory:
    """Checks threads of checkpoints, each with one writer that does one thing at a time.

    Ids of checkpoints grow. Pending writes of one task on one checkpoint are stored once.

    Args:
        findings: Where to say what was found.
    """

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self._threads: dict[str, list[_Step]] = {}

    def begin_put(self, thread: str, checkpoint: str, parent: str | None, content: object) -> _Step:
        """Note that a put of a checkpoint begins."""
        return self._begin(
            thread, _Step(checkpoint=checkpoint, parent=parent, content=content), "put"
        )

    def begin_writes(
        self, thread: str, checkpoint: str, task: str, content: Sequence[object]
    ) -> _Step:
        """Note that a put of a task's pending writes begins."""
        step = _Step(checkpoint=checkpoint, task=task, content=tuple(content))
        return self._begin(thread, step, "writes")

    def begin_delete(self, thread: str) -> _Step:
        """Note that the deletion of the thread begins."""
        return self._begin(thread, _Step(delete=True), "delete")

    def end(self, thread: str, step: _Step, outcome: Outcome) -> None:
        """Note that a write to a thread has ended."""
        tick = self._findings.step(thread, f"{step}: {outcome.value}")
        step.outcome = outcome
        if outcome is Outcome.DONE:
            step.done = tick
            if step.delete:
                self._prune(self._threads[thread])
        elif outcome is Outcome.FAILED and step.seen is not None:
            self._findings.add("phantom", thread, f"{step} was read, and then was refused")

    def begin_read(self, thread: str, *, latest: bool = False) -> ThreadRead:
        """Note that a listing, or a fetch of the latest checkpoint, begins."""
        self._threads.setdefault(thread, [])
        return ThreadRead(thread, self._findings.tick, latest)

    def end_read(self, read: ThreadRead, found: Sequence[ReadCheckpoint]) -> None:
        """Check the answer of a read.

        Args:
            read: What `begin_read` gave.
            found: What was read, newest first.
        """
        ids = [row.checkpoint for row in found]
        self._findings.step(read.thread, f"read {ids}")
        if len(set(ids)) != len(ids):
            self._findings.add("duplicate", read.thread, f"listed {ids}")
            return
        if ids != sorted(ids, reverse=True):
            self._findings.add("reordered", read.thread, f"listed {ids}")
            return
        steps = self._threads[read.thread]
        shown = self._matched(read.thread, steps, found)
        if shown is None:
            return
        # Which deletion was the last to happen must explain what is there and what is not.
        first: tuple[str, str] | None = None
        for start in _starts(steps, read.tick):
            problem = _contradiction(steps, start, shown, read)
            if problem is None:
                now = self._findings.tick
                for index in shown:
                    steps[index].seen = steps[index].seen or now
                if first is not None:  # only that deletion, of unknown outcome, explains it
                    steps[start - 1].seen = steps[start - 1].seen or now
                return
            first = first or problem
        assert first is not None
        self._findings.add(first[0], read.thread, first[1])

    def _begin(self, thread: str, step: _Step, what: str) -> _Step:
        self._threads.setdefault(thread, []).append(step)
        self._findings.step(thread, f"{what} {step} begins")
        return step

    @staticmethod
    def _prune(steps: list[_Step]) -> None:
        # A read under way may still show what was there some deletions ago, not more.
        certain = [i for i, step in enumerate(steps) if step.delete and step.done is not None]
        if len(certain) > 3:
            del steps[: certain[-4] + 1]

    def _matched(
        self, thread: str, steps: list[_Step], found: Iterable[ReadCheckpoint]
    ) -> set[int] | None:
        """The writes that a read shows, by position; None if some value was never written."""
        puts = {(s.checkpoint, s.task): i for i, s in enumerate(steps) if not s.delete}
        shown: set[int] = set()
        for row in found:
            index = puts.get((row.checkpoint, None))
            if index is None:
                self._findings.add("phantom", thread, f"nobody wrote checkpoint {row.checkpoint}")
                return None
            if steps[index].parent != row.parent or steps[index].content != row.content:
                self._findings.add(
                    "damaged", thread, f"{steps[index]}: read {str(row)[:200]} of {steps[index]!r}"
                )
                return None
            shown.add(index)
            tasks: dict[str, list[object]] = {}
            for task, content in row.writes:
                tasks.setdefault(task, []).append(content)
            for task, contents in tasks.items():
                index = puts.get((row.checkpoint, task))
                if index is None:
                    self._findings.add("phantom", thread, f"nobody made writes of {task}")
                    return None
                written = steps[index].content
                if tuple(contents) != written:
                    twice = len(contents) > len(set(map(str, contents)))
                    self._findings.add(
                        "duplicate" if twice else "damaged",
                        thread,
                        f"{steps[index]}: read {contents}, written {written}",
                    )
                    return None
                shown.add(index)
        return shown


def _starts(steps: Sequence[_Step], tick: int) -> list[int]:
    """The positions after deletions that may have been the last one, earliest first."""
    certain = max((i + 1 for i, s in enumerate(steps) if s.delete and s.certain(tick)), default=0)
    later = (
        i + 1
        for i, step in enumerate(steps)
        if i >= certain and step.delete and step.outcome is not Outcome.FAILED
    )
    return [certain, *later]


def _contradiction(
    steps: Sequence[_Step], start: int, shown: set[int], read: ThreadRead
) -> tuple[str, str] | None:
    """The contradiction to a deletion just before `start` being the last one."""
    for index in sorted(shown):
        if index < start:
            return "phantom", f"{steps[index]} is there, which was deleted"
        if steps[index].outcome is Outcome.FAILED:
            return "phantom", f"{steps[index]} is there, which was refused"
    visible = {steps[index].checkpoint for index in shown}
    newest = max(visible, default="")
    for index, step in enumerate(steps[start:], start):
        if index in shown or step.delete or not step.certain(read.tick):
            continue
        if step.task is not None and step.checkpoint not in visible:
            continue  # it waits for its checkpoint
        if read.latest and step.task is None and step.checkpoint < newest:
            continue
        acknowledged = step.done is not None and step.done <= read.tick
        why = "was acknowledged" if acknowledged else "was read before"
        return ("lost" if acknowledged else "stale"), f"{step} {why} and is not there"
    return None
