"""A client's session: correlates requests and answers. No I/O."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Final, Generic, TypeVar

from msgspec import Struct

from flowgentic_actors.deadlines import SLICE
from flowgentic_actors.errors import (
    ActorUnavailableError,
    AuthenticationError,
    BackpressureError,
    ClusterClosedError,
    ClusterClosingError,
    FlowgenticError,
    InvalidRequestError,
    MemoryFailedError,
    MemoryFullError,
    OutcomeUnknownError,
    ProtocolError,
    RejectedError,
    ReplicaUnavailableError,
    RequestError,
    RequestExpiredError,
    ShardLostError,
    SlotsMovedError,
    StorageError,
)
from flowgentic_actors.wire.addresses import Unreachable
from flowgentic_actors.wire.messages import Failure, FailureKind

Waiter = TypeVar("Waiter")

_FAILURES: dict[FailureKind, type[RejectedError]] = {  # and `unknown`, which is none of them
    "invalid": InvalidRequestError,
    "expired": RequestExpiredError,
    "storage": StorageError,
    "full": MemoryFullError,
    "replica": ReplicaUnavailableError,
    "moved": SlotsMovedError,
    "internal": RejectedError,
    "closing": ClusterClosingError,
    "failed": MemoryFailedError,
}

_DEFINITE: Final = frozenset[FailureKind](("invalid", "moved"))
"""Refusals that hold for earlier attempts as well: had one been carried out, the actor would answer
it again, or knows that it would not have been."""

MAX_LOSSES: Final = 4
"""Connections that a request may lose, alone on them, before it is held to end its actor."""


class Pending(Struct, Generic[Waiter], eq=False):
    """Find a pending request by its number.

    Attributes:
        seq: Its sequence number.
        body: The encoded request.
        timeout: Seconds that the caller waits.
        deadline: When the caller gives up, on the caller's clock (`LoopClock`).
        waiter: What to tell.
        attempts: How often it may have reached the peer, each time on another connection.
        losses: Connections that were lost while it alone was out on them.
    """

    seq: int
    body: bytes
    timeout: float
    deadline: float
    waiter: Waiter
    attempts: int = 0
    losses: int = 0

    @property
    def sent(self) -> bool:
        """Whether any byte of the request may have reached the peer."""
        return self.attempts > 0


class Session(Generic[Waiter]):
    """The numbered requests of one sender to one actor.

    The session outlives connections: after a reconnect what is unfinished is sent again under the
    same numbers, and the actor answers what it did before from memory instead of doing it twice.
    """

    def __init__(self) -> None:
        self.id = secrets.token_bytes(16)
        self._next = 0
        self._pending: dict[int, Pending[Waiter]] = {}  # ascending, as numbers are given out

    def __len__(self) -> int:
        return len(self._pending)

    def __iter__(self) -> Iterator[Pending[Waiter]]:
        return iter(self._pending.values())

    @property
    def alone(self) -> bool:
        """Whether exactly one request is pending."""
        return len(self._pending) == 1

    @property
    def next(self) -> int:
        """The number of the next request."""
        return self._next

    @property
    def oldest_pending(self) -> int:
        """The lowest unfinished sequence number."""
        return next(iter(self._pending), self._next)

    def open(self, body: bytes, timeout: float, now: float, waiter: Waiter) -> Pending[Waiter]:
        """Number a new request, made `now` on the caller's clock."""
        pending = Pending(self._next, body, timeout, now + timeout, waiter)
        self._pending[self._next] = pending
        self._next += 1
        return pending

    def find(self, seq: int) -> Pending[Waiter] | None:
        """Find a pending request by its number."""
        return self._pending.get(seq)

    def settle(self, seq: int) -> Pending[Waiter] | None:
        """Take a request out; None when it is not pending any more."""
        return self._pending.pop(seq, None)


def refusal_error(failure: Failure, pending: Pending[Waiter], peer: str) -> RequestError:
    """The error for an actor's refusal."""
    if failure.kind == "unknown":
        return _unknown(f"{peer}: {failure.text}", "Read before you repeat it")
    if pending.attempts > 1 and failure.kind not in _DEFINITE:
        return _unknown(
            f"{peer}: {failure.text}",
            "It was sent before, on a connection that was lost: a write may have happened then",
        )
    return _FAILURES[failure.kind](f"{peer}: {failure.text}")


