"""Blocking connections for sync calls, pooled and checked out per call."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import sys
import threading
from queue import Empty, SimpleQueue

from msgspec import Raw

from flowgentic_actors.deadlines import Patience
from flowgentic_actors.errors import (
    ActorUnavailableError,
    AuthenticationError,
    ClusterClosedError,
    ProtocolError,
    RequestError,
    WireError,
)
from flowgentic_actors.foreign import is_foreign
from flowgentic_actors.secret import Secret
from flowgentic_actors.wire.addresses import (
    Destination,
    UnreachableError,
    connect,
    hang_up,
    unanswered,
)
from flowgentic_actors.wire.async_connection import CONNECT_TIMEOUT
from flowgentic_actors.wire.awake import Moment, read_awake
from flowgentic_actors.wire.channel import ClientChannel, client_channel
from flowgentic_actors.wire.messages import (
    NO_BODY,
    Failure,
    Hello,
    Reply,
    Request,
    Role,
    ToClient,
    Welcome,
)
from flowgentic_actors.wire.session import (
    MAX_LOSSES,
    Pending,
    Session,
    check_name,
    check_size,
    lethal_error,
    lost_error,
    may_ask_again,
    overdue_error,
    refusal_error,
    untrusted_error,
)
from flowgentic_actors.wire.sockets import let_go_after_fork

_READ = 1 << 18
_AT_ONCE = 32 << 10  # bytes of a request that a socket takes without waiting for the other side
_FIRST_RETRY, _LAST_RETRY = 0.005, 0.25
_LOOK_AGAIN = 0.05  # seconds


class BlockingConnection:
    """A connection to one actor for one thread at a time, with one request at a time."""

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
        self._address = address
        self._secret = secret
        self._peer = peer
        self._max_bytes = max_bytes
        self._role = role
        self._name = name
        self._awake = Moment(stay_awake)
        self._session: Session[Patience] = Session()
        self._lock = threading.Lock()  # for what another thread touches, which `move` does
        self._moves = 0
        self._dialled_after = 0  # moves
        self._open: socket.socket | None = None  # in use, or on its way there
        self._sock: socket.socket | None = None
        self._channel: ClientChannel | None = None
        self._congested = False  # what was begun was not taken in time
        self._out: int | None = None  # the request that was sent on that socket last

    def request(self, body: bytes, timeout: float) -> Raw:
        """Send a request and wait for its answer; see `AsyncConnection.request`."""
        return self.finish(self.begin(body, timeout))

    def begin(self, body: bytes, timeout: float) -> Pending[Patience]:
        """Send a request if a socket is open; `finish` or `close` has to follow."""
        check_size(body, self._max_bytes, self._peer)
        pending = self._session.open(body, timeout, 0.0, Patience(timeout))
        if self._sock is None or self._channel is None or len(body) > _AT_ONCE:
            return pending
        try:
            self._send(self._sock, self._channel, pending)
        except (OSError, WireError) as error:
            if is_foreign(error):
                self._give_up(pending)
                raise
            self.close()  # `finish` makes another one
            self._congested = isinstance(error, TimeoutError)
        except BaseException:
            self._give_up(pending)
            raise
        return pending

    def finish(self, pending: Pending[Patience]) -> Raw:
        """Wait for the answer to a request, and send it again where that is needed."""
        delay, congested, self._congested = _FIRST_RETRY, self._congested, False
        cause: str | None = None
        counted, patience = 0, pending.waiter  # attempts
        try:
            while patience.left > 0:
                try:
                    return self._attempt(pending)
                except (OSError, WireError) as error:
                    if is_foreign(error):
                        raise
                    if self._dialled_after != self._moves:
                        self.close()  # no failure: continue at the new address
                        delay, counted = _FIRST_RETRY, pending.attempts
                        continue
                    if isinstance(error, UnreachableError):
                        raise lost_error(pending, self._peer, error.unreachable) from error
                    if isinstance(error, AuthenticationError):
                        raise untrusted_error(pending, self._peer, error) from error
                    congested = isinstance(error, TimeoutError) and self._sock is not None
                    cause = f"{type(error).__name__}: {error}".rstrip(": ")
                    self.close()
                    pending.losses += pending.attempts - counted
                    counted = pending.attempts
                    if pending.losses >= MAX_LOSSES and not isinstance(error, TimeoutError):
                        raise lethal_error(pending, self._peer) from error
                pause = delay * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, not a secret
                patience.sleep(pause)
                delay = min(delay * 2, _LAST_RETRY)
            raise overdue_error(pending, self._peer, congested=congested, cause=cause)
        except RequestError:
            raise
        except BaseException:
            self._give_up(pending)
            raise
        finally:
            self._session.settle(pending.seq)

    def _give_up(self, pending: Pending[Patience]) -> None:
        # Whatever answer is still under way would be taken for the next request's.
        self.close()
        self._session.settle(pending.seq)

    def close(self) -> None:
        """Close the socket, if there is one."""
        with self._lock:
            self._let_go()

    def move(self, address: Destination) -> None:
        """Switch to another address, with the same session; callable from any thread.

        A request that waits for its answer is sent there.
        """
        with self._lock:
            self._address = address
            self._moves += 1
            if self._open is not None:
                hang_up(self._open)

    def after_fork(self) -> None:
        """Close a forked child's copy: another thread of the parent may have held the lock."""
        self._let_go()

    def _let_go(self) -> None:
        if self._open is not None:
            self._open.close()
        self._open = self._sock = self._channel = self._out = None

    def _send(
        self, sock: socket.socket, channel: ClientChannel, pending: Pending[Patience]
    ) -> None:
        left = max(0, round(pending.waiter.left * 1000))
        channel.send(
            Request(pending.seq, self._session.oldest_pending, left, NO_BODY), pending.body
        )
        self._write(sock, channel, pending.waiter)
        pending.attempts += 1  # a frame cut off by the deadline is never decoded
        self._out = pending.seq

    def _attempt(self, pending: Pending[Patience]) -> Raw:
        sock, channel = self._connected(pending.waiter)
        if self._out != pending.seq:
            self._send(sock, channel, pending)
        while True:
            for message in self._read(sock, channel, pending.waiter):
                match message:
                    case Reply(seq, body) if seq == pending.seq:
                        return body
                    case Failure(seq) if seq == pending.seq:
                        if may_ask_again(message, pending, pending.waiter.left):
                            self._send(sock, channel, pending)
                            continue
                        raise refusal_error(message, pending, self._peer)
                    case _:
                        raise ProtocolError(f"unexpected {type(message).__name__} from the actor")
            pending.waiter.look()  # there is more to come

    def _connected(self, patience: Patience) -> tuple[socket.socket, ClientChannel]:
        if self._sock is not None and self._channel is not None:
            return self._sock, self._channel
        patience = Patience(min(patience.left, CONNECT_TIMEOUT))
        with self._lock:
            address, self._dialled_after = self._address, self._moves
        sock = patience.attempt(
            CONNECT_TIMEOUT, lambda limit: connect(address, self._secret, limit, self._announced)
        )
        try:
            channel = client_channel(self._secret, self._max_bytes)
            channel.send(Hello(self._role, self._session.id, os.getpid()))
            self._write(sock, channel, patience)
            welcome = self._first(sock, channel, patience)
            while not isinstance(welcome, Welcome):
                welcome = self._first(sock, channel, patience)
            check_name(welcome.name, self._name)
            self._check_place()
        except BaseException:
            self.close()
            raise
        self._sock, self._channel = sock, channel
        return sock, channel

    def _announced(self, sock: socket.socket) -> None:
        with self._lock:
            self._open = sock
        self._check_place()

    def _check_place(self) -> None:
        if self._dialled_after != self._moves:
            raise ConnectionAbortedError("the actor is somewhere else now")

    def _first(
        self, sock: socket.socket, channel: ClientChannel, patience: Patience
    ) -> ToClient | None:
        messages = self._read(sock, channel, patience)
        self._write(sock, channel, patience)
        return messages[0] if messages else None

    @staticmethod
    def _write(sock: socket.socket, channel: ClientChannel, patience: Patience) -> None:
        if not channel.pending:
            return
        data = b"".join(channel.take())
        sent = 0
        while True:
            limit = patience.slice()
            sock.settimeout(limit)
            try:
                sent += sock.send(memoryview(data)[sent:] if sent else data)
            except TimeoutError as error:
                if is_foreign(error):
                    raise
                patience.lapse(limit)
            if sent == len(data):
                return
            patience.look()

    def _read(
        self, sock: socket.socket, channel: ClientChannel, patience: Patience
    ) -> list[ToClient]:
        data = read_awake(sock, self._awake, _READ)
        while data is None:
            limit = patience.slice()
            sock.settimeout(limit)
            try:
                data = sock.recv(_READ)
            except TimeoutError as error:
                if is_foreign(error):
                    raise
                patience.lapse(limit)
                if unanswered(sock):
                    raise ConnectionAbortedError(
                        "the actor's node does not answer any more"
                    ) from None
        if not data:
            raise ConnectionResetError("the actor closed the connection")
        return [message for messages in channel.receive(data) for message in messages]


