"""How adapters reach the shards: over sockets, or in this process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections import deque
from collections.abc import AsyncGenerator, Collection, Coroutine, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

import msgspec

from flowgentic_actors.actors.ref import ActorRef
from flowgentic_actors.cluster.handle import Descriptor
from flowgentic_actors.cluster.news import News
from flowgentic_actors.cluster.protocol import (
    Describe,
    Description,
    EventsReply,
    GetEvents,
    GetStatus,
    HostCommand,
    LoopBlocked,
    Place,
    Places,
    Rebalance,
    RebalanceReply,
    StatusReply,
)
from flowgentic_actors.cluster.routing import outdated, shard_of
from flowgentic_actors.cluster.slots import SlotTable
from flowgentic_actors.cluster.status import ClusterEvent, ClusterStatus, blocked
from flowgentic_actors.cluster.watching import PlaceWatch
from flowgentic_actors.deadlines import Patience, loop_clock, tell_when_blocked
from flowgentic_actors.engine.commands import Command
from flowgentic_actors.engine.replies import Reply
from flowgentic_actors.environment import machine
from flowgentic_actors.errors import (
    ClusterClosedError,
    FlowgenticError,
    InvalidRequestError,
    OutcomeUnknownError,
    RejectedError,
    SlotsMovedError,
)
from flowgentic_actors.wire.addresses import Destination, Nowhere
from flowgentic_actors.wire.blocking import BlockingCall
from flowgentic_actors.wire.client import AsyncConnection
from flowgentic_actors.wire.session import Pending
from flowgentic_actors.wire.sockets import let_go_after_fork

R = TypeVar("R", bound=msgspec.Struct)

logger = logging.getLogger(__name__)


def _plain(value: object) -> str:
    """A `StrEnum`, say, as the text that it is: users' labels and ids may be of any such type."""
    if isinstance(value, str):
        return str.__str__(value)
    raise TypeError(f"{type(value).__name__} is nothing that a command may hold")


_encoder = msgspec.msgpack.Encoder(enc_hook=_plain)


def _encode(command: Command | HostCommand) -> bytes:
    try:
        return _encoder.encode(command)
    except UnicodeEncodeError as error:
        raise InvalidRequestError(
            f"{error.object!r:.100} holds half of a surrogate pair, which is no character and "
            "cannot be stored. It comes from text that was decoded with errors='surrogateescape', "
            "or cut in its middle"
        ) from error


_replies: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)
_decode = _replies.decode


NOT_PICKLED = "a live connection to the memory: send memory.handle and attach instead"
"""Why a client does not travel."""
_MOVING = 0.05  # a newer table is waited for so long: a move may be given up, too
_REBALANCE_WAIT = 10.0  # one question whether it is done
_EVENT_WAIT = 10.0  # one question for events; asked again for as long as somebody iterates


class MemoryClient(Protocol):
    """Sends commands to shards.

    Where slots can move between shards, a command about one key is sent after it. What is asked of
    several shards has to be begun anew, by a newer table, when it fails with `SlotsMovedError`.

    Attributes:
        table: Which shard a key belongs to.
    """

    table: SlotTable

    def ask(self, shard: int, command: Command) -> Coroutine[Any, Any, Reply]:
        """Have a shard carry out a command.

        Raises:
            RequestError: If it was not, or may not have been, carried out.
            ClusterClosedError: If the cluster is closed.
        """

    async def ask_each(self, asks: Sequence[tuple[int, Command]]) -> list[Reply | Exception]:
        """Have shards carry out several commands at the same time.

        Returns:
            The reply to each, or the error in its place.
        """

    def ask_sync(self, shard: int, command: Command) -> Reply:
        """The same as `ask`, blocking; allowed on any thread, an event loop's own included."""

    def ask_each_sync(self, asks: Sequence[tuple[int, Command]]) -> list[Reply | Exception]:
        """The same as `ask_each`, blocking."""


