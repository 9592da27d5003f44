"""A short form of the simulation: what must not happen, and that the same seed finds the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from tests.simulation import losses, placing, resizing, silence
from tests.simulation.cluster import BROADCAST, DELTA, SimulatedCluster, TellPolicy
from tests.simulation.conditions import Chance, Conditions
from tests.simulation.plots import why_no_plots
from tests.simulation.silence import NEVER, Pause, watch

NODES = 30
MANNERS = pytest.mark.parametrize("policy", [BROADCAST, DELTA], ids=lambda policy: policy.name)

ROUGH = Conditions(loss=0.02, drift=0.02, starved_every=20.0, starved=0.4)
"""A bad network, clocks that drift apart by 4 %, and nodes that stand still all the time."""


@MANNERS
def test_nobody_is_lost_while_all_goes_well(policy: TellPolicy) -> None:
    cluster = SimulatedCluster(NODES, 1, policy=policy)
    cluster.open(30.0)
    cluster.attach(NODES)
    cluster.run(60.0)

    assert cluster.two_answered == []
    assert not [event for _, event in cluster.events if event.kind == "node_lost"]
    assert cluster.complete
    assert cluster.worked / cluster.agenda.now < 0.2


@MANNERS
def test_everybody_soon_knows_of_a_loss_of_power(policy: TellPolicy) -> None:
    found = losses.power_losses(NODES, 2, 4, 2, policy)

    assert found.detected.count == 8
    assert 2.4 < found.detected.p50 <= found.detected.most < 3.6
    assert found.leading.most < 4.0
    assert found.last_client.most < 4.5
    assert len(found.samples) == found.leading.count * NODES
    assert (found.two_answered, found.others_lost) == (0, 0)


@MANNERS
@pytest.mark.parametrize("seed", [1, 2])
def test_a_cut_that_heals_loses_nothing(policy: TellPolicy, seed: int) -> None:
    found = losses.cut_off(NODES, NODES * 3 // 10, 10.0, seed, policy, clients=5)

    assert (found.two_answered, found.others_lost, found.lost) == (0, 0, 0)
    assert 0 < found.back < 5.0
    assert 0 < found.whole < 20.0
    assert found.curve[0][1] == found.curve[-1][1] == NODES


def test_two_nodes_never_answer_when_all_goes_badly() -> None:
    cluster = SimulatedCluster(NODES, 1, ROUGH, DELTA)
    cluster.open(60.0)
    names = sorted(cluster.nodes)[1:]
    for first in range(0, 20, 4):
        cluster.network.cut |= set(names[first : first + 8])
        cluster.run(4.0)
        cluster.restore(set(names))
        cluster.power_off([names[first]])
        cluster.run(6.0)

    assert [event for _, event in cluster.events if event.kind == "node_lost"]
    assert cluster.two_answered == []


def test_two_that_answer_would_be_found() -> None:
    """The simulation's own eyes: leases that the host forgets let two nodes answer."""
    cluster = SimulatedCluster(NODES, 1)
    cluster.open(30.0)
    cut = set(sorted(cluster.nodes)[5:9])
    cluster.network.cut |= cut
    for name in sorted(cut):
        cluster.nodes[name].lease.until = 1e9
    cluster.run(8.0)

    assert {name for _, _, one, other in cluster.two_answered for name in (one, other)} & cut


def test_the_same_seed_finds_the_same() -> None:
    runs = [losses.cut_off(NODES, 9, 5.0, 7, DELTA) for _ in range(2)]

    assert msgspec.json.encode(runs[0]) == msgspec.json.encode(runs[1])
    assert losses.cut_off(NODES, 9, 5.0, 8, DELTA).curve != runs[0].curve


# ---------------------------------------------------------------------- nodes come and go


@pytest.mark.parametrize("change", resizing.CHANGES)
@pytest.mark.parametrize("conditions", [Conditions(), ROUGH], ids=["usual", "rough"])
def test_slots_move_and_somebody_answers_who_has_them(
    change: resizing.Change, conditions: Conditions
) -> None:
    found = resizing.resized(12, change, 1, conditions=conditions)

    assert (found.two_answered, found.unstored) == (0, 0)
    assert found.copied >= found.needed > 0
    if conditions.loss < 0.01:  # otherwise, others are lost as well
        assert found.most_led == 1
        assert found.silences.most < 1.0
        if change in ("one more", "one less"):
            assert (found.left, found.begun_anew) == (found.needed, 0)


