"""The bounded queue of requests in front of an actor."""

from __future__ import annotations

from collections import deque

from msgspec import Raw, Struct

from flowgentic_actors.wire.server import Connection


class Envelope(Struct, gc=False):
    """A request in the mailbox.

    Attributes:
        deadline: When its caller gives up, on the event loop's clock.
    """

    connection: Connection
    seq: int
    low: int
    deadline: float
    body: Raw
    size: int


class Mailbox:
    """Requests in order of arrival, bounded in count and bytes.

    It never drops a request. When it is full, the connection that filled it is paused and its
    bytes stay in the sender's socket, which slows the sender; half empty, all are resumed.

    Args:
        max_requests: Requests that may wait.
        max_bytes: Bytes that may wait.
    """

    def __init__(self, max_requests: int, max_bytes: int) -> None:
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self._queue: deque[Envelope] = deque()
        self._paused: set[Connection] = set()
        self._cancelled: set[tuple[Connection, int]] = set()
        self.bytes = 0
        self.most_requests = 0
        self.most_bytes = 0

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def full(self) -> bool:
        """Whether the bound is reached."""
        return len(self._queue) >= self._max_requests or self.bytes >= self._max_bytes

    def put(self, envelope: Envelope) -> None:
        """Add a request, and pause its connection when that fills the mailbox."""
        self._queue.append(envelope)
        self.bytes += envelope.size
        self.most_requests = max(self.most_requests, len(self._queue))
        self.most_bytes = max(self.most_bytes, self.bytes)
        if self.full and envelope.connection not in self._paused:
            self._paused.add(envelope.connection)
            envelope.connection.pause()

    def take(self, most: int) -> list[Envelope]:
        """Take out up to `most` requests, oldest first, without those that were given up."""
        taken = [self._queue.popleft() for _ in range(min(most, len(self._queue)))]
        self.bytes -= sum(envelope.size for envelope in taken)
        if (
            self._paused
            and len(self._queue) * 2 <= self._max_requests
            and self.bytes * 2 <= self._max_bytes
        ):
            paused, self._paused = self._paused, set()
            for connection in paused:
                connection.resume()
        if self._cancelled:
            given_up = self._cancelled.intersection(map(_name, taken))
            self._cancelled -= given_up
            taken = [envelope for envelope in taken if _name(envelope) not in given_up]
            if not self._queue:
                self._cancelled.clear()
        return taken

    def put_back(self, envelopes: list[Envelope]) -> None:
        """Put requests that were taken, and not carried out, where they came from."""
        self._queue.extendleft(reversed(envelopes))
        self.bytes += sum(envelope.size for envelope in envelopes)

    def cancel(self, connection: Connection, seq: int) -> None:
        """Leave out a request that still waits: its caller gave up."""
        if len(self._cancelled) > 2 * len(self._queue):  # most of them came too late: forget those
            self._cancelled.intersection_update(map(_name, self._queue))
        if self._queue:
            self._cancelled.add((connection, seq))

    def forget(self, connection: Connection) -> None:
        """A connection is gone: nobody is left to be paused."""
        self._paused.discard(connection)


def _name(envelope: Envelope) -> tuple[Connection, int]:
    return envelope.connection, envelope.seq
