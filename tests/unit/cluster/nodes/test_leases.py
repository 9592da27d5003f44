"""Leases: a node's own end of one comes before the host's, and silence is counted in ticks."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from flowgentic_actors.cluster.nodes.leases import DRIFT, GrantedLeases, HeldLease

LEASE, TIMEOUT, TICK = 2.5, 3.0, 0.1

rates = st.floats(0.98, 1.02)  # of two clocks, so they drift apart by up to 4 %
seconds = st.floats(0, 30)


def leases() -> GrantedLeases:
    return GrantedLeases(LEASE, TIMEOUT, TICK)


def test_a_node_without_a_lease_answers_nothing() -> None:
    held = HeldLease(LEASE)

    assert not held.is_valid(-1e9)
    assert not held.is_valid(0.0)
    assert held.until == -math.inf


def test_a_lease_counts_from_the_question_and_ends_on_time() -> None:
    held = HeldLease(LEASE)

    assert held.granted(10.0) == 10.0 + LEASE
    assert held.is_valid(10.0 + LEASE - 1e-6)
    assert not held.is_valid(10.0 + LEASE)


def test_the_answer_to_an_older_question_does_not_shorten_a_lease() -> None:
    held = HeldLease(LEASE)
    held.granted(10.0)

    assert held.granted(8.0) == 10.0 + LEASE


@settings(max_examples=300, database=None)
@given(
    node_rate=rates,
    host_rate=rates,
    offset=st.floats(-1e6, 1e6),
    grants=st.lists(st.tuples(seconds, seconds, seconds), min_size=1, max_size=8),
)
def test_the_node_s_end_comes_first_whatever_the_network_does(
    node_rate: float,
    host_rate: float,
    offset: float,
    grants: list[tuple[float, float, float]],
) -> None:
    """Each grant: the pause before the question, its way to the host, and the way back."""
    held, granted = HeldLease(LEASE), leases()
    now = 0.0
    latest = 0.0
    for pause, there, back in grants:
        asked = now + pause
        granted.granted("n", (asked + there) * host_rate)
        held.granted(asked * node_rate + offset)
        latest = max(latest, asked + there)
        now = asked + there + back
    node_end = (held.until - offset) / node_rate

    for later in (0.0, 1e-4, 0.1, 10.0):
        assert granted.may_answer("n", (node_end - 1e-4) * host_rate) or node_end < 0
        free = latest + LEASE * (1 + DRIFT) / host_rate + later + 1e-6
        assert not granted.may_answer("n", free * host_rate)
        assert not held.is_valid(free * node_rate + offset)


def test_who_was_granted_nothing_holds_nothing() -> None:
    granted = leases()
    granted.heard("n")

    assert not granted.may_answer("n", 0.0)
    assert not granted.may_answer("unknown", 0.0)
    assert granted.silence("unknown") == 0.0


def test_a_silent_node_is_lost_at_the_timeout_and_not_before() -> None:
    granted = leases()
    granted.tick(0.0)
    granted.heard("n")
    granted.heard("m")
    ticks = [n * TICK for n in range(1, 40)]
    lost = []
    for now in ticks:
        granted.heard("m")
        lost += [(now, node) for node in granted.tick(now)]

    assert lost[0][1] == "n"
    assert abs(lost[0][0] - TIMEOUT) < TICK + 1e-6
    assert {node for _, node in lost} == {"n"}


def test_a_node_with_a_lease_is_not_lost_however_silent_it_is() -> None:
    granted = GrantedLeases(10.0, TIMEOUT, TICK)
    granted.tick(0.0)
    granted.heard("n")
    granted.granted("n", 0.0)
    lost = [n * TICK for n in range(1, 130) if granted.tick(n * TICK)]

    assert lost[0] >= 10.0 * (1 + DRIFT)


def test_a_node_that_is_not_watched_is_not_lost() -> None:
    granted = leases()
    granted.tick(0.0)
    granted.heard("n")
    granted.forget("n")
    granted.forget("n")

    assert not any(granted.tick(n * TICK) for n in range(1, 100))


@settings(max_examples=200, database=None)
@given(
    stalls=st.lists(st.floats(0.05, 1e6), min_size=1, max_size=14),
)
def test_a_host_that_was_suspended_loses_nobody(stalls: list[float]) -> None:
    """Fourteen ticks, however late each of them, are at most 2.8 s of silence."""
    granted = leases()
    granted.tick(0.0)
    granted.heard("n")
    now = 0.0
    for stall in stalls:
        now += stall
        assert granted.tick(now) == []

    assert granted.silence("n") <= 2 * TICK * len(stalls) + 1e-9


def test_ticks_that_come_a_little_late_count_in_full() -> None:
    granted = leases()
    granted.tick(0.0)
    granted.heard("n")
    for n in range(1, 11):
        granted.tick(n * 0.15)

    assert abs(granted.silence("n") - 1.5) < 1e-9
