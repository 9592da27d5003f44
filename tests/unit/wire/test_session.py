"""Sessions: which requests are unfinished, and what an error says about what happened."""

from __future__ import annotations

from typing import get_args

import pytest

from flowgentic_actors.errors import (
    ActorUnavailableError,
    AuthenticationError,
    BackpressureError,
    ClusterClosedError,
    ClusterClosingError,
    InvalidRequestError,
    MemoryFailedError,
    MemoryFullError,
    NotSentError,
    OutcomeUnknownError,
    RejectedError,
    ReplicaUnavailableError,
    RequestExpiredError,
    ShardLostError,
    SlotsMovedError,
    StorageError,
)
from flowgentic_actors.wire.addresses import Unreachable
from flowgentic_actors.wire.messages import Failure, FailureKind
from flowgentic_actors.wire.session import (
    Pending,
    Session,
    check_size,
    lost_error,
    overdue_error,
    refusal_error,
    untrusted_error,
)


def opened(session: Session[None], count: int) -> list[Pending[None]]:
    return [session.open(b"body", 5.0, 100.0, None) for _ in range(count)]


def test_requests_are_numbered_in_order_and_iterated_in_order() -> None:
    session: Session[None] = Session()
    assert [pending.seq for pending in opened(session, 3)] == [0, 1, 2]
    assert [pending.seq for pending in session] == [0, 1, 2]
    assert [pending.deadline for pending in session] == [105.0] * 3


def test_the_low_watermark_is_the_lowest_unfinished_number() -> None:
    session: Session[None] = Session()
    assert session.oldest_pending == 0
    opened(session, 3)
    session.settle(1)
    assert session.oldest_pending == 0
    session.settle(0)
    assert session.oldest_pending == 2
    session.settle(2)
    assert session.oldest_pending == 3
    assert len(session) == 0
    (pending,) = opened(session, 1)
    assert pending.seq == session.oldest_pending == 3


def test_a_request_is_settled_once() -> None:
    session: Session[None] = Session()
    (pending,) = opened(session, 1)
    assert session.settle(0) is pending
    assert session.settle(0) is None
    assert len(session) == 0


def test_sessions_have_names_of_their_own() -> None:
    names = {Session[None]().id for _ in range(100)}
    assert len(names) == 100
    assert {len(name) for name in names} == {16}


def test_every_refusal_but_one_is_an_error_that_says_nothing_happened() -> None:
    (pending,) = opened(Session(), 1)
    pending.attempts = 1
    errors = {
        kind: refusal_error(Failure(0, kind, "because"), pending, "shard-0")
        for kind in get_args(FailureKind)
    }
    assert {kind: type(error) for kind, error in errors.items()} == {
        "invalid": InvalidRequestError,
        "expired": RequestExpiredError,
        "storage": StorageError,
        "full": MemoryFullError,
        "replica": ReplicaUnavailableError,
        "moved": SlotsMovedError,
        "unknown": OutcomeUnknownError,
        "internal": RejectedError,
        "closing": ClusterClosingError,
        "failed": MemoryFailedError,
    }
    unknown = errors.pop("unknown")
    assert str(unknown) == "shard-0: because. Read before you repeat it"
    for error in errors.values():
        assert isinstance(error, RejectedError)
        assert str(error) == "shard-0: because"


def test_a_refusal_says_nothing_about_an_earlier_attempt() -> None:
    """The first may have been carried out and its answer lost with its connection."""
    (pending,) = opened(Session(), 1)
    pending.attempts = 2
    for kind in get_args(FailureKind):
        error = refusal_error(Failure(0, kind, "because"), pending, "shard-0")
        # What is invalid is so each time; a write that was done would have been answered.
        definite = {"invalid": InvalidRequestError, "moved": SlotsMovedError}
        assert type(error) is definite.get(kind, OutcomeUnknownError)


@pytest.mark.parametrize(
    ("sent", "congested", "cause", "error", "text"),
    [
        (False, False, None, ActorUnavailableError, "no connection was made"),
        (False, False, "refused", ActorUnavailableError, "refused"),
        (False, True, None, BackpressureError, "mailbox is full"),
        (True, False, None, OutcomeUnknownError, "may have happened"),
        (True, True, None, OutcomeUnknownError, "may have happened"),
        (True, False, "reset", OutcomeUnknownError, "connection lost: reset"),
    ],
)
def test_an_overdue_request_says_what_may_have_happened(
    sent: bool, congested: bool, cause: str | None, error: type[Exception], text: str
) -> None:
    (pending,) = opened(Session(), 1)
    pending.attempts = int(sent)
    found = overdue_error(pending, "shard-0", congested=congested, cause=cause)
    assert type(found) is error
    assert isinstance(found, NotSentError) is not sent
    assert not getattr(found, "ask_again", False)  # request_timeout is the time of all attempts
    for part in ("shard-0", "5 s", "request_timeout", text):
        assert part in str(found)


def test_a_wrong_secret_does_not_hide_that_a_request_was_sent_before() -> None:
    (pending,) = opened(Session(), 1)
    error = AuthenticationError("not the cluster's secret")
    assert type(untrusted_error(pending, "shard-0", error)) is ActorUnavailableError
    pending.attempts = 1
    assert type(untrusted_error(pending, "shard-0", error)) is OutcomeUnknownError


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        ({}, ShardLostError),
        ({"closing": True}, ClusterClosingError),
        ({"moved": True}, SlotsMovedError),
        ({"closed": True}, ClusterClosedError),
    ],
)
def test_a_request_to_an_actor_that_is_gone_says_whether_it_was_sent(
    flags: dict[str, bool], error: type[Exception]
) -> None:
    (pending,) = opened(Session(), 1)
    assert type(lost_error(pending, "shard-0", Unreachable("because", **flags))) is error
    pending.attempts = 1
    assert (
        type(lost_error(pending, "shard-0", Unreachable("because", **flags))) is OutcomeUnknownError
    )


def test_a_request_above_the_limit_is_refused() -> None:
    check_size(bytes(100), 100, "shard-0")
    with pytest.raises(InvalidRequestError, match="max_message_bytes"):
        check_size(bytes(101), 100, "shard-0")
