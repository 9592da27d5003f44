"""Measurement of contenders in turns."""

from __future__ import annotations

import asyncio
import gc
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final, NamedTuple, TypeAlias

from flowgentic_actors.bench.contenders import REFERENCE, Contender
from flowgentic_actors.bench.results import Report, Samples, figures
from flowgentic_actors.bench.subjects import Raw, Subject
from flowgentic_actors.bench.workloads import Workload, WrongAnswerError

TURN_TIMEOUT: Final = 120.0
"""Seconds after which a turn counts as hung."""

_FAIR = 2.0  # times its part of the whole time that a slow contender may take for a workload
_FEWEST = 3  # samples that every contender gets in any case
_MOST_FAILED = 3  # workloads, after which a contender takes no further part

Show: TypeAlias = Callable[[float, str], None]
"""Told between two turns which part is done, and what comes next."""


class Effort(NamedTuple):
    """The effort of a measurement.

    Attributes:
        rounds: Rounds after the one that warms up.
        seconds: No further round begins after this time.
        turn: Seconds after which no further operation of a turn begins.
    """

    rounds: int
    seconds: float
    turn: float = 0.5


async def measure(
    report: Report,
    subjects: Mapping[str, Subject | Raw],
    workloads: Sequence[Workload],
    effort: Effort,
    show: Show = lambda _done, _what: None,
) -> None:
    """Let the contenders take turns, and add the results to the report.

    What is slow gets fewer samples than what is quick, and never less than a few.

    Args:
        report: To be filled in.
        subjects: Who takes part.
        workloads: What is measured.
        effort: For how long.
        show: Told how far it is.
    """
    course = Course(report, subjects, workloads, effort)
    try:
        await _let_all_take_turns(course, list(subjects), workloads, effort, show)
    finally:
        gc.unfreeze()
        report.rounds = course.rounds
        report.figures += figures(course.samples, workloads, REFERENCE)


async def _let_all_take_turns(
    course: Course,
    names: list[str],
    workloads: Sequence[Workload],
    effort: Effort,
    show: Show,
) -> None:
    start = time.perf_counter()
    for number in range(effort.rounds + 1):
        if number > 1 and time.perf_counter() - start > effort.seconds:
            break
        order = names if number % 2 else names[::-1]  # so that none always comes first
        for index, workload in enumerate(workloads):
            show(_part(number, index / len(workloads), start, effort), workload.name)
            for name in order:
                await course.turn(workload, name, warm=number > 0)
        course.rounds = number


class Course:
    """The progress of contenders and workloads."""

    def __init__(
        self,
        report: Report,
        subjects: Mapping[str, Subject | Raw],
        workloads: Sequence[Workload],
        effort: Effort,
    ) -> None:
        self.samples: Samples = {
            (what.name, who): []
            for what in workloads
            for who, memory in subjects.items()
            if isinstance(memory, Subject) or what.raw is not None
        }
        self.rounds = 0
        self._report = report
        self._subjects = subjects
        self._longest = effort.turn
        self._fair = _FAIR * effort.seconds / max(1, len(self.samples))
        self._spent = dict.fromkeys(self.samples, 0.0)
        self._failures: Counter[str] = Counter()

    async def turn(self, workload: Workload, name: str, *, warm: bool) -> None:
        """Run a workload once on a contender, unless it is done; note the times if warm."""
        cell = (workload.name, name)
        if not self._is_due(cell):
            return
        began = time.perf_counter()
        try:
            async with asyncio.timeout(TURN_TIMEOUT):
                few = workload if warm else workload._replace(samples=1)
                times = await take_turn(few, self._subjects[name], self._longest)
        except Exception as error:  # noqa: BLE001 - peers' errors have no common root
            self._report.fail(workload.name, name, error)
            del self.samples[cell]  # what one wrong answer was among is worth nothing
            # One that hangs, or that is gone, must not hold up the others for long.
            self._failures[name] += not isinstance(error, WrongAnswerError)
            if self._failures[name] == _MOST_FAILED:
                self._report.failed[f"everything further: {name}"] = (
                    f"it took no further part after {_MOST_FAILED} failures"
                )
            return
        if warm:
            self.samples[cell] += times
            self._spent[cell] += time.perf_counter() - began

    def _is_due(self, cell: tuple[str, str]) -> bool:
        if cell not in self.samples or self._failures[cell[1]] >= _MOST_FAILED:
            return False
        return len(self.samples[cell]) < _FEWEST or self._spent[cell] <= self._fair


def _part(number: int, part: float, start: float, effort: Effort) -> float:
    by_time = (time.perf_counter() - start) / effort.seconds if effort.seconds else 0.0
    return min(1.0, max(by_time, (number + part) / (effort.rounds + 1)))


@asynccontextmanager
async def opened(
    report: Report, contenders: Mapping[str, Contender], show: Show = lambda _done, _what: None
) -> AsyncIterator[dict[str, Subject | Raw]]:
    """Open the contenders; those that cannot be opened are noted in the report."""
    async with AsyncExitStack() as stack:
        subjects: dict[str, Subject | Raw] = {}
        for number, (name, contender) in enumerate(contenders.items()):
            show(number / len(contenders), f"opening {name}")
            start = time.perf_counter()
            try:
                memory = await stack.enter_async_context(contender.open())
            except Exception as error:  # noqa: BLE001 - peers' errors have no common root
                report.left_out[name] = f"it could not be opened: {error}"
                continue
            subjects[name] = memory
            report.opened[name] = time.perf_counter() - start
            report.durability[name] = memory.durability
        show(1.0, "")
        yield subjects


def set_heap_aside() -> None:
    """Freeze the heap, so that the garbage collector only sees what a turn makes."""
    gc.collect()
    gc.freeze()


async def take_turn(workload: Workload, memory: Subject | Raw, longest: float) -> list[float]:
    """Time some operations, one after the other; none begins after `longest` seconds."""
    set_heap_aside()  # no contender pays for the garbage of another, or for what was there before
    if not isinstance(memory, Subject):
        assert workload.raw is not None
        kind, size = workload.raw
        return (await memory.times(kind, size, workload.samples + 1))[1:]
    times: list[float] = []
    async with workload.turn(memory) as operations:
        if workload.per_sample == 1:  # a sample of many warms up by itself
            await next(operations)  # the caches still hold what the last contender needed
        began = time.perf_counter()
        while len(times) < workload.samples:
            operation = next(operations)
            start = time.perf_counter()
            await operation
            end = time.perf_counter()
            times.append(end - start)
            if end - began > longest:
                break
    return times
