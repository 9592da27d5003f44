"""Queue of requests that an actor cannot carry out yet; they are retried in order."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from flowgentic_actors.actors.actor import Postponed
from flowgentic_actors.actors.mailbox import Envelope, Mailbox
from flowgentic_actors.errors import RejectedError
from flowgentic_actors.wire.server_connection import Connection

_MARGIN: Final = 0.5
_MARGIN_SHARE: Final = 0.1
"""Time before the caller's deadline at which a request is refused, in seconds, or as a share of the
time left if that is less: a refusal after the deadline would not be read."""


class _Waiting(NamedTuple):
    envelope: Envelope
    due: float
    otherwise: RejectedError


class PostponedRequests:
    """Postponed requests of one actor.

    They count in its mailbox, so their number and bytes are bounded as those in its queue are.

    Args:
        mailbox: The mailbox, which they are put back into.
        retry: Called when they are to be retried: `put_back` has to follow.
        refuse: Called with a request whose deadline came first, and its refusal.
    """

    def __init__(
        self,
        mailbox: Mailbox,
        retry: Callable[[], None],
        refuse: Callable[[Envelope, RejectedError], None],
    ) -> None:
        self._mailbox = mailbox
        self._retry = retry
        self._refuse = refuse
        self.waiting: dict[tuple[Connection, int], _Waiting] = {}
        """In order of arrival."""
        self._until: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

    def add(self, envelope: Envelope, postponed: Postponed) -> None:
        """Keep a request until `postponed.until` is done, or its deadline is near."""
        left = envelope.deadline - time.monotonic()
        due = envelope.deadline - min(_MARGIN, _MARGIN_SHARE * left)
        waiting = _Waiting(envelope, due, postponed.otherwise)
        self.waiting[envelope.connection, envelope.seq] = waiting
        self._mailbox.reserve(envelope)
        if postponed.until is not self._until:
            self._until = postponed.until
            self._until.add_done_callback(self._worth_it)
        if self._timer is None or due < self._timer_at:
            self._arm(due)

    def put_back(self) -> None:
        """Put all back in front of the mailbox's queue if they are to be retried."""
        if self._until is not None and self._until.done():
            self._mailbox.put_back(self.clear())

    def clear(self) -> list[Envelope]:
        """Take all requests out."""
        waiting, self.waiting, self._until = self.waiting, {}, None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        envelopes = [one.envelope for one in waiting.values()]
        self._mailbox.release(envelopes)
        return envelopes

    def cancel(self, connection: Connection, seq: int) -> None:
        """Drop a request whose caller gave up."""
        if waiting := self.waiting.pop((connection, seq), None):
            self._mailbox.release([waiting.envelope])

    def forget(self, connection: Connection) -> None:
        """Drop the requests of a connection that was closed: its client sends them again."""
        for where, seq in [key for key in self.waiting if key[0] is connection]:
            self.cancel(where, seq)

    def _worth_it(self, until: asyncio.Future[None]) -> None:
        if until is self._until and not until.cancelled():
            self._retry()

    def _arm(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        delay = max(0.0, due - time.monotonic())
        self._timer = asyncio.get_running_loop().call_later(delay, self._refuse_due)
        self._timer_at = due

    def _refuse_due(self) -> None:
        self._timer = None
        now = time.monotonic()
        due = [(key, one) for key, one in self.waiting.items() if one.due <= now]
        for (connection, seq), waiting in due:
            self.cancel(connection, seq)
            self._refuse(waiting.envelope, waiting.otherwise)
        if self.waiting:
            self._arm(min(one.due for one in self.waiting.values()))