def may_ask_again(failure: Failure, pending: Pending[Waiter], left: float) -> bool:
    """Whether to resend a request that expired by the actor's clock only.

    The actor reads a clock, which goes on while the caller's loop is blocked or both are suspended.

    Args:
        failure: The actor's refusal.
        pending: The request; noted in it is that this attempt had no effect.
        left: Seconds that the caller still waits.
    """
    if failure.kind != "expired" or left <= 2 * SLICE:
        return False
    if pending.attempts == 1:
        pending.attempts = 0
    return True


def lethal_error(pending: Pending[Waiter], peer: str) -> RequestError:
    """The error of a request that seems to kill its actor each time it arrives."""
    return _unknown(
        f"{peer} ended {pending.losses} times in a row while it had this request and no other from "
        "here: the request seems to be what ends it, and is not sent again. See memory.events() "
        "for how the actor ended",
        ask_again=False,
    )


def _unknown(
    reason: str,
    meaning: str = "A write may have happened: read before you repeat it",
    *,
    ask_again: bool = True,
) -> OutcomeUnknownError:
    return OutcomeUnknownError(f"{reason}. {meaning}", reason=reason, ask_again=ask_again)


def check_size(body: bytes, max_bytes: int, peer: str) -> None:
    """Refuse a request that is too large: the actor would close the connection.

    Raises:
        InvalidRequestError: If it is too large.
    """
    if len(body) > max_bytes:
        raise InvalidRequestError(
            f"a request of {len(body)} bytes to {peer} exceeds the limit of {max_bytes} (setting: "
            "max_message_bytes). Nothing was sent"
        )


def check_name(found: str, expected: str | None) -> None:
    """Refuse a peer whose name is not the expected one.

    Raises:
        ProtocolError: If it is another one.
    """
    if expected is not None and found != expected:
        raise ProtocolError(f"{found} is at the address that was {expected}'s")


def untrusted_error(
    pending: Pending[Waiter], peer: str, error: AuthenticationError
) -> RequestError:
    """The error of a request whose actor's address answers with another secret."""
    if pending.sent:
        return _unknown(
            f"{peer} did not answer before its connection was lost; since then: {error}"
        )
    return ActorUnavailableError(f"{peer}: {error}. Nothing was sent")


def lost_error(pending: Pending[Waiter], peer: str, unreachable: Unreachable) -> FlowgenticError:
    """The error of a request to an actor that has ended."""
    reason = unreachable.reason
    if pending.sent:
        since = reason if unreachable.closed else f"it was lost: {reason}"
        return _unknown(f"{peer} did not answer before {since}")
    if unreachable.closed:
        return ClusterClosedError(f"{reason}. Nothing was sent")
    if unreachable.closing:
        return ClusterClosingError(f"{peer}: {reason}")
    if unreachable.moved:
        return SlotsMovedError(f"{peer} has ended: {reason}. Nothing was sent")
    return ShardLostError(f"{peer} is lost: {reason}. Nothing was sent; other shards serve")


def overdue_error(
    pending: Pending[Waiter], peer: str, *, congested: bool, cause: str | None
) -> RequestError:
    """The error of a request whose deadline passed.

    Args:
        pending: The request.
        peer: Name of the actor.
        congested: Whether a connection is up but takes no more bytes.
        cause: Why there is no connection, if there is none.
    """
    waited = f"{pending.timeout:.3g} s (setting: request_timeout)"
    if pending.sent:
        lost_since = f"; connection lost: {cause}" if cause else ""
        # All of the time is over: a read is not asked again either.
        return _unknown(f"{peer} did not answer within {waited}{lost_since}", ask_again=False)
    if congested:
        return BackpressureError(
            f"{peer} took no more requests for {waited}: its mailbox is full. Nothing was sent; "
            "try again later, or raise actors_per_node or mailbox_requests / mailbox_bytes"
        )
    return ActorUnavailableError(
        f"{peer} could not be reached for {waited}: {cause or 'no connection was made'}. Nothing "
        "was sent"
    )
