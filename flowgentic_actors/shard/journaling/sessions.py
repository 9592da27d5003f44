"""Replies to writes, remembered until their callers have received them.

After a reconnect a client sends unfinished requests again under their old numbers. A write that is
remembered here is answered from memory and not done twice.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from itertools import takewhile

from flowgentic_actors.errors import InvalidRequestError, RejectedError
from flowgentic_actors.shard.journaling.entries import SessionState

KEEP_US = 25 * 3600 * 1_000_000
"""A session that wrote nothing for this long is forgotten; a request waits one day at most."""

MOST_SESSIONS = 100_000

MOST_REPLIES = 1 << 18
"""Of one session: some 40 MB. Each waits for the oldest request that the session has open."""


class _Session:
    __slots__ = ("low", "replies", "used_us")

    def __init__(self) -> None:
        self.low = 0
        self.replies: dict[int, bytes] = {}
        self.used_us = 0

    def forget(self, low: int) -> None:
        """Drop the replies to requests that the session has finished."""
        self.low = low
        # They are in the order of their numbers, but for what was sent again: what such a one keeps
        # from being dropped now is dropped a little later.
        for done in list(takewhile(low.__gt__, self.replies)):
            del self.replies[done]


class Sessions:
    """Replies to writes, by session and sequence number."""

    def __init__(self) -> None:
        self._sessions: OrderedDict[bytes, _Session] = OrderedDict()  # least recently used first

    def __len__(self) -> int:
        return len(self._sessions)

    def recall(self, session_id: bytes, seq: int) -> bytes | None:
        """The remembered reply to a write, None when the write is new.

        Raises:
            InvalidRequestError: If the session said that it does not wait for it any more.
        """
        session = self._sessions.get(session_id)
        if session is None:
            return None
        if seq < session.low:
            raise InvalidRequestError(
                f"request {seq} was finished before request {session.low} was sent"
            )
        return session.replies.get(seq)

    def admit(self, session_id: bytes, low: int) -> None:
        """Make sure that one more reply can be remembered.

        Raises:
            RejectedError: If the session has too many that it may still ask for.
        """
        session = self._sessions.get(session_id)
        if session is None:
            return
        if low > session.low:
            session.forget(low)
        if len(session.replies) >= MOST_REPLIES:
            raise RejectedError(
                f"{len(session.replies)} later writes of this client were answered while its "
                f"request {session.low} is open, and are remembered for as long as it is. Wait for "
                "that request or cancel it, then write again"
            )

    def remember(self, session_id: bytes, seq: int, low: int, reply: bytes, now_us: int) -> None:
        """Remember the reply to a write, and drop those that the session does not wait for."""
        session = self._sessions.get(session_id)
        if session is None:
            session = self._sessions[session_id] = _Session()
            session.used_us = now_us
            self._expire(now_us)  # only a new session makes them more
        self._sessions.move_to_end(session_id)
        session.used_us = now_us
        if low > session.low:
            session.forget(low)
        session.replies[seq] = reply

    def states(self) -> Iterator[SessionState]:
        """All remembered replies, least recently used session first."""
        for session_id, session in self._sessions.items():
            yield SessionState(session_id, session.low, session.used_us, dict(session.replies))

    def restore(self, states: Iterable[SessionState]) -> None:
        """Restore the replies that `states` returned."""
        for state in states:
            session = self._sessions[state.session] = _Session()
            session.low, session.used_us = state.low, state.used_us
            session.replies = dict(state.replies)

    def _expire(self, now_us: int) -> None:
        while self._sessions:
            oldest = next(iter(self._sessions.values()))
            if len(self._sessions) <= MOST_SESSIONS and oldest.used_us > now_us - KEEP_US:
                return
            self._sessions.popitem(last=False)
