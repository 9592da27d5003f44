"""The restart policy: how often, and after which pause."""

from __future__ import annotations

import signal

import pytest

from flowgentic_actors.actors.restarts import STABLE, RestartPolicy, was_killed


def test_after_a_good_life_a_restart_is_immediate() -> None:
    policy = RestartPolicy(100, 30.0)
    assert [policy.next_delay(now, STABLE) for now in range(5)] == [0.0] * 5


def test_short_lives_are_followed_by_longer_and_longer_waits() -> None:
    policy = RestartPolicy(100, 1e9)
    delays = [policy.next_delay(now, 0.0) for now in range(20)]
    ceilings = [min(policy.LONGEST, policy.FIRST * 2**n) for n in range(20)]
    for delay, ceiling in zip(delays, ceilings, strict=True):
        assert delay is not None
        assert ceiling / 2 <= delay <= ceiling


def test_who_is_killed_young_waits_longer_too_but_not_long() -> None:
    policy = RestartPolicy(100, 1e9)
    delays = [policy.next_delay(now, 0.1, killed=True) or 0.0 for now in range(20)]
    assert max(delays) <= policy.LONGEST_KILLED <= 1.0
    assert min(delays[5:]) >= policy.LONGEST_KILLED / 2
    crashed = policy.next_delay(20, 0.1)  # and then it is a crash loop
    assert crashed is not None
    assert crashed >= policy.LONGEST / 2


@pytest.mark.parametrize(
    ("code", "killed"),
    [
        *[(-signal.SIGKILL, True), (-signal.SIGTERM, True), (None, True)],
        *[(-signal.SIGSEGV, False), (-signal.SIGABRT, False), (0, False), (1, False)],
    ],
)
def test_a_kill_is_told_from_a_crash(code: int | None, killed: bool) -> None:
    assert was_killed(code) is killed


def test_a_good_life_ends_a_row_of_short_ones() -> None:
    policy = RestartPolicy(100, 30.0)
    for now in range(10):
        policy.next_delay(now, 0.0)
    assert policy.next_delay(10, STABLE) == 0.0
    delay = policy.next_delay(11, 0.0)
    assert delay is not None
    assert delay <= policy.FIRST


def test_an_actor_that_never_served_lived_shortly() -> None:
    delay = RestartPolicy(1, 30.0).next_delay(5.0, 5.0 - float("inf"))
    assert delay is not None
    assert delay > 0


def test_more_restarts_than_allowed_in_the_period_are_refused() -> None:
    policy = RestartPolicy(3, 10.0)
    assert [policy.next_delay(now, 1.0) for now in (0, 1, 2)] == [0.0] * 3
    assert policy.next_delay(9.9, 1.0) is None
    assert policy.next_delay(10.0, 1.0) == 0.0  # the first of them is too long ago to count
    assert policy.next_delay(10.5, 1.0) is None


def test_no_restarts_may_be_allowed_at_all() -> None:
    assert RestartPolicy(0, 10.0).next_delay(0.0, 1.0) is None