class RemoteClient:
    """Reaches actors over their sockets.

    Args:
        descriptor: The cluster's descriptor.
        description: How to reach its actors.
        timeout: Deadline of each call, seconds.
        pool: Blocking connections to each actor.
    """

    def __init__(
        self, descriptor: Descriptor, description: Description, timeout: float, pool: int
    ) -> None:
        self.table = description.places.table
        self.spawner = description.spawner
        self._descriptor = descriptor
        self._places = description.places
        self._changes = description.changes
        self._machine = machine()
        self._timeout = timeout
        self._closed = False
        self._forked = False
        self._pool = pool
        self._news = News()
        limit = descriptor.max_message_bytes
        self._host = ActorRef("the host", descriptor.address, descriptor.secret, limit, 2)
        self._actors: list[ActorRef] = []
        self._watch: PlaceWatch | None = None
        self._take_places(self._places)
        tell_when_blocked(self)
        if self._changes:
            self._begin_to_watch()
            let_go_after_fork(self)

    @property
    def n_nodes(self) -> int:
        """Nodes that the shards are on."""
        return len(
            {place.machine for place in self._places.places if not place.lost and not place.retired}
        )

    def _begin_to_watch(self) -> None:
        self._watch = PlaceWatch(
            self._descriptor.address,
            self._descriptor.secret,
            self._descriptor.max_message_bytes,
            version=self._places.version,
            on_places=self._take_places,
        )

    def _take_places(self, places: Places) -> None:
        """Go where the shards are now; callable from any thread."""
        for shard, place in enumerate(places.places):
            destination = self._destination(places, place)
            if shard == len(self._actors):
                self._actors.append(self._ref(place.name, destination or ""))
            elif destination is not None:
                self._actors[shard].move(destination)
        # A shard's number is known only once it can be asked; and who is forked in between hears of
        # these places once more.
        self.table = places.table
        self._places = places
        self._news.tell()

    def _destination(self, places: Places, place: Place) -> Destination | None:
        if places.closing:
            return Nowhere(places.closing, closing=True)
        if place.retired:
            return Nowhere("its slots are other shards' now", moved=True)
        if place.lost:
            return Nowhere(place.lost)
        return places.route(place, self._machine)

    def _ref(self, name: str, destination: Destination) -> ActorRef:
        secret, limit = self._descriptor.secret, self._descriptor.max_message_bytes
        return ActorRef(name, destination, secret, limit, self._pool, exactly=self._changes)

    def after_fork(self) -> None:
        """The thread that hears from the host is the parent's; the child's begins when needed."""
        self._news.forget()
        if not self._closed:
            self._closed = self._forked = True

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError(NOT_PICKLED)

    async def ask(self, shard: int, command: Command) -> Reply:
        """Have a shard carry out a command; see `MemoryClient.ask`."""
        self._check_open()
        try:
            return await self._actors[shard].ask(_encode(command), self._timeout, _decode)
        except SlotsMovedError as error:
            answers: list[Reply | Exception] = [error]
        await self._follow([(shard, command)], answers)
        answer = answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def ask_each(self, asks: Sequence[tuple[int, Command]]) -> list[Reply | Exception]:
        """Have shards carry out several commands; see `MemoryClient.ask_each`."""
        self._check_open()
        answers = await self._ask_each_once(asks, self._timeout)
        await self._follow(asks, answers)
        return answers

    async def _ask_each_once(
        self, asks: Sequence[tuple[int, Command]], timeout: float
    ) -> list[Reply | Exception]:
        # No task for each: a batch of a thousand would spend more on those than on its requests.
        begun: list[tuple[AsyncConnection, Pending[asyncio.Future[msgspec.Raw]]] | Exception] = []
        for shard, command in asks:
            connection = self._actors[shard].connection()
            try:
                begun.append((connection, connection.begin(_encode(command), timeout)))
            except Exception as error:  # noqa: BLE001 - raised by whoever it concerns
                begun.append(error)
        answers: list[Reply | Exception] = []
        try:
            for one in begun:
                if isinstance(one, Exception):
                    answers.append(one)
                    continue
                try:
                    answers.append(_decode(await one[1].waiter))
                except Exception as error:  # noqa: BLE001 - raised by whoever it concerns
                    answers.append(error)
        except BaseException:
            for one in begun[len(answers) :]:
                if not isinstance(one, Exception):
                    one[0].give_up(one[1])
                    if one[1].waiter.done() and not one[1].waiter.cancelled():
                        one[1].waiter.exception()  # nobody will: asyncio would complain
            raise
        return answers

    async def _follow(
        self, asks: Sequence[tuple[int, Command]], answers: list[Reply | Exception]
    ) -> None:
        """Ask again what was refused because its slot moves, where that is by then.

        Args:
            asks: What was asked.
            answers: The answers to it. Those of what is asked again are replaced.
        """
        refused = {
            number: asks[number]
            for number, answer in enumerate(answers)
            if isinstance(answer, SlotsMovedError)
        }
        if not refused:
            return
        clock = loop_clock(asyncio.get_running_loop())
        deadline = clock.time + self._timeout
        while refused:
            worth_it = partial(self._any_outdated, list(refused.values()))
            await self._news.wait(worth_it, min(deadline - clock.time, _MOVING))
            self._check_open()
            table, left = self.table, deadline - clock.time
            again = {}
            for number, (_, command) in refused.items():
                shard = shard_of(table, command)
                if shard is None:
                    continue  # whoever asked several shards has to begin anew
                if left > 0:
                    again[number] = shard, command
                else:
                    answers[number] = self._still_moving(answers[number])
            found = await self._ask_each_once(list(again.values()), left)
            for number, answer in zip(list(again), found, strict=True):
                answers[number] = answer
                if not isinstance(answer, SlotsMovedError):
                    del again[number]
            refused = again

    def ask_sync(self, shard: int, command: Command) -> Reply:
        """Have a shard carry out a command, blocking; see `MemoryClient.ask_sync`."""
        self._check_open()
        patience, left = Patience(self._timeout), self._timeout
        while True:
            try:
                return _decode(self._actors[shard].ask_sync(_encode(command), left))
            except SlotsMovedError as error:
                refusal = error
            worth_it = partial(self._any_outdated, [(shard, command)])
            self._news.wait_sync(worth_it, min(patience.left, _MOVING))
            patience.look()
            self._check_open()
            where = shard_of(self.table, command)
            if where is None:
                raise refusal
            left = patience.left
            if left <= 0:
                raise self._still_moving(refusal)
            shard = where

    def ask_each_sync(self, asks: Sequence[tuple[int, Command]]) -> list[Reply | Exception]:
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
                    except Exception as error:  # noqa: BLE001 - raised by whoever it concerns
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
            except SlotsMovedError:
                return self.ask_sync(shard, command)  # which knows where else to ask
        except Exception as error:  # noqa: BLE001 - raised by whoever it concerns
            return error

    def _any_outdated(self, asks: Sequence[tuple[int, Command]]) -> bool:
        table = self.table
        return any(outdated(table, shard, command) for shard, command in asks)

    def _still_moving(self, refusal: object) -> SlotsMovedError:
        return SlotsMovedError(
            f"{refusal}. It was asked for again and again for {self._timeout:.3g} s (setting: "
            "request_timeout), and no shard has taken it over. Nothing happened: try again later"
        )

    async def status(self) -> ClusterStatus:
        """The cluster's status, from its host."""
        return (await self._ask_host(GetStatus(), StatusReply, self._timeout)).status

    async def events(self, start: int) -> AsyncGenerator[ClusterEvent, None]:
        """Events from a number on, as they happen."""
        while True:
            command = GetEvents(start, _EVENT_WAIT)
            reply = await self._ask_host(command, EventsReply, _EVENT_WAIT + self._timeout)
            for event in reply.events:
                yield event
                start = event.number + 1

    async def recent_events(self) -> list[ClusterEvent]:
        """The events so far that the host still keeps."""
        return list((await self._ask_host(GetEvents(0, 0.0), EventsReply, self._timeout)).events)

    def loop_blocked(self, seconds: float) -> None:
        """Have the host tell that calls waited for an event loop of this program."""
        if self._closed:
            return
        with contextlib.suppress(FlowgenticError):  # closed just now
            body = _encode(LoopBlocked(blocked(seconds)))
            answer = self._host.connection().begin(body, self._timeout).waiter
            answer.add_done_callback(_looked_at)

    async def rebalance(
        self, nodes: int, without: Collection[str], rate: int, timeout: float
    ) -> None:
        """Spread the slots over some nodes; see `MemoryCluster.rebalance`."""
        number = secrets.randbits(62)
        deadline = time.monotonic() + timeout
        while True:
            left = deadline - time.monotonic()
            wait = max(0.0, min(left, _REBALANCE_WAIT))
            command = Rebalance(number, nodes, tuple(without), rate, wait)
            reply = await self._ask_host(command, RebalanceReply, wait + self._timeout)
            if reply.error:
                raise RejectedError(f"the cluster was not rebalanced: {reply.error}")
            if reply.done:
                return
            if left <= 0:
                raise OutcomeUnknownError(
                    f"rebalancing takes longer than timeout={timeout:g} s, and goes on: its end is "
                    "among the events. To wait for it, call again when it is over"
                )

    async def close(self) -> None:
        """Close every connection of this process."""
        self._closed, self._forked = True, False
        if self._watch is not None:
            self._watch.close()
        for ref in [self._host, *self._actors]:
            await ref.close()

    async def _ask_host(self, command: HostCommand, reply: type[R], timeout: float) -> R:
        self._check_open()
        return await self._host.ask(
            _encode(command), timeout, lambda raw: msgspec.msgpack.decode(raw, type=reply)
        )

    def _check_open(self) -> None:
        if not self._closed:
            return
        if not self._forked:
            raise ClusterClosedError("this cluster was closed: use it inside its `async with`")
        self._closed = self._forked = False
        self._begin_to_watch()


def _looked_at(answer: asyncio.Future[msgspec.Raw]) -> None:
    """An event that is not told is no reason to fail anything."""
    if not answer.cancelled() and answer.exception() is not None:
        logger.info("the host does not take an event: %s", answer.exception())


def describe(descriptor: Descriptor, timeout: float) -> Description:
    """Ask a cluster's host how to reach its actors. Blocks.

    Raises:
        RequestError: If the host cannot be reached.
    """
    limit = descriptor.max_message_bytes
    ref = ActorRef("the host", descriptor.address, descriptor.secret, limit, 1)
    try:
        answer = ref.ask_sync(_encode(Describe()), timeout)
    finally:
        ref.close_blocking()
    return msgspec.msgpack.decode(answer, type=Description)