def test_slots_that_are_another_shards_too_soon_would_be_found() -> None:
    """The simulation's own eyes: a move that is decided before anything was copied."""
    cluster = SimulatedCluster(12, 1)
    cluster.open(30.0)
    cluster.nodes["n0005"].paused_until = cluster.agenda.now + 1.0  # and has a lease meanwhile
    number = cluster.placement.moves.begin(5, 6, [5 * 4096 // 12 + 9], 1 << 20)
    cluster.placement.moves.commit(number)
    cluster.run(2.0)

    assert {name for _, name in cluster.unstored} == {"n0006"}
    assert {(one, other) for _, _, one, other in cluster.two_answered} <= {
        ("n0005", "n0006"),
        ("n0006", "n0005"),
    }
    assert cluster.two_answered


# ---------------------------------------------------------------------- pauses


def test_hours_of_pauses_lose_nobody() -> None:
    found = silence.day(NODES, 3.0, 3, Conditions(suspended_per_day=8))

    assert found.played > 200
    assert found.suspended == 1
    assert found.lost == 0
    assert found.longest_silence < 3.0


def test_long_pauses_do_lose_a_node_and_short_ones_do_not() -> None:
    shares = dict(silence.lost_by_length([1.5, 2.0, 2.4, 4.0], 200, 1))

    assert shares == {1.5: 0.0, 2.0: 0.0, 2.4: 0.0, 4.0: 1.0}


def test_a_host_that_stands_still_loses_nobody() -> None:
    chance = Chance(1, Conditions())

    found = watch(chance, Conditions(), NEVER, Pause(1.0, 3600.0))

    assert not found.lost
    assert found.fenced > 3000  # the node answered nothing meanwhile


def test_a_node_of_a_suspended_job_may_go_on_a_little_later() -> None:
    shares = dict(silence.lost_by_length([0.5, 1.0, 2.0, 4.0], 100, 1, suspended=True))

    assert shares == {0.5: 0.0, 1.0: 0.0, 2.0: 0.0, 4.0: 1.0}


# ---------------------------------------------------------------------- places


def test_slots_are_spread_as_evenly_as_their_number_allows() -> None:
    assert [round(placing.balance(n, 20_000, 1).slots, 2) for n in (10, 100)] == [1.0, 1.0]
    assert 1.2 < placing.balance(1000, 1000, 1).slots < 1.25


def test_a_shard_more_moves_little() -> None:
    found = placing.moved(50)

    assert found.added <= 1.2 * found.ideal
    assert found.removed <= 1.25 / 50


def test_nothing_spreads_one_busy_thread() -> None:
    found = placing.balance(100, 20_000, 1)

    assert found.uniform < 1.5
    for exponent, alone in found.alone.items():
        assert found.zipf[exponent] >= alone


def test_a_wide_search_waits_for_the_slowest() -> None:
    means = [placing.fan_out(shards, 2000, 1).slowest for shards in (1, 10, 100)]

    assert means == sorted(means)


def test_a_beat_costs_the_same_however_many_nodes_there_are() -> None:
    few, many = placing.loads(20), placing.loads(400)

    assert many.heard < 6 * few.heard + 20e-6  # it was 20 times when all shards were looked at
    assert many.assignments < 6 * few.assignments + 20e-6
    assert many.places_bytes < 200 * 400  # one certificate for all


# ---------------------------------------------------------------------- the command


def test_the_command_prints_tables(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.simulation"]
    command += ["--nodes", "12", "--hours", "0.1"]
    draws = why_no_plots() is None
    if draws:
        command += ["--plots", str(tmp_path)]

    ran = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)

    assert ran.returncode == 0, ran.stderr
    for words in ("Busiest shard", "Loss of power", "cut off", "Slots that", "Pauses", "Finding"):
        assert words in ran.stdout
    assert len(list(tmp_path.glob("scale-*.png"))) == (5 if draws else 0)
