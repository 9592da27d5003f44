"""The asynchronous connection to one actor."""

from __future__ import annotations

import asyncio
import math
import os
import random
from collections import deque
from collections.abc import Callable, Iterable
from time import monotonic
from types import AsyncGeneratorType
from typing import Any, cast

from msgspec import Raw
from typing_extensions import TypeVar

from flowgentic_actors import deadlines
from flowgentic_actors.errors import (
    AuthenticationError,
    ClusterClosedError,
    FlowgenticError,
    ProtocolError,
    WireError,
)
from flowgentic_actors.foreign import is_foreign
from flowgentic_actors.secret import Secret
from flowgentic_actors.wire.addresses import Destination, UnreachableError, dial, secure
from flowgentic_actors.wire.awake import LoopAwake
from flowgentic_actors.wire.channel import client_channel
from flowgentic_actors.wire.client_wire import ClientWire, close_with_loop
from flowgentic_actors.wire.frames import FRAME_TARGET
from flowgentic_actors.wire.messages import (
    NO_BODY,
    Cancel,
    Failure,
    Hello,
    Reply,
    Request,
    Role,
    ToClient,
)
from flowgentic_actors.wire.session import (
    MAX_LOSSES,
    Pending,
    Session,
    check_size,
    lethal_error,
    lost_error,
    may_ask_again,
    overdue_error,
    refusal_error,
    untrusted_error,
)
from flowgentic_actors.wire.sockets import let_go_after_fork

Answered = TypeVar("Answered", default=Raw)

_Answer = asyncio.Future[Raw]

CONNECT_TIMEOUT = 5.0

TOGETHER = 16
"""So many requests of one tick leave without waiting for the others, so the actor is not idle while
they are made, nor the caller while the actor is at work."""

_FIRST_RETRY, _LAST_RETRY = 0.005, 0.25
_LOST = 0.1  # seconds after which a flush that was asked for is taken to have been interrupted


def as_it_is(reply: Any) -> Any:
    """Return an encoded reply as it is."""
    return reply


