"""The client of a shard in this process."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Final

from flowgentic_actors.actors.actor import SLOW
from flowgentic_actors.actors.daemon_threads import on_daemon_thread
from flowgentic_actors.cluster.client.local_memory import LocalMemory
from flowgentic_actors.cluster.client.memory_client import ShardRequest
from flowgentic_actors.cluster.protocol.shared_settings import SharedSettings
from flowgentic_actors.cluster.protocol.slot_table import even_table
from flowgentic_actors.cluster.protocol.status import (
    ActorStatus,
    ClusterEvent,
    ClusterStatus,
    blocked,
    known_stats,
)
from flowgentic_actors.cluster.shard_limits import shard_settings
from flowgentic_actors.config import MemoryConfig
from flowgentic_actors.deadlines import Patience, tell_when_blocked, timeout
from flowgentic_actors.engine.commands import PAGED, Command
from flowgentic_actors.engine.replies import Reply
from flowgentic_actors.engine.slots import SLOTS
from flowgentic_actors.errors import (
    ClusterClosedError,
    ClusterClosingError,
    FlowgenticError,
    LocalClusterError,
    OutcomeUnknownError,
)
from flowgentic_actors.event_kinds import EventKind
from flowgentic_actors.shard.embedded.volatile import VolatileShard
from flowgentic_actors.shard.slow_requests import SlowRequests
from flowgentic_actors.storage.group_commit_threads import Blocking, Promise
from flowgentic_actors.wire.sockets import let_go_after_fork

_NOT_PICKLED = (
    "a local cluster's memory is in this process alone: what holds it (a saver, store, cache, or "
    "graph) cannot be pickled or deep-copied. Within this process use the object itself; to reach "
    "the memory from another one open it with mode='distributed', send memory.handle and attach"
)
_PAGED: Final = frozenset(PAGED)
_LONG: Final = 0.002  # seconds of a page after which others get their turn
_CLOSE_MARGIN = 30.0  # the parts of closing have deadlines of their own

logger = logging.getLogger(__name__)


def _no_cancellation(answer: Reply | BaseException) -> Reply | Exception:
    if isinstance(answer, BaseException) and not isinstance(answer, FlowgenticError):
        raise answer
    return answer


class InlineClient:
    """One shard in this process, called directly from any thread under a lock.

    Args:
        config: The configuration of the cluster.
        name: Its name, for status.
        memory: The memory on disk, open, which this client closes; None for none.

    Attributes:
        direct: Whether `ask_sync` never waits: then `ask` need not be awaited.
    """

    def __init__(self, config: MemoryConfig, name: str, memory: LocalMemory | None = None) -> None:
        self.table = even_table(1, config.namespace_depth)
        self.spawner = "inline"
        self.index = SharedSettings.of(config).index if memory is None else memory.index
        self.allowed_types = config.allowed_types
        self._name = name
        self._shard = VolatileShard(shard_settings(config, 1))
        self._memory = memory
        self._timeout = config.request_timeout
        self._close_timeout = config.close_timeout
        self._requests = 0
        self.direct = memory is None
        self._usable = True  # neither ended, closed nor forked
        self._opened = time.time()
        self._events: list[ClusterEvent] = []
        self._slow = SlowRequests(lambda kind, detail: self.event(kind, detail, "shard-0"))
        self._took = 0.0  # the last page, seconds; other threads' pages count as well
        self._unusable: str | None = None
        self._end_reason: str | None = None
        let_go_after_fork(self)
        tell_when_blocked(self)
        self.event(EventKind.CLUSTER_OPENED, "in this process")
        if memory is not None:
            for kind, detail in memory.findings:
                self.event(kind, detail)
            memory.on_lost = lambda reason: self.event(EventKind.MEMORY_LOST, reason)

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError(_NOT_PICKLED)

    def shard_of(self, command: Command) -> int:  # noqa: ARG002 - there is one
        """The shard of the one key that a command is about, always 0."""
        return 0

    async def ask(self, command: Command) -> Reply:
        """Have the shard carry out a command; see `MemoryClient.ask`."""
        answer: Reply | Promise[Reply]
        if self._memory is None:
            answer = self.ask_sync(command)
        else:
            answer = self._begin(self._memory, command, asyncio.get_running_loop())
            if isinstance(answer, asyncio.Future):
                return await self._awaited(answer)
            assert not isinstance(answer, Blocking)
        if self._took > _LONG and type(command) in _PAGED:
            await asyncio.sleep(0)  # others get their turn before the next page
        return answer

    async def _awaited(self, answer: asyncio.Future[Reply]) -> Reply:
        deadline = timeout(self._timeout)
        try:
            async with deadline:
                return await answer
        except TimeoutError as error:
            if not deadline.expired():
                raise  # not this deadline's: a signal handler's, for example
            raise self._late() from error

    async def ask_each(self, asks: Sequence[ShardRequest]) -> list[Reply | Exception]:
        """Have the shard carry out several commands; see `MemoryClient.ask_each`."""
        if self._memory is not None:
            calls = (self.ask(command) for _, command in asks)
            waited = await asyncio.gather(*calls, return_exceptions=True)
            return [_no_cancellation(answer) for answer in waited]
        if not any(type(command) in _PAGED for _, command in asks):
            return self.ask_each_sync(asks)
        answers: list[Reply | Exception] = []
        for asked in asks:
            answers += self.ask_each_sync([asked])
            if self._took > _LONG:
                await asyncio.sleep(0)
        return answers

    def ask_each_sync(self, asks: Sequence[ShardRequest]) -> list[Reply | Exception]:
        """Have the shard carry out commands; see `MemoryClient.ask_each_sync`."""
        answers: list[Reply | Exception] = []
        for _, command in asks:
            try:
                answers.append(self.ask_sync(command))
            except FlowgenticError as error:
                answers.append(error)
        return answers

    def ask_sync(self, command: Command) -> Reply:
        """Have the shard carry out a command; see `MemoryClient.ask_sync`."""
        if self._usable and self.direct and type(command) not in _PAGED:  # nearly always
            self._requests += 1
            return self._shard.ask(command)
        if self._memory is not None:
            answer = self._begin(self._memory, command, None)
            if not isinstance(answer, Blocking):
                assert not isinstance(answer, asyncio.Future)
                return answer
            patience = Patience(self._timeout)
            while patience.left > 0:
                limit = patience.slice()
                if answer.wait(limit):
                    return answer.result()
                patience.lapse(limit)
            raise self._late()
        self._check_usable()
        self._requests += 1
        begun = time.monotonic()
        reply = self._shard.ask(command)
        self._took = time.monotonic() - begun
        if self._took >= SLOW:
            self._slow.note(command, self._took)
        return reply

    @property
    def n_nodes(self) -> int:
        """The number of nodes, always 1: the shard is in this process."""
        return 1

    def _begin(
        self, memory: LocalMemory, command: Command, loop: asyncio.AbstractEventLoop | None
    ) -> Reply | Promise[Reply]:
        if not self._usable:
            self._check_usable()
        self._requests += 1
        if type(command) not in _PAGED:
            return memory.ask(command, loop)
        begun = time.monotonic()
        answer = memory.ask(command, loop)
        self._took = time.monotonic() - begun
        if self._took >= SLOW:
            self._slow.note(command, self._took)
        return answer

    def _late(self) -> OutcomeUnknownError:
        return OutcomeUnknownError(
            f"the journal was not written within {self._timeout:g} s (setting: request_timeout): "
            "its file system does not answer"
        )

    async def status(self) -> ClusterStatus:
        """The cluster's status."""
        self._check_open()
        size = self._shard.stats() if self._memory is None else self._memory.stats()
        now = time.time()
        actor = ActorStatus(
            name="shard-0",
            shard=0,
            node=os.uname().nodename,
            pid=os.getpid(),
            epoch=1,
            state="running",
            as_of=now,
            last_heard=now,
            requests=self._requests,
            slots=SLOTS,
            **known_stats(size),
        )
        return ClusterStatus(
            name=self._name,
            mode="local",
            spawner=self.spawner,
            host_pid=os.getpid(),
            uptime=time.time() - self._opened,
            folder=str(self._memory.path) if self._memory is not None else "",
            actors=(actor,),
        )

    async def events(self, start: int) -> AsyncGenerator[ClusterEvent, None]:
        """Iterate over events from a number on, as they happen."""
        while True:
            self._check_open()
            for event in self._events[start:]:
                yield event
                start = event.number + 1
            await asyncio.sleep(0.1)

    async def recent_events(self) -> list[ClusterEvent]:
        """The past events."""
        self._check_open()
        return list(self._events)

    def event(self, kind: EventKind, detail: str, actor: str = "") -> None:
        """Add an event."""
        number, now = len(self._events), time.time()
        self._events.append(
            ClusterEvent(number=number, time=now, kind=kind, actor=actor, detail=detail)
        )

    def loop_blocked(self, seconds: float) -> None:
        """Add the event that an event loop of this program was blocked."""
        if self._unusable is None:
            self.event(EventKind.LOOP_BLOCKED, blocked(seconds))

    def end(self, reason: str) -> None:
        """Refuse further commands; callable from any thread."""
        self._usable = False
        if self._end_reason is None:
            self._end_reason = reason
            self.event(EventKind.CLUSTER_CLOSING, reason)

    async def close(self) -> None:
        """Refuse further calls, and seal the memory on disk."""
        self._usable = False
        forked, self._unusable = self._unusable == "forked", "closed"
        self._shard.close()
        if self._memory is not None and not forked:
            orderly = await on_daemon_thread(
                self._close_timeout + _CLOSE_MARGIN, self._memory.close
            )
            if not orderly:
                logger.warning("the memory in %s was not closed in order", self._memory.path)

    def close_now(self, reason: str) -> None:
        """Refuse further calls and seal the memory on disk. Blocks; callable from any thread."""
        self.end(reason)
        if self._memory is not None:
            self._memory.close()

    def after_fork(self) -> None:
        """Refuse calls in a forked child: its copy of the memory is seen by no other process."""
        self._usable = False
        self._unusable = self._unusable or "forked"
        self._shard.after_fork()
        if self._memory is not None:
            self._memory.after_fork()

    def _check_usable(self) -> None:
        self._check_open()
        if self._end_reason is not None:
            raise ClusterClosingError(f"the cluster has ended: {self._end_reason}")

    def _check_open(self) -> None:
        if self._unusable is None:
            return
        if self._unusable == "closed":
            raise ClusterClosedError("this cluster was closed: use it inside its `async with`")
        raise LocalClusterError(
            "this process is a fork of the one that a local cluster lives in, and would write into "
            "a copy that is lost: open the cluster with mode='distributed' to share it"
        )
