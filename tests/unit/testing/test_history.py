"""The history checker finds every kind of broken memory, and accepts a correct one."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from flowgentic_actors.errors import (
    ActorUnavailableError,
    FlowgenticError,
    OutcomeUnknownError,
    StorageError,
)
from flowgentic_actors.testing.history import (
    Findings,
    ItemHistory,
    Outcome,
    ReadCheckpoint,
    ThreadHistory,
    make_value,
    number_in,
    outcome_of,
)
from tests.conftest import seeds

KEY = "writer/key"


class Items:
    """A recorded history of one key, told step by step."""

    def __init__(self) -> None:
        self.findings = Findings()
        self.history = ItemHistory(self.findings)

    def write(self, outcome: Outcome = Outcome.DONE, *, delete: bool = False) -> int:
        number = self.history.begin_write(KEY, delete=delete)
        self.history.end_write(KEY, number, outcome)
        return number

    def read(self, number: int | None, stamp: object = None) -> None:
        self.end(self.history.begin_read(KEY), number, stamp)

    def end(self, read: object, number: int | None, stamp: object = None) -> None:
        value = None if number is None else make_value(KEY, number, "text")
        self.history.end_read(read, value, stamp)  # type: ignore[arg-type]

    @property
    def kinds(self) -> list[str]:
        return [finding.kind for finding in self.findings.list]


@pytest.fixture
def items() -> Items:
    return Items()


def test_what_a_correct_memory_answers_is_accepted(items: Items) -> None:
    items.read(None)
    items.write()
    items.read(1)
    before = items.history.begin_read(KEY)
    items.write(delete=True)
    items.end(before, 1)  # it began before the deletion
    items.read(None)
    items.write(Outcome.FAILED)
    items.read(None)
    items.write(Outcome.UNKNOWN)
    items.read(None)  # not yet, or never
    items.read(4)  # it has happened
    under_way = items.history.begin_write(KEY)
    items.read(4)
    items.read(under_way)  # before it is acknowledged
    items.history.end_write(KEY, under_way, Outcome.DONE)
    items.read(under_way)
    assert items.kinds == []


def test_a_lost_write_is_found(items: Items) -> None:
    items.write()
    items.write()
    items.read(1)
    items.read(None)
    assert items.kinds == ["lost", "lost"]
    assert "write 2 acknowledged" in str(items.findings.list[0])


def test_a_deletion_that_did_not_last_is_found(items: Items) -> None:
    items.write()
    items.write(delete=True)
    items.read(1)
    assert items.kinds == ["lost"]


@pytest.mark.parametrize("then", [1, None])
def test_what_was_read_once_may_not_vanish(items: Items, then: int | None) -> None:
    items.write()
    items.write(Outcome.UNKNOWN)
    items.read(2)
    items.read(then)
    assert items.kinds == ["stale"]


def test_a_write_of_unknown_outcome_may_not_come_after_a_later_one(items: Items) -> None:
    items.write(Outcome.UNKNOWN)
    items.write()
    items.read(2)
    items.read(1)
    assert items.kinds == ["lost"]


def test_phantoms_are_found(items: Items) -> None:
    items.write()
    items.read(2)
    items.write(Outcome.FAILED)
    items.read(2)
    items.write(delete=True)
    items.read(3)
    assert items.kinds == ["phantom"] * 3


def test_a_write_that_was_read_and_then_refused_is_found(items: Items) -> None:
    number = items.history.begin_write(KEY)
    items.read(number)
    items.history.end_write(KEY, number, Outcome.FAILED)
    assert items.kinds == ["phantom"]


def test_a_write_that_happened_twice_is_found(items: Items) -> None:
    items.write()
    items.read(1, "noon")
    items.read(1, "one minute past noon")
    assert items.kinds == ["duplicate"]


def test_damaged_and_foreign_values_are_found(items: Items) -> None:
    items.write()
    good = make_value(KEY, 1, "text")
    for bad in (
        {**good, "text": "tex"},
        {**good, "number": 2},
        make_value("writer/other", 1, "text"),
        {},
    ):
        items.history.end_read(items.history.begin_read(KEY), bad)
    assert items.kinds == ["damaged"] * 4
    assert number_in(good, KEY) == 1


def test_errors_say_what_became_of_a_write() -> None:
    def outcome(error: FlowgenticError) -> Outcome:
        return outcome_of(error)

    assert outcome(ActorUnavailableError()) is Outcome.FAILED
    assert outcome(StorageError()) is Outcome.FAILED
    assert outcome(OutcomeUnknownError()) is Outcome.UNKNOWN
    assert outcome_of(TimeoutError()) is Outcome.UNKNOWN


# ---------------------------------------------------------------------- threads

THREAD = "thread"


class Threads:
    """A recorded history of one thread."""

    def __init__(self) -> None:
        self.findings = Findings()
        self.history = ThreadHistory(self.findings)
        self.parent: str | None = None

    def put(self, checkpoint: str, outcome: Outcome = Outcome.DONE) -> None:
        step = self.history.begin_put(THREAD, checkpoint, self.parent, f"content {checkpoint}")
        self.history.end(THREAD, step, outcome)
        self.parent = checkpoint

    def writes(self, checkpoint: str, task: str, outcome: Outcome = Outcome.DONE) -> None:
        step = self.history.begin_writes(THREAD, checkpoint, task, ["a", "b"])
        self.history.end(THREAD, step, outcome)

    def delete(self, outcome: Outcome = Outcome.DONE) -> None:
        self.history.end(THREAD, self.history.begin_delete(THREAD), outcome)
        self.parent = None

    def read(self, *rows: ReadCheckpoint, latest: bool = False) -> None:
        self.history.end_read(self.history.begin_read(THREAD, latest=latest), rows)

    @property
    def kinds(self) -> list[str]:
        return [finding.kind for finding in self.findings.list]


def row(checkpoint: str, parent: str | None = None, *tasks: str) -> ReadCheckpoint:
    writes = tuple((task, content) for task in tasks for content in ("a", "b"))
    return ReadCheckpoint(checkpoint, parent, f"content {checkpoint}", writes)


@pytest.fixture
def threads() -> Threads:
    """1 and 2 are stored, 2 with pending writes."""
    threads = Threads()
    threads.put("1")
    threads.put("2")
    threads.writes("2", "task")
    return threads


def test_what_a_correct_thread_answers_is_accepted(threads: Threads) -> None:
    threads.read(row("2", "1", "task"), row("1"))
    threads.read(row("2", "1", "task"), latest=True)
    threads.put("3", Outcome.UNKNOWN)
    threads.writes("3", "other")  # waits for its checkpoint, which may never have come
    threads.read(row("2", "1", "task"), row("1"))
    threads.read(row("3", "2", "other"), row("2", "1", "task"), row("1"))
    threads.delete(Outcome.UNKNOWN)
    threads.read(row("3", "2", "other"), row("2", "1", "task"), row("1"))
    threads.put("4")
    threads.read(row("4"))  # so the deletion has happened
    threads.delete()
    threads.read()
    threads.read(latest=True)
    assert threads.kinds == []


def test_many_deletions_forget_nothing_that_matters(threads: Threads) -> None:
    for number in range(5, 20):
        threads.delete()
        threads.put(f"{number:02}")
        threads.read(row(f"{number:02}"))
    assert threads.kinds == []
    threads.read()
    assert threads.kinds == ["lost"]


@pytest.mark.parametrize(
    ("rows", "kind"),
    [
        ([row("2", "1", "task")], "lost"),
        ([row("1")], "lost"),
        ([], "lost"),
        ([row("2", "1"), row("1")], "lost"),
        ([row("1"), row("2", "1", "task")], "reordered"),
        ([row("2", "1", "task"), row("2", "1", "task"), row("1")], "duplicate"),
        ([row("2", "1", "task", "task"), row("1")], "duplicate"),
        ([row("3", "2"), row("2", "1", "task"), row("1")], "phantom"),
        ([row("2", "1", "task", "nobody"), row("1")], "phantom"),
        ([row("2", None, "task"), row("1")], "damaged"),
        ([ReadCheckpoint("2", "1", "content 1"), row("1")], "damaged"),
        ([ReadCheckpoint("2", "1", "content 2", (("task", "a"),)), row("1")], "damaged"),
    ],
)
def test_broken_threads_are_found(threads: Threads, rows: list[ReadCheckpoint], kind: str) -> None:
    threads.read(*rows)
    assert threads.kinds == [kind]


def test_an_old_checkpoint_as_the_latest_is_found(threads: Threads) -> None:
    threads.read(row("1"), latest=True)
    threads.read(latest=True)
    assert threads.kinds == ["lost", "lost"]


@pytest.mark.parametrize(
    "change",
    [lambda t: t.delete(), lambda t: (t.delete(Outcome.UNKNOWN), t.put("3"), t.read(row("3")))],
    ids=["acknowledged", "seen"],
)
def test_what_comes_back_after_its_deletion_is_found(
    threads: Threads, change: Callable[[Threads], None]
) -> None:
    change(threads)
    threads.read(row("2", "1", "task"), row("1"))
    assert threads.kinds == ["phantom"]


def test_half_a_deletion_is_found(threads: Threads) -> None:
    threads.delete(Outcome.UNKNOWN)
    threads.read(row("2", "1", "task"))
    assert threads.kinds == ["lost"]


def test_refused_and_vanished_checkpoints_are_found(threads: Threads) -> None:
    threads.put("3", Outcome.FAILED)
    threads.read(row("3", "2"), row("2", "1", "task"), row("1"))
    threads.put("4", Outcome.UNKNOWN)
    threads.read(row("4", "3"), row("2", "1", "task"), row("1"))
    threads.read(row("2", "1", "task"), row("1"))
    assert threads.kinds == ["phantom", "stale"]


# ---------------------------------------------------------------------- seeded histories


def simulate(seed: int, breakage: str | None) -> Findings:
    """Writers and readers of a register that is correct, but for one breakage half-way."""
    rng = random.Random(seed)
    items = Items()
    stored: list[int | None] = [None]
    for step in range(60):
        if step == 30:
            while stored[-1] is None or stored[-2] is None:
                stored.append(items.write())
            items.read(stored[-1])
            match breakage:
                case "lost":
                    items.write()  # acknowledged, and stored nowhere
                case "stale":
                    stored.pop()
                case "phantom":
                    stored.append(stored[-1] + 100)
                case "duplicate":
                    items.read(stored[-1], "carried out again")
                    return items.findings
                case "reordered":
                    first, second = items.write(), items.write()
                    stored += [second, first]
            items.read(stored[-1])
            return items.findings
        outcome = rng.choice([Outcome.DONE] * 4 + [Outcome.FAILED, Outcome.UNKNOWN])
        delete = rng.random() < 0.2
        if rng.random() < 0.5:
            number = items.write(outcome, delete=delete)
            if outcome is Outcome.DONE or (outcome is Outcome.UNKNOWN and rng.random() < 0.5):
                stored.append(None if delete else number)
        else:
            items.read(stored[-1])
    raise AssertionError("not reached")


@pytest.mark.parametrize("seed", seeds(20, quick=5))
def test_seeded_histories_are_judged_rightly(seed: int) -> None:
    assert simulate(seed, None).list == []
    for breakage in ("lost", "stale", "phantom", "duplicate", "reordered"):
        (found,) = simulate(seed, breakage).list
        # What was both acknowledged and read before, and is gone, is called lost.
        also = {"stale": "lost", "reordered": "lost"}.get(breakage, breakage)
        assert found.kind in (breakage, also), found