class BlockingCall:
    """A blocking request in progress.

    Args:
        pool: Whose connection it has.
        connection: The connection.
        pending: The request.
    """

    def __init__(
        self, pool: BlockingPool, connection: BlockingConnection, pending: Pending[Patience]
    ) -> None:
        self._pool = pool
        self._connection = connection
        self._pending = pending

    def finish(self) -> Raw:
        """Wait for the answer; see `AsyncConnection.request`."""
        try:
            body = self._connection.finish(self._pending)
        except RequestError:
            self._pool.check_in(self._connection)
            raise
        except BaseException:
            self._pool.discard(self._connection)
            raise
        self._pool.check_in(self._connection)
        return body

    def give_up(self) -> None:
        """Stop waiting for the answer."""
        self._pool.discard(self._connection)


class BlockingPool:
    """At most `size` blocking connections to one actor, made when needed.

    A connection belongs to a call while the call lasts. It is registered under the call's thread:
    an exception of a signal handler may end a call before the connection is returned, and the
    thread's next call finds it then, and closes it.

    The lock is a plain one, which `with` releases at any exception; a condition's may stay held.
    """

    def __init__(
        self,
        address: Destination,
        secret: Secret[bytes],
        peer: str,
        max_bytes: int,
        size: int,
        *,
        name: str | None = None,
        stay_awake: float = 0.0,
    ) -> None:
        self._arguments = (address, secret, peer, max_bytes)
        self._name = name
        self._stay_awake = stay_awake
        self._peer = peer
        self._size = size
        self._reset()
        let_go_after_fork(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._freed: SimpleQueue[None] = SimpleQueue()  # wakes a waiting thread
        self._idle: list[BlockingConnection] = []
        self._out: dict[int, BlockingConnection] = {}  # by thread
        self._closed = False

    def request(self, body: bytes, timeout: float) -> Raw:
        """Send a request over a connection of the pool; see `AsyncConnection.request`."""
        return self.begin(body, timeout).finish()

    def begin(self, body: bytes, timeout: float) -> BlockingCall:
        """Send a request, or leave it to `BlockingCall.finish`; that or `give_up` has to follow.

        So several actors can be asked at the same time without a thread for each.
        """
        connection, left = self._check_out(timeout)
        try:
            pending = connection.begin(body, left)
        except RequestError:
            self.check_in(connection)
            raise
        except BaseException:
            self.discard(connection)
            raise
        return BlockingCall(self, connection, pending)

    def close(self) -> None:
        """Close idle connections now, and those in use when they are returned."""
        with self._lock:
            self._closed = True
            for connection in self._idle:
                connection.close()
            self._idle.clear()

    def move(self, address: Destination) -> None:
        """Switch all calls to another address; see `BlockingConnection.move`."""
        with self._lock:
            self._arguments = (address, *self._arguments[1:])
            for connection in self._out.values():
                connection.move(address)
            for connection in self._idle:
                connection.move(address)
                connection.close()

    def after_fork(self) -> None:
        """Close a forked child's copies, with new locks: another thread may have held the old."""
        for connection in [*self._idle, *self._out.values()]:
            connection.after_fork()
        self._reset()

    def check_in(self, connection: BlockingConnection) -> None:
        """Return a connection whose call was answered or refused."""
        thread = threading.get_ident()
        with self._lock:
            if self._out.get(thread) is not connection or self._closed:
                connection.close()
            if self._out.get(thread) is connection:
                del self._out[thread]
                if not self._closed:
                    self._idle.append(connection)
        if self._freed.empty():
            self._freed.put(None)

    def discard(self, connection: BlockingConnection) -> None:
        """Close a connection whose call ended in any other way: its answer may be under way."""
        connection.close()
        self.check_in(connection)

    def _check_out(self, timeout: float) -> tuple[BlockingConnection, float]:
        """Check out a connection for this thread; with the seconds that are left then."""
        patience: Patience | None = None
        connection = self._take()
        while connection is None:
            patience = patience or Patience(timeout)
            patience.look()
            if patience.left <= 0:
                raise ActorUnavailableError(
                    f"all {self._size} connections to {self._peer} were in use for {timeout:.3g} s:"
                    " raise connection_pool. Nothing was sent"
                )
            with contextlib.suppress(Empty):  # a wake-up may be lost with an interrupted thread
                self._freed.get(timeout=patience.slice(_LOOK_AGAIN))
            connection = self._take()
            if connection is None:
                self._forget_dead_threads()
        return connection, timeout if patience is None else max(0.001, patience.left)

    def _take(self) -> BlockingConnection | None:
        """Take a connection for this thread, None while all are in use."""
        thread = threading.get_ident()
        with self._lock:
            if self._closed:
                raise ClusterClosedError(f"the connections to {self._peer} are closed")
            interrupted = self._out.pop(thread, None)
            if interrupted is not None:
                interrupted.close()
            if self._idle:
                connection = self._out[thread] = self._idle.pop()
            elif len(self._out) < self._size:
                connection = BlockingConnection(
                    *self._arguments, name=self._name, stay_awake=self._stay_awake
                )
                self._out[thread] = connection
            else:
                return None
            return connection

    def _forget_dead_threads(self) -> None:
        # All that run Python code; `threading` does not know those that uWSGI has started.
        alive = sys._current_frames()  # noqa: SLF001 - documented
        with self._lock:
            for thread in [thread for thread in self._out if thread not in alive]:
                self._out.pop(thread).close()