class AsyncConnection:
    """The connection to one actor from one event loop.

    Requests of one tick travel in one frame, but for the first when none is on the way: that one is
    not kept waiting for others. When the connection breaks it is made anew for as
    long as a request waits, and what is unfinished is sent again under its old number. The object
    belongs to the loop it was made in.

    Args:
        address: Where the actor is.
        secret: The cluster's secret.
        peer: The actor's name, for messages.
        max_bytes: Largest message, bytes.
        role: What this connection is for.
        name: The name that the peer has to have: on a node, the port of an actor that is gone
            may be another one's by now. Default: anything.
        stay_awake: Seconds for which the loop does not sleep after a request, until its answer.
    """

    def __init__(
        self,
        address: Destination,
        secret: Secret[bytes],
        peer: str,
        max_bytes: int,
        role: Role = "client",
        *,
        name: str | None = None,
        stay_awake: float = 0.0,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._address = address
        self._secret = secret
        self._peer = peer
        self._max_bytes = max_bytes
        self._role = role
        self.name = name
        self._session: Session[_Answer] = Session()
        self._awake = LoopAwake(stay_awake, self._session.__len__)
        self._queue: deque[Pending[_Answer]] = deque()  # to be written, in order
        self._wire: ClientWire | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._last_error: str | None = None
        self._clock = deadlines.loop_clock(self._loop)
        self._watched = False  # whether that clock calls `_look`
        self._earliest = math.inf  # of these, at most
        self._fruitless = 0  # connections lost in a row before they answered anything
        self._suspects = 0  # requests below this number are sent one by one
        self._alone: Pending[_Answer] | None = None  # the one of them that is out
        self._flush_at = 0.0  # when a flush was asked for that has not begun, 0 for never
        self._closed = False
        self._guard: tuple[ClientWire, AsyncGeneratorType[None, None]] | None = None
        let_go_after_fork(self)

    async def request(
        self, body: bytes, timeout: float, decode: Callable[[Raw], Answered] = as_it_is
    ) -> Answered:
        """Send a request and wait for its answer.

        Args:
            body: The encoded request.
            timeout: Seconds until the caller gives up, in which the loop turns.
            decode: Decodes the reply. Default: it is left encoded.

        Returns:
            The reply.

        Raises:
            NotSentError: If it was never sent.
            OutcomeUnknownError: If it was sent and not answered in time.
            RejectedError: If the actor refused it.
            ClusterClosedError: If the connection was closed meanwhile.
        """
        pending = self.begin(body, timeout)
        try:
            return decode(await pending.waiter)
        except asyncio.CancelledError:
            self.give_up(pending)
            raise

    def begin(self, body: bytes, timeout: float) -> Pending[_Answer]:
        """Send a request whose `waiter` gets the answer; call `give_up` to cancel it.

        Args and errors as of `request`; those that come later are the waiter's.
        """
        if self._closed:
            raise ClusterClosedError(f"the connection to {self._peer} is closed")
        if len(body) > self._max_bytes:
            check_size(body, self._max_bytes, self._peer)
        answer: _Answer = asyncio.Future(loop=self._loop)
        try:
            pending = self._session.open(body, timeout, self._clock.time, answer)
            self._queue.append(pending)
            if self._wire is not None and (
                self._session.alone  # there is no other request to share a frame with
                or len(self._queue) == TOGETHER
            ):
                self._flush()
            elif not self._flush_at:
                self._flush_soon()
            self._awake.stay()
            if pending.deadline < self._earliest:
                self._watch(pending.deadline)
        except BaseException:
            self._interrupted()
            raise
        return pending

    async def close(self) -> None:
        """Close the connection; waiting callers get `ClusterClosedError`."""
        connecting = self._connecting
        self.abandon()
        if connecting is not None:
            await asyncio.wait([connecting])
        await self._close_guard()

    def abandon(self) -> None:
        """Close the connection without waiting until the socket is closed."""
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
        for pending in list(self._session):
            self._fail(pending, ClusterClosedError(f"the connection to {self._peer} was closed"))
        if self._wire is not None:
            self._wire.end()

    def move(self, address: Destination) -> None:
        """Switch to the actor's new address, with the same session.

        What is unfinished is sent again. The end of the old connection counts as no failure.
        """
        self._address = address
        self._fruitless = 0
        self._alone = None
        if self._connecting is not None:
            self._connecting.cancel()  # and begins anew
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.end()
        self._queue = deque(self._session)
        if self._queue:
            self._flush_soon()

    def after_fork(self) -> None:
        """Close a forked child's copy of the socket; the parent's stays as it is."""
        self._closed = True
        if self._wire is not None:
            self._wire.sock.close()

    # ------------------------------------------------------------------ sending

    def _flush_soon(self) -> None:
        self._loop.call_soon(self._flush)
        self._flush_at = monotonic()

    def _interrupted(self) -> None:
        """Reconnect after an exception in the middle of a change, such as a signal handler's.

        Pending requests are sent again over another connection, under their numbers.
        """
        self._flush_soon()
        if self._wire is not None:
            self._wire.end()

    def _flush(self) -> None:
        self._flush_at = 0.0
        try:
            wire = self._wire
            if wire is None:
                self._begin_to_connect()
                return
            now, low = self._clock.time, self._session.oldest_pending
            queue, send = self._queue, wire.channel.send
            size = 0
            while queue and not wire.congested and self._alone is None:
                pending = queue.popleft()
                if not pending.waiter.done():
                    left = int((pending.deadline - now) * 1000) if pending.deadline > now else 0
                    size += send(Request(pending.seq, low, left, NO_BODY), pending.body)
                    pending.attempts += 1
                    if pending.seq < self._suspects:
                        self._alone = pending
                    if size >= FRAME_TARGET:
                        wire.write()  # and see whether the actor keeps up
                        size = 0
            wire.write()
        except BaseException:
            self._interrupted()
            raise

    def _begin_to_connect(self) -> None:
        idle = self._connecting is None or self._connecting.done()
        if len(self._session) and idle and not self._closed:
            self._connecting = self._loop.create_task(self._connect())
            self._connecting.add_done_callback(self._connected)

    def give_up(self, pending: Pending[_Answer]) -> None:
        """Stop waiting for an answer; a request that was not sent yet never is."""
        self._settle(pending.seq)
        if pending.sent and self._wire is not None:
            self._wire.channel.send(Cancel(pending.seq))
            self._flush_soon()
        elif not pending.sent:
            pending.body = b""  # it may stay in the queue for a while

    def _settle(self, seq: int) -> Pending[_Answer] | None:
        if self._alone is not None and self._alone.seq == seq:
            self._alone = None
            self._flush_soon()
        return self._session.settle(seq)

    # ------------------------------------------------------------------ receiving

    def _received(self, messages: Iterable[ToClient]) -> None:
        find = self._session.find
        settle = self._session.settle if self._alone is None else self._settle
        for message in messages:
            if isinstance(message, Reply):
                pending = find(message.seq)
                if pending is not None and not pending.waiter.done():
                    pending.waiter.set_result(message.body)
                settle(message.seq)  # only now: what is interrupted before is asked again
            elif isinstance(message, Failure):
                pending = find(message.seq)
                if pending is None:
                    continue
                if may_ask_again(message, pending, pending.deadline - self._clock.time):
                    self._ask_again(pending)
                else:
                    self._fail(pending, refusal_error(message, pending, self._peer))
                    self._settle(message.seq)
            else:
                raise ProtocolError(f"{type(message).__name__} is not a message for a client")
        self._fruitless = 0
        if self._flush_at and monotonic() - self._flush_at > _LOST:
            self._flush_soon()

    def _ask_again(self, pending: Pending[_Answer]) -> None:
        if self._alone is pending:
            self._alone = None
        self._queue.append(pending)
        self._flush_soon()

    def _fail(self, pending: Pending[_Answer], error: FlowgenticError) -> None:
        if not pending.waiter.done():
            pending.waiter.set_exception(error)
        self._session.settle(pending.seq)

    def _wire_ended(self, wire: ClientWire, reason: str) -> None:
        if self._wire is wire:
            self._lost(reason)

    def _lost(self, reason: str) -> None:
        self._last_error = reason
        self._fruitless += 1
        if self._fruitless > 1:
            self._suspects = self._session.next
        alone, self._alone = self._alone, None
        if alone is not None:
            alone.losses += 1
            if alone.losses >= MAX_LOSSES:
                self._fail(alone, lethal_error(alone, self._peer))
        for answered in [p for p in self._session if p.waiter.done()]:  # and then interrupted
            self._session.settle(answered.seq)
        self._queue = deque(self._session)
        self._wire = None
        if self._queue:
            self._flush_soon()

    # ------------------------------------------------------------------ deadlines

    def _watch(self, deadline: float) -> None:
        if not self._watched:
            self._clock.watch(self._look)
            self._watched = True
        self._earliest = deadline

    def _look(self, now: float) -> bool:
        """Fail overdue requests; whether any request waits still."""
        if now >= self._earliest:
            self._fail_overdue(now)
        if self._wire is not None and self._wire.is_closing():
            self._lost("the connection was closed")  # and `connection_lost` was interrupted
        if not len(self._session):
            self._watched, self._earliest = False, math.inf
        return self._watched

    def _fail_overdue(self, now: float) -> None:
        for pending in [p for p in self._session if p.deadline <= now]:
            congested = self._wire is not None and self._wire.congested
            cause = None if self._wire is not None else self._last_error
            error = overdue_error(pending, self._peer, congested=congested, cause=cause)
            self.give_up(pending)
            self._fail(pending, error)
        self._earliest = min((p.deadline for p in self._session), default=math.inf)

    # ------------------------------------------------------------------ connecting

    async def _connect(self) -> None:
        # Right away after a first loss; slower when connections come up and answer nothing.
        delay = _FIRST_RETRY * 2 ** min(self._fruitless, 6)
        if self._fruitless > 1:
            await asyncio.sleep(min(delay, _LAST_RETRY))
        while len(self._session) and not self._closed:
            try:
                async with deadlines.timeout(CONNECT_TIMEOUT):
                    self._wire = await self._dial()
            except AuthenticationError as error:
                self._refused(error)  # no retry will change that
                return
            except UnreachableError as error:
                for pending in list(self._session):
                    self._fail(pending, lost_error(pending, self._peer, error.unreachable))
                return
            except (OSError, TimeoutError, WireError) as error:
                if is_foreign(error):
                    raise
                self._last_error = f"{type(error).__name__}: {error}".rstrip(": ")
            else:
                self._queue = deque(self._session)
                self._flush_soon()
                return
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311
            delay = min(delay * 2, _LAST_RETRY)

    def _connected(self, task: asyncio.Task[None]) -> None:
        # Not at the end of `_connect`, which does not even begin when it is cancelled at once.
        if self._connecting is task:  # another may have begun between its end and this call
            self._connecting = None
        self._flush_soon()

    def _refused(self, error: AuthenticationError) -> None:
        for pending in list(self._session):
            self._fail(pending, untrusted_error(pending, self._peer, error))

    async def _dial(self) -> ClientWire:
        address = self._address
        channel = client_channel(self._secret, self._max_bytes)
        channel.send(Hello(self._role, self._session.id, os.getpid()))
        wire = ClientWire(
            channel,
            await dial(self._loop, address),
            self.name,
            on_messages=self._received,
            on_room=self._flush_soon,
            on_end=self._wire_ended,
        )
        try:
            wire.check_made(await secure(self._loop, wire, wire.sock, address, self._secret))
            await wire.welcomed
            await self._watch_loop_end(wire)
        except BaseException:
            wire.end()
            raise
        return wire

    async def _watch_loop_end(self, wire: ClientWire) -> None:
        await self._close_guard()
        guard = cast("AsyncGeneratorType[None, None]", close_with_loop(wire))
        self._guard = wire, guard
        await anext(guard)

    async def _close_guard(self) -> None:
        # Once only: up to Python 3.11 a generator whose closing was cancelled counts as running.
        guarded, self._guard = self._guard, None
        if guarded is not None:
            wire, guard = guarded
            # A loop that ends closes its generators at the same time, such as one with the cluster
            # in it and this guard: so the guard's own end awaits nothing any more.
            await wire.close()
            if not guard.ag_running:
                await guard.aclose()
