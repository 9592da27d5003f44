"""The interface of an actor."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from msgspec import Raw, Struct

from flowgentic_actors.errors import RejectedError
from flowgentic_actors.event_kinds import EventKind
from flowgentic_actors.secret import Secret

SLOW: Final = 0.25
"""Seconds from which on carrying out one request, or one page of an answer, is worth an event."""


class Call(Struct, gc=False):
    """A request as an actor sees it.

    Attributes:
        session: Who asks: 16 random bytes that outlive connections.
        seq: The request's number within the session; with `session` it names the request.
        low: The session waits for no answer below this number.
        body: What is asked, encoded.
    """

    session: bytes
    seq: int
    low: int
    body: Raw


class Postponed(NamedTuple):
    """Result in place of a reply: the request cannot be carried out yet, and has changed nothing.

    Attributes:
        until: Done when the request is worth another try, in which it may be postponed again.
        otherwise: The refusal that its caller gets when its deadline comes first.
    """

    until: asyncio.Future[None]
    otherwise: RejectedError


class ActorContext(NamedTuple):
    """What an actor may use of the process that serves it.

    Attributes:
        name: The actor's name.
        secret: The cluster's secret, which other actors ask for.
        max_message_bytes: Largest message.
        tell: Reports an event (kind, detail) to the supervisor, after `report`; callable from any
            thread.
        report: Gives the supervisor `stats` and `report` as they are now, without waiting for it
            to ask; callable from any thread.
        wake: Has `commit` called soon, for what was done beside the requests.
    """

    name: str
    secret: Secret[bytes]
    max_message_bytes: int
    tell: Callable[[EventKind, str], None]
    report: Callable[[], None]
    wake: Callable[[], None]


class Status(NamedTuple):
    """The status of an actor: its batch, counters and report.

    Attributes:
        busy: Seconds for which it has been in its current batch, 0 when it is idle.
        stats: Its counters, and those of its mailbox.
        report: See `Actor.report`.
    """

    busy: float
    stats: dict[str, int]
    report: Raw


class Actor(Protocol):
    """State behind a mailbox, touched by one request at a time.

    An actor is made by a factory in a process of its own and lives on that process's event loop.
    Its methods are called on the loop and do not wait for anything.
    """

    def start(self, context: ActorContext) -> None:
        """Start background work; called on the loop, before the first request."""

    @property
    def takes_clients(self) -> bool:
        """Whether the actor answers requests now; clients are refused otherwise, and retry."""

    def on_message(self, body: Raw) -> None:
        """Process a message of the supervisor; called on the loop, after `start`."""

    def on_peer_request(self, body: Raw, answer: Callable[[bytes], None]) -> None:
        """Answer a request of another actor, beside the mailbox and without a commit.

        Args:
            body: What is asked, encoded.
            answer: To be called with the encoded reply, once, on the loop, now or later.

        Raises:
            RejectedError: If it is refused.
        """

    def handle(self, call: Call) -> bytes | asyncio.Future[bytes] | Postponed:
        """Carry out one request and return the encoded reply, which is held until `commit`.

        A reply that takes a while is returned as a future, which the actor settles within a bound;
        it goes on with other requests meanwhile, and the commit that follows covers the reply.
        A postponed request is handed over again later, before all that came after it.

        Raises:
            RejectedError: If the request is refused; the caller is told and the actor goes on.
                Any other exception is a defect: the caller is told, and the actor ends to be
                started anew from what it has stored.
        """

    def was_slow(self, call: Call, seconds: float) -> None:
        """Report that `handle` took long for a request."""

    def commit(self) -> asyncio.Future[None] | None:
        """Make the requests handled since the last commit durable; their replies leave after it.

        Returns:
            None when that is done, or a future to wait for; the actor goes on meanwhile.

        Raises:
            FlowgenticError: If that failed. The requests are refused and the actor ends.
        """

    def stats(self) -> dict[str, int]:
        """The actor's counters; called from another thread, so it only reads."""

    def report(self) -> Raw:
        """The encoded report for decisions about the actor; called from another thread as well."""

    async def drained(self) -> None:
        """Finish background work within a bound, after the last request; `close` follows."""

    def close(self) -> None:
        """Close all files; nothing is called afterwards."""
