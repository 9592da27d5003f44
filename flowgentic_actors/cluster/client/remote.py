"""The client that reaches memory actors over sockets."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Collection, Sequence
from functools import partial

import msgspec

from flowgentic_actors.actors.ref import ActorRef
from flowgentic_actors.cluster.client.cluster_watch import ClusterWatch, Watched
from flowgentic_actors.cluster.client.host_client import HostClient, describe
from flowgentic_actors.cluster.client.memory_client import ShardRequest
from flowgentic_actors.cluster.client.notifier import Notifier
from flowgentic_actors.cluster.client.place_watcher import EventLogger, ShardMapWatcher
from flowgentic_actors.cluster.client.routing import (
    failed,
    outdated,
    shard_of,
    shard_of_key,
    worth_asking_again,
)
from flowgentic_actors.cluster.protocol.handle import Descriptor
from flowgentic_actors.cluster.protocol.host import Description, ShardLocation, ShardMap
from flowgentic_actors.cluster.protocol.status import ClusterEvent, ClusterStatus
from flowgentic_actors.deadlines import Deadline, Patience, tell_when_blocked
from flowgentic_actors.engine.commands import Command
from flowgentic_actors.engine.limits import UNFIT, encode, refusal
from flowgentic_actors.engine.replies import Reply
from flowgentic_actors.environment import machine
from flowgentic_actors.errors import (
    ClusterClosedError,
    FlowgenticError,
    OutcomeUnknownError,
    RequestError,
    SlotsMovedError,
)
from flowgentic_actors.wire.addresses import Destination, Unreachable
from flowgentic_actors.wire.async_connection import AsyncConnection
from flowgentic_actors.wire.awake import time_awake
from flowgentic_actors.wire.blocking_connection import BlockingCall
from flowgentic_actors.wire.session import Pending
from flowgentic_actors.wire.sockets import let_go_after_fork

logger = logging.getLogger(__name__)


def _encode(command: Command) -> bytes:
    try:
        return encode(command)
    except UNFIT as error:
        raise refusal(command, error) from error


_replies: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)
_decode = _replies.decode


NOT_PICKLED = (
    "a live connection to the memory, and what holds one (a saver, store, cache, graph), cannot be "
    "pickled or deep-copied: within this process use the object itself; for another one send "
    "memory.handle and attach there, with MemoryCluster.attach(handle)"
)
"""Why a client does not travel."""
_MOVING = 0.05  # a newer table is waited for so long: a move may be given up, too


class RemoteClient:
    """Sends commands to actors over their sockets.

    Args:
        descriptor: The cluster's descriptor.
        description: How to reach its actors.
        timeout: Deadline of each call, seconds.
        pool: Blocking connections to each actor.
        watched: How to notice that the cluster has ended; None where its owner says so.
        logs: Whether to write warnings of the cluster's events into this program's log.
        allowed_types: As in `MemoryConfig`.
        stay_awake: As in `MemoryConfig`.
    """

    def __init__(
        self,
        descriptor: Descriptor,
        description: Description,
        timeout: float,
        pool: int,
        watched: Watched | None = None,
        *,
        logs: bool = False,
        allowed_types: Sequence[tuple[str, str]] | None = None,
        stay_awake: float = 0.0,
    ) -> None:
        self.table = description.shard_map.table
        self.spawner = description.spawner
        self.index = description.shared.index if description.shared is not None else None
        self.allowed_types = allowed_types
        self._descriptor = descriptor
        self._shard_map = description.shard_map
        self._changes = description.changes
        self._watched = watched
        self._machine = machine()
        self._stay_awake = time_awake(stay_awake)
        self._timeout = timeout
        self._closed = False
        self._forked = False
        self._pool = pool
        self._notifier = Notifier()
        self._host = HostClient(descriptor, self._timeout)
        self._actors: list[ActorRef] = []
        self._logs = logs
        self._first = 0  # of the actors that there are; those before were another cluster's
        self._watches: list[ShardMapWatcher | EventLogger] = []
        self._presence: ClusterWatch | None = None
        self._take_places(self._shard_map)
        tell_when_blocked(self)
        if self._changes or self._logs or watched is not None:
            self._begin_to_watch()
            let_go_after_fork(self)

    @property
    def n_nodes(self) -> int:
        """The number of nodes that have shards."""
        return len(
            {
                location.machine
                for location in self._shard_map.locations
                if not location.lost and not location.retired
            }
        )

    def _begin_to_watch(self) -> None:
        self._watch_host()
        if self._watched is not None:
            self._presence = ClusterWatch(
                self._descriptor,
                self._watched,
                on_closed=self._end,
                on_opened=self._go_on_with,
            )

    def _watch_host(self) -> None:
        told = self._descriptor
        host = told.address, told.secret, told.max_message_bytes
        self._watches = []
        if self._changes:
            version = self._shard_map.version
            self._watches.append(
                ShardMapWatcher(*host, version=version, on_places=self._take_places)
            )
        if self._logs:
            self._watches.append(EventLogger(*host, told.name))

    def _stop_watching_host(self) -> None:
        for watch in self._watches:
            watch.close()

    def _end(self, reason: str) -> None:
        """Fail all pending and later calls: the cluster has ended. Callable from any thread."""
        self._stop_watching_host()
        for ref in [self._host.ref, *self._actors[self._first :]]:
            ref.move(Unreachable(reason, closed=True))

    def _go_on_with(self, descriptor: Descriptor) -> bool:
        """Switch to another cluster; callable from any thread. Blocks.

        Its shards get new numbers: a call by the old table is answered that its slots have moved,
        and is routed by the new one.

        Returns:
            Whether it answers.
        """
        try:
            description = describe(descriptor, self._timeout)
        except RequestError as error:
            logger.info("the cluster %s does not answer yet: %s", descriptor.name, error)
            return False
        before = self._actors[self._first :]
        self._descriptor, self._changes = descriptor, description.changes
        self.spawner = description.spawner
        self._host, self._first = HostClient(descriptor, self._timeout), len(self._actors)
        self._take_places(description.shard_map)
        for ref in before:
            ref.move(Unreachable("its cluster was closed, and opened again", moved=True))
        self._stop_watching_host()
        self._watch_host()
        if self._closed:
            self._stop_watching_host()
        return True

    def _take_places(self, shard_map: ShardMap) -> None:
        """Switch to a newer shard map; callable from any thread."""
        for shard, location in enumerate(shard_map.locations, self._first):
            destination = self._destination(shard_map, location)
            if shard == len(self._actors):
                self._actors.append(self._ref(location.name, destination or ""))
            elif destination is not None:
                self._actors[shard].move(destination)
        # A shard's number is known only once it can be asked; and who is forked in between hears of
        # these places once more.
        self.table = shard_map.table.shifted(self._first)
        self._shard_map = shard_map
        self._notifier.tell()

    def _destination(self, shard_map: ShardMap, location: ShardLocation) -> Destination | None:
        if shard_map.closing:
            return Unreachable(
                shard_map.closing, closing=not shard_map.closed, closed=shard_map.closed
            )
        if location.retired:
            return Unreachable("its slots are other shards' now", moved=True)
        if location.lost:
            return Unreachable(location.lost)
        return shard_map.route(location, self._machine)

    def _ref(self, name: str, destination: Destination) -> ActorRef:
        secret, limit = self._descriptor.secret, self._descriptor.max_message_bytes
        return ActorRef(
            name,
            destination,
            secret,
            limit,
            self._pool,
            exactly=self._changes,
            stay_awake=self._stay_awake,
        )

    def after_fork(self) -> None:
        """Drop the watcher thread in a forked child; a new one is started when needed."""
        self._notifier.forget()
        if not self._closed:
            self._closed = self._forked = True

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError(NOT_PICKLED)

    def shard_of(self, command: Command) -> int:
        """The shard of the one key that a command is about."""
        return shard_of_key(self.table, command)

    async def ask(self, command: Command) -> Reply:
        """Have a command carried out; see `MemoryClient.ask`."""
        if self._closed:
            self._check_open()
        shard = shard_of_key(self.table, command)
        connection = self._actors[shard].connection()
        pending = connection.begin(_encode(command), self._timeout)
        try:
            return _decode(await pending.waiter)
        except asyncio.CancelledError:
            connection.give_up(pending)
            raise
        except (SlotsMovedError, OutcomeUnknownError) as error:
            answers: list[Reply | Exception] = [error]
        await self._follow([(shard, command)], answers)
        answer = answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def ask_each(self, asks: Sequence[ShardRequest]) -> list[Reply | Exception]:
        """Have shards carry out several commands; see `MemoryClient.ask_each`."""
        self._check_open()
        answers = await self._ask_each_once(asks, self._timeout)
        if any(isinstance(answer, Exception) for answer in answers):
            await self._follow(asks, answers)
        return answers

    async def _ask_each_once(
        self, asks: Sequence[ShardRequest], timeout: float
    ) -> list[Reply | Exception]:
        # No task for each: a batch of a thousand would spend more on those than on its requests.
        begun: list[tuple[AsyncConnection, Pending[asyncio.Future[msgspec.Raw]]] | Exception] = []
        for shard, command in asks:
            connection = self._actors[shard].connection()
            try:
                begun.append((connection, connection.begin(_encode(command), timeout)))
            except FlowgenticError as error:
                begun.append(error)
        answers: list[Reply | Exception] = []
        try:
            for one in begun:
                if isinstance(one, Exception):
                    answers.append(one)
                    continue
                try:
                    answers.append(_decode(await one[1].waiter))
                except FlowgenticError as error:
                    answers.append(error)
        except BaseException:
            for one in begun[len(answers) :]:
                if not isinstance(one, Exception):
                    one[0].give_up(one[1])
                    if one[1].waiter.done() and not one[1].waiter.cancelled():
                        one[1].waiter.exception()  # looked at, or asyncio would log it
            raise
        return answers

    async def _follow(self, asks: Sequence[ShardRequest], answers: list[Reply | Exception]) -> None:
        """Repeat the requests that `worth_asking_again` allows, at their slots' current shards.

        Args:
            asks: What was asked.
            answers: The answers to it. Those of what is asked again are replaced.
        """
        errors = [n for n, answer in enumerate(answers) if isinstance(answer, Exception)]
        again = {n: asks[n] for n in errors if worth_asking_again(asks[n][1], answers[n])}
        with Deadline(self._timeout) as deadline:
            while again and deadline.left > 0:
                worth_it = partial(self._any_outdated, list(again.values()))
                await self._notifier.wait(worth_it, min(deadline.left, _MOVING))
                self._check_open()
                again = {
                    number: (shard, command)
                    for number, (before, command) in again.items()
                    if (shard := self._shard_for(command, before, answers[number])) is not None
                }
                if (left := deadline.left) <= 0:
                    break
                found = await self._ask_each_once(list(again.values()), left)
                for number, answer in zip(list(again), found, strict=True):
                    answers[number] = answer
                    if not worth_asking_again(asks[number][1], answer):
                        del again[number]
        for number in errors:
            answer = answers[number]
            if isinstance(answer, Exception):
                answers[number] = self._failed(asks[number][1], answer, late=number in again)

    def _shard_for(self, command: Command, before: int, answer: object) -> int | None:
        """The shard to ask next; None when a request to several shards has to begin anew."""
        shard = shard_of(self.table, command)
        return before if shard is None and not isinstance(answer, SlotsMovedError) else shard

    def _failed(self, command: Command, error: Exception, *, late: bool) -> Exception:
        if late and isinstance(error, SlotsMovedError):
            return self._still_moving(error)
        return failed(command, error)

    def ask_sync(self, command: Command) -> Reply:
        """Have a command carried out, blocking; see `MemoryClient.ask_sync`."""
        if self._closed:
            self._check_open()
        shard = shard_of_key(self.table, command)
        try:
            return _decode(self._actors[shard].ask_sync(_encode(command), self._timeout))
        except (SlotsMovedError, OutcomeUnknownError) as error:
            refusal = error
        return self._ask_again_sync(shard, command, refusal)

    def _ask_again_sync(self, shard: int, command: Command, refusal: Exception) -> Reply:
        """Repeat a request, blocking; see `_follow`."""
        patience = Patience(self._timeout)
        while worth_asking_again(command, refusal):
            worth_it = partial(self._any_outdated, [(shard, command)])
            self._notifier.wait_sync(worth_it, min(patience.left, _MOVING))
            patience.look()
            self._check_open()
            where = self._shard_for(command, shard, refusal)
            if where is None:
                break
            if (left := patience.left) <= 0:
                raise self._failed(command, refusal, late=True)
            shard = where
            try:
                return _decode(self._actors[shard].ask_sync(_encode(command), left))
            except (SlotsMovedError, OutcomeUnknownError) as error:
                refusal = error
        raise failed(command, refusal)

    def ask_each_sync(self, asks: Sequence[ShardRequest]) -> list[Reply | Exception]:
        """Have shards carry out several commands, blocking; see `MemoryClient.ask_each_sync`."""
        self._check_open()
        answers: dict[int, Reply | Exception] = {}
        waiting: dict[int, deque[int]] = {}  # of each shard one is under way, so that all work
        for number, (shard, _) in enumerate(asks):
            waiting.setdefault(shard, deque()).append(number)
        under_way: dict[int, BlockingCall] = {}
        try:
            while waiting:
                for shard, numbers in waiting.items():
                    try:
                        body = _encode(asks[numbers[0]][1])
                        under_way[shard] = self._actors[shard].begin_sync(body, self._timeout)
                    except FlowgenticError as error:
                        answers[numbers[0]] = error
                for shard, numbers in list(waiting.items()):
                    number = numbers.popleft()
                    call = under_way.pop(shard, None)
                    if call is not None:
                        answers[number] = self._finish(call, *asks[number])
                    if not numbers:
                        del waiting[shard]
        finally:
            for call in under_way.values():
                call.give_up()
        return [answers[number] for number in range(len(asks))]

    def _finish(self, call: BlockingCall, shard: int, command: Command) -> Reply | Exception:
        try:
            try:
                return _decode(call.finish())
            except (SlotsMovedError, OutcomeUnknownError) as error:
                refusal = error
            return self._ask_again_sync(shard, command, refusal)
        except FlowgenticError as error:
            return error

    def _any_outdated(self, asks: Sequence[ShardRequest]) -> bool:
        table = self.table
        return any(outdated(table, shard, command) for shard, command in asks)

    def _still_moving(self, refusal: object) -> SlotsMovedError:
        return SlotsMovedError(
            f"{refusal}. It was asked for again and again for {self._timeout:.3g} s (setting: "
            "request_timeout), and no shard has taken it over. Nothing happened: try again later"
        )

    async def status(self) -> ClusterStatus:
        """The cluster's status, from its host."""
        self._check_open()
        return await self._host.status()

    def events(self, start: int) -> AsyncGenerator[ClusterEvent, None]:
        """Iterate over events from a number on, as they happen."""
        self._check_open()
        return self._host.events(start)

    async def recent_events(self) -> list[ClusterEvent]:
        """The past events that the host still keeps."""
        self._check_open()
        return await self._host.recent_events()

    def loop_blocked(self, seconds: float) -> None:
        """Report to the host that the running event loop was blocked, if it uses this cluster."""
        if not self._closed and any(ref.is_connected_here() for ref in self._actors):
            self._host.tell_blocked(seconds)

    async def rebalance(
        self, nodes: int, without: Collection[str], rate: int, timeout: float
    ) -> None:
        """Spread the slots over the given nodes; see `MemoryCluster.rebalance`."""
        self._check_open()
        await self._host.rebalance(nodes, without, rate, timeout)

    def end(self, reason: str) -> None:
        """Refuse all further calls because the actors have ended; callable from any thread."""
        self._stop_watching_host()
        self._take_places(msgspec.structs.replace(self._shard_map, closing=reason))

    async def close(self) -> None:
        """Close every connection of this process."""
        self._closed, self._forked = True, False
        if self._presence is not None:
            self._presence.close()
        self._stop_watching_host()
        for ref in [self._host.ref, *self._actors]:
            await ref.close()

    def _check_open(self) -> None:
        if not self._closed:
            return
        if not self._forked:
            raise ClusterClosedError("this cluster was closed: use it inside its `async with`")
        self._closed = self._forked = False
        self._begin_to_watch()
