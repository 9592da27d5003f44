"""The cost of turns of one long conversation, early and late."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, NamedTuple

from langchain_core.runnables import RunnableConfig

from flowgentic_actors.bench.contenders import REFERENCE
from flowgentic_actors.bench.measuring import Show, set_heap_aside
from flowgentic_actors.bench.results import Figure, Report, percentile, summary
from flowgentic_actors.bench.subjects import Message, Raw, Subject, Written, messages, text
from flowgentic_actors.bench.workloads import expect, forget, new_thread

GROUP: Final = "conversation"

_PER_TURN: Final = 4  # messages: one of the user's, one of each node


class Length(NamedTuple):
    """The length of the conversations.

    Attributes:
        turns: Runs of the graph on the thread.
        edge: Turns at the beginning, and at the end, that are compared.
        counted: Turns after each edge whose bytes are counted.
        seconds: Time that one contender's turns may take before it is given up.
    """

    turns: int
    edge: int
    counted: int
    seconds: float


FULL: Final = Length(200, 20, 5, 60.0)
QUICK: Final = Length(20, 5, 2, 5.0)


class _Talk:
    """The conversation of one contender."""

    def __init__(self, memory: Subject, kind: str, limit: float) -> None:
        self.memory = memory
        self.written: list[float] = []
        self.times: list[float] = []
        self._graph: Any = memory.graph if kind == "list" else memory.delta
        self._thread: RunnableConfig = new_thread()
        self._limit = limit
        self._turns = 0
        self._before = 0

    async def warm_up(self) -> None:
        """Run one turn on a thread of its own."""
        thread = new_thread()
        await self._graph.ainvoke({"messages": messages(1, 100)}, thread)
        await forget(self.memory.saver, [thread])

    async def turn(self) -> None:
        """Run a turn, and time it."""
        question = self._question()
        start = time.perf_counter()
        await self._graph.ainvoke(question, self._thread)
        self.times.append(time.perf_counter() - start)
        self._turns += 1
        if sum(self.times) > self._limit:
            raise TimeoutError(f"given up: {self._turns} turns took {self._limit:g} s")

    async def turns(self, count: int) -> None:
        """Run some turns in a row, and count the bytes that they wrote, where possible."""
        await self.look(late=False)
        for _ in range(count):
            await self._graph.ainvoke(self._question(), self._thread)
            self._turns += 1
        await self.tell(count, late=False)

    def _question(self) -> dict[str, list[Message]]:
        (question,) = messages(1, 100)
        return {"messages": [{**question, "content": text(100, 1_000 * self._turns)}]}

    async def look(self, *, late: bool) -> None:
        """Note the bytes written so far."""
        if (probe := self._probe(late=late)) is not None:
            self._before = await probe.total()

    async def tell(self, count: int, *, late: bool) -> None:
        """Note the bytes that some turns wrote."""
        if (probe := self._probe(late=late)) is not None:
            self.written.append((await probe.total() - self._before) / count)

    def _probe(self, *, late: bool) -> Written | None:
        probe = self.memory.written
        return probe if probe is not None and (probe.delay > 0) == late else None

    async def end(self) -> None:
        """Check that the whole conversation is stored."""
        found = (await self._graph.aget_state(self._thread)).values.get("messages", [])
        expect(len(found), _PER_TURN * self._turns, "the number of the thread's messages")

    async def forget(self) -> None:
        """Delete the thread."""
        await forget(self.memory.saver, [self._thread])


async def converse(
    report: Report, subjects: Mapping[str, Subject | Raw], length: Length, show: Show
) -> None:
    """Hold the conversations, turn by turn over all contenders."""
    for number, kind in enumerate(("list", "delta")):
        talks = {
            who: _Talk(memory, kind, length.seconds)
            for who, memory in subjects.items()
            if isinstance(memory, Subject)
        }
        every = dict(talks)
        try:
            await _converse(report, talks, kind, length, _half(show, number))
        finally:
            for who, talk in every.items():
                try:
                    await talk.forget()
                except Exception as error:  # noqa: BLE001 - peers' errors have no common root
                    report.fail(f"conversation ({kind})", who, error)
        report.figures += _figures(talks, kind, length)
    told: dict[str, list[str]] = {}
    for who, memory in subjects.items():
        if isinstance(memory, Subject) and memory.written is not None:
            told.setdefault(memory.written.what, []).append(who)
    counted = "; ".join(f"{', '.join(names)}: bytes {what}" for what, names in told.items())
    report.notes.append(f"Written a turn is, of {counted}.")


def _half(show: Show, number: int) -> Show:
    return lambda part, what: show((number + part) / 2, what)


async def _converse(
    report: Report, talks: dict[str, _Talk], kind: str, length: Length, show: Show
) -> None:
    async def each(do: Callable[[_Talk], Awaitable[None]]) -> None:
        for who, talk in list(talks.items()):
            try:
                await do(talk)
            except Exception as error:  # noqa: BLE001 - peers' errors have no common root
                report.fail(f"conversation ({kind})", who, error)
                del talks[who]

    async def count_bytes() -> None:
        # One after the other: two contenders may share a server, or this process.
        probes = [talk.memory.written for talk in talks.values()]
        delay = max((probe.delay for probe in probes if probe is not None), default=0.0)
        await asyncio.sleep(delay)
        await each(lambda talk: talk.look(late=True))
        await each(lambda talk: talk.turns(length.counted))
        await asyncio.sleep(delay)
        await each(lambda talk: talk.tell(length.counted, late=True))

    await each(_Talk.warm_up)
    set_heap_aside()
    for turn in range(length.turns):
        show(turn / length.turns, f"conversation ({kind})")
        if turn == length.edge:
            await count_bytes()
        await each(_Talk.turn)
    await count_bytes()
    await each(_Talk.end)


def _figures(talks: Mapping[str, _Talk], kind: str, length: Length) -> list[Figure]:
    last = length.turns - length.edge
    edges = {
        f"turns 1 to {length.edge}": slice(0, length.edge),
        f"turns {last + 1} to {length.turns}": slice(last, None),
    }
    found = []
    for name, edge in edges.items():
        usual = talks[REFERENCE].times[edge] if REFERENCE in talks else []
        for who, talk in talks.items():
            median, p99 = summary(talk.times[edge])
            found.append(
                Figure(
                    group=GROUP,
                    workload=f"a turn ({kind}), {name}",
                    contender=who,
                    unit="s",
                    median=median,
                    p99=p99,
                    ratio=median / percentile(usual, 0.5) if usual else None,
                    against=REFERENCE,
                    samples=length.edge,
                )
            )
    for number, at in enumerate((length.edge, length.turns)):
        for who, talk in talks.items():
            if len(talk.written) > number:
                found.append(
                    Figure(
                        group=GROUP,
                        workload=f"written a turn ({kind}), at turn {at}",
                        contender=who,
                        unit="B",
                        median=talk.written[number],
                        p99=None,
                        ratio=None,
                        against="",
                        samples=length.counted,
                    )
                )
    return found
