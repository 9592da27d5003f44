"""The mailbox: bounded, in order, and nothing in it is lost."""

from __future__ import annotations

from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from flowgentic_actors.actors.mailbox import Envelope, Mailbox
from flowgentic_actors.wire.server import Connection


class Sender:
    """A connection as a mailbox sees it."""

    def __init__(self) -> None:
        self.pauses = 0

    def pause(self) -> None:
        self.pauses += 1

    def resume(self) -> None:
        self.pauses -= 1


def sender() -> Any:
    return cast("Connection", Sender())


def envelope(connection: Any, seq: int, size: int = 1) -> Envelope:
    return Envelope(b"", seq, 0, Raw(b"x" * size), connection, 0.0)


def seqs(mailbox: Mailbox, most: int = 1000) -> list[int]:
    return [envelope.seq for envelope in mailbox.take(most)]


def test_requests_come_out_in_the_order_they_went_in() -> None:
    mailbox, one, two = Mailbox(100, 100), sender(), sender()
    for seq in range(10):
        mailbox.put(envelope(one if seq % 3 else two, seq))
    assert seqs(mailbox, 4) == [0, 1, 2, 3]
    mailbox.put(envelope(one, 10))
    assert seqs(mailbox) == [4, 5, 6, 7, 8, 9, 10]
    assert seqs(mailbox) == []


def test_who_fills_it_is_paused_and_resumed_when_it_is_half_empty() -> None:
    mailbox, greedy, modest = Mailbox(4, 100), sender(), sender()
    mailbox.put(envelope(modest, 0))
    for seq in (1, 2, 3):
        assert greedy.pauses == 0
        mailbox.put(envelope(greedy, seq))
    assert (greedy.pauses, modest.pauses) == (1, 0)
    assert mailbox.full
    seqs(mailbox, 1)
    assert greedy.pauses == 1  # or it would be paused again at once
    seqs(mailbox, 1)
    assert greedy.pauses == 0


def test_what_comes_in_one_frame_is_taken_though_it_is_more_than_the_bound() -> None:
    mailbox, greedy = Mailbox(4, 100), sender()
    for seq in range(10):
        mailbox.put(envelope(greedy, seq))
    assert greedy.pauses == 1
    assert mailbox.most_requests == 10
    assert seqs(mailbox) == list(range(10))
    assert greedy.pauses == 0


def test_bytes_are_bounded_as_well() -> None:
    mailbox, greedy = Mailbox(100, 1000), sender()
    mailbox.put(envelope(greedy, 0, 999))
    assert greedy.pauses == 0
    mailbox.put(envelope(greedy, 1, 501))
    assert greedy.pauses == 1
    assert mailbox.bytes == mailbox.most_bytes == 1500
    seqs(mailbox, 1)
    assert greedy.pauses == 1  # 501 bytes are more than half
    seqs(mailbox, 1)
    assert (greedy.pauses, mailbox.bytes) == (0, 0)


def test_one_request_larger_than_the_bound_goes_through() -> None:
    mailbox, greedy = Mailbox(1, 10), sender()
    mailbox.put(envelope(greedy, 0, 10_000))
    assert seqs(mailbox) == [0]
    assert greedy.pauses == 0


def test_cancelled_requests_are_left_out() -> None:
    mailbox, one, two = Mailbox(100, 100), sender(), sender()
    for seq in range(4):
        mailbox.put(envelope(one, seq))
        mailbox.put(envelope(two, seq))
    mailbox.cancel(one, 1)
    mailbox.cancel(two, 3)
    assert seqs(mailbox) == [0, 0, 1, 2, 2, 3]  # numbers are each connection's own
    assert mailbox.bytes == 0


def test_a_cancellation_that_comes_too_late_changes_nothing() -> None:
    mailbox, one = Mailbox(100, 100), sender()
    mailbox.put(envelope(one, 0))
    mailbox.put(envelope(one, 1))
    seqs(mailbox, 1)
    mailbox.cancel(one, 0)
    assert seqs(mailbox) == [1]


def test_cancellations_do_not_pile_up_in_a_mailbox_that_is_never_empty() -> None:
    mailbox, one = Mailbox(1000, 1000), sender()
    mailbox.put(envelope(one, 0))
    for seq in range(1, 10_000):
        mailbox.put(envelope(one, seq))
        assert seqs(mailbox, 1) == [seq - 1]
        mailbox.cancel(one, seq - 1)
        assert len(mailbox._cancelled) <= 4


def test_a_lost_connection_is_not_resumed_and_its_requests_stay() -> None:
    mailbox, gone = Mailbox(2, 100), sender()
    for seq in range(3):
        mailbox.put(envelope(gone, seq))
    mailbox.forget(gone)
    assert seqs(mailbox) == [0, 1, 2]
    assert gone.pauses == 1


operations = st.one_of(
    st.tuples(st.just("put"), st.integers(0, 2), st.integers(0, 9)),
    st.tuples(st.just("take"), st.integers(1, 5), st.just(0)),
    st.tuples(st.just("cancel"), st.integers(0, 2), st.integers(0, 30)),
)


@settings(deadline=None)
@given(st.lists(operations, max_size=60), st.integers(1, 6), st.integers(1, 30))
def test_whatever_happens_nothing_is_lost_and_nobody_stays_paused(
    steps: list[tuple[str, int, int]], most_requests: int, most_bytes: int
) -> None:
    mailbox = Mailbox(most_requests, most_bytes)
    senders = [sender() for _ in range(3)]
    expected: list[tuple[int, int]] = []
    received: list[tuple[int, int]] = []

    def take(most: int) -> None:
        received.extend((senders.index(e.connection), e.seq) for e in mailbox.take(most))

    waiting: list[tuple[int, int]] = []
    for seq, (step, a, b) in enumerate(steps):
        if step == "put":
            mailbox.put(envelope(senders[a], seq, b))
            waiting.append((a, seq))
            expected.append((a, seq))
        elif step == "take":
            take(a)
            del waiting[:a]
        elif b < seq:  # a cancellation always comes after its request
            mailbox.cancel(senders[a], b)
            if (a, b) in waiting and (a, b) in expected:
                expected.remove((a, b))
        assert {s.pauses for s in senders} <= {0, 1}
    while len(mailbox):
        take(1)
    assert received == expected
    assert mailbox.bytes == 0
    assert [s.pauses for s in senders] == [0, 0, 0]
