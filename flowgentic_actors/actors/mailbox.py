"""The bounded queue of requests in front of an actor."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import chain

from flowgentic_actors.actors.actor import Call
from flowgentic_actors.wire.server_connection import Connection


class Envelope(Call, gc=False):
    """A request in the mailbox.

    Attributes:
        connection: Where the reply goes.
        deadline: When its caller gives up, on the event loop's clock.
    """

    connection: Connection
    deadline: float


class Mailbox:
    """A queue of requests, bounded in count and bytes; in order within each connection.

    Connections take turns, so that one with many requests does not keep the others waiting. A
    request is dropped when its caller gave up, or its connection is closed. When
    the mailbox is full, the connection that filled it is paused and its
    bytes stay in the sender's socket, which slows the sender; half empty, all are resumed.

    Args:
        max_requests: Requests that may wait.
        max_bytes: Bytes that may wait.
    """

    def __init__(self, max_requests: int, max_bytes: int) -> None:
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self._queues: dict[Connection, deque[Envelope]] = {}  # none empty, in the order of turns
        self._queued = 0
        self._served: Connection | None = None  # whose last request took long
        self._paused: set[Connection] = set()
        self._cancelled: set[tuple[Connection, int]] = set()
        self._reserved = 0  # requests that wait elsewhere, and count
        self.bytes = 0
        self.most_requests = 0
        self.most_bytes = 0

    def __len__(self) -> int:
        return self._queued

    @property
    def full(self) -> bool:
        """Whether the mailbox is full."""
        waiting = self._queued + self._reserved
        return waiting >= self._max_requests or self.bytes >= self._max_bytes

    def put(self, envelope: Envelope) -> None:
        """Add a request, and pause its connection when that fills the mailbox."""
        queue = self._queues.get(envelope.connection)
        if queue is None:
            queue = self._queues[envelope.connection] = deque()
        queue.append(envelope)
        self._queued += 1
        self.bytes += _size(envelope)
        self._keep_bound(envelope.connection)

    def take(self, most: int) -> list[Envelope]:
        """Take out up to `most` requests, connections by turns, without cancelled ones.

        After one that took long there are none of its connection: the others' answers leave first.
        """
        taken: list[Envelope] = []
        served, self._served = self._served, None
        skipped = self._queues.pop(served, None) if served and len(self._queues) > 1 else None
        while self._queues and len(taken) < most:
            connection = next(iter(self._queues))
            queue = self._queues.pop(connection)
            taken.append(queue.popleft())
            if queue:
                self._queues[connection] = queue  # behind the others
        if served and skipped:
            self._queues[served] = skipped
        self._queued -= len(taken)
        self.bytes -= sum(map(_size, taken))
        if self._paused:
            self._resume_when_half_empty()
        if self._cancelled:
            given_up = self._cancelled.intersection(map(_name, taken))
            self._cancelled -= given_up
            taken = [envelope for envelope in taken if _name(envelope) not in given_up]
            if not self._queued:
                self._cancelled.clear()
        return taken

    def put_back(self, envelopes: list[Envelope], served: Connection | None = None) -> None:
        """Put requests back in front of all others; they were not carried out yet.

        Args:
            envelopes: The requests.
            served: Whose request took so long that these were not begun, if one did.
        """
        self._served = served
        others = self._queues
        first = dict.fromkeys(envelope.connection for envelope in envelopes)
        self._queues = {connection: others.pop(connection, deque()) for connection in first}
        self._queues |= others
        for envelope in reversed(envelopes):
            self._queues[envelope.connection].appendleft(envelope)
        self._queued += len(envelopes)
        self.bytes += sum(map(_size, envelopes))
        for connection in first:
            self._keep_bound(connection)

    def reserve(self, envelope: Envelope) -> None:
        """Count a request that waits outside the queue against the bound."""
        self._reserved += 1
        self.bytes += _size(envelope)
        self._keep_bound(envelope.connection)

    def release(self, envelopes: Iterable[Envelope]) -> None:
        """Stop counting requests that `reserve` has counted."""
        for envelope in envelopes:
            self._reserved -= 1
            self.bytes -= _size(envelope)
        self._resume_when_half_empty()

    def _resume_when_half_empty(self) -> None:
        waiting = self._queued + self._reserved
        if waiting * 2 <= self._max_requests and self.bytes * 2 <= self._max_bytes:
            paused, self._paused = self._paused, set()
            for connection in paused:
                connection.resume()

    def _keep_bound(self, connection: Connection) -> None:
        """Pause a connection that has just filled the mailbox."""
        self.most_requests = max(self.most_requests, self._queued + self._reserved)
        self.most_bytes = max(self.most_bytes, self.bytes)
        if self.full and connection not in self._paused:
            self._paused.add(connection)
            connection.pause()

    def cancel(self, connection: Connection, seq: int) -> None:
        """Drop a waiting request whose caller gave up."""
        if len(self._cancelled) > 2 * self._queued:  # most of them came too late: forget those
            waiting = chain.from_iterable(self._queues.values())
            self._cancelled.intersection_update(map(_name, waiting))
        if self._queued:
            self._cancelled.add((connection, seq))

    def forget(self, connection: Connection) -> None:
        """Drop the requests of a closed connection: its client sends them again."""
        self._paused.discard(connection)
        if self._served is connection:
            self._served = None
        dropped = self._queues.pop(connection, ())
        self._queued -= len(dropped)
        self.bytes -= sum(map(_size, dropped))
        if self._paused:
            self._resume_when_half_empty()


def _size(envelope: Envelope) -> int:
    return memoryview(envelope.body).nbytes


def _name(envelope: Envelope) -> tuple[Connection, int]:
    return envelope.connection, envelope.seq
