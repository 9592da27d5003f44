"""The mailbox: bounded, in order, fair, and nothing in it is lost that somebody waits for."""

from __future__ import annotations

from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from flowgentic_actors.actors.mailbox import Envelope, Mailbox
from flowgentic_actors.wire.server_connection import Connection


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


def test_requests_of_a_connection_come_out_in_the_order_they_went_in() -> None:
    mailbox, one = Mailbox(100, 100), sender()
    for seq in range(10):
        mailbox.put(envelope(one, seq))
    assert seqs(mailbox, 4) == [0, 1, 2, 3]
    mailbox.put(envelope(one, 10))
    assert seqs(mailbox) == [4, 5, 6, 7, 8, 9, 10]
    assert seqs(mailbox) == []


def test_connections_take_turns_also_when_some_requests_are_put_back() -> None:
    mailbox, greedy, modest, late = Mailbox(100, 100), sender(), sender(), sender()
    for seq in range(5):
        mailbox.put(envelope(greedy, seq))
    mailbox.put(envelope(modest, 10))
    taken = mailbox.take(1000)
    assert [each.seq for each in taken] == [0, 10, 1, 2, 3, 4]
    mailbox.put_back(taken[1:], greedy)
    mailbox.put(envelope(late, 20))
    mailbox.put(envelope(modest, 11))
    assert seqs(mailbox) == [10, 20, 11]
    assert seqs(mailbox, 2) == [1, 2]
    mailbox.put(envelope(late, 21))
    assert seqs(mailbox) == [3, 21, 4]
    assert mailbox.bytes == 0


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
    assert seqs(mailbox) == [0, 0, 1, 2, 2, 3]  # by turns; numbers are each connection's own
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


def test_a_lost_connection_is_not_resumed_and_its_requests_are_dropped() -> None:
    mailbox, gone, other = Mailbox(3, 100), sender(), sender()
    mailbox.put(envelope(gone, 0))
    mailbox.put(envelope(gone, 1))
    mailbox.put(envelope(other, 2))
    mailbox.put(envelope(gone, 3))
    assert (gone.pauses, other.pauses) == (1, 1)
    mailbox.forget(gone)
    assert (gone.pauses, other.pauses) == (1, 0)
    assert seqs(mailbox) == [2]
    assert mailbox.bytes == 0


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
    expected: dict[int, list[int]] = {number: [] for number in range(3)}
    received: dict[int, list[int]] = {number: [] for number in range(3)}

    def take(most: int) -> None:
        for taken in mailbox.take(most):
            received[senders.index(taken.connection)].append(taken.seq)

    for seq, (step, a, b) in enumerate(steps):
        if step == "put":
            mailbox.put(envelope(senders[a], seq, b))
            expected[a].append(seq)
        elif step == "take":
            take(a)
        elif b < seq:  # a cancellation always comes after its request
            waits = any(e.seq == b for e in mailbox._queues.get(senders[a], ()))
            mailbox.cancel(senders[a], b)
            if waits and b in expected[a]:
                expected[a].remove(b)
        assert {s.pauses for s in senders} <= {0, 1}
    while len(mailbox):
        take(1)
    assert received == expected
    assert mailbox.bytes == 0
    assert [s.pauses for s in senders] == [0, 0, 0]
