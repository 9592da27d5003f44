"""What a host answers, and how it ends."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from flowgentic_actors.cluster.host.ending import ENDING_FILE
from flowgentic_actors.cluster.protocol.host import (
    Acknowledged,
    AttachRank,
    AwaitRanks,
    Describe,
    Description,
    End,
    GetShardMap,
    Heartbeat,
    HeartbeatReply,
    LoopBlocked,
    RanksReply,
    Rebalance,
    RebalanceReply,
    ShardMap,
)
from flowgentic_actors.errors import RejectedError
from tests.support.counter import PATIENCE
from tests.support.host_processes import host_spec, running_host


def test_a_cluster_of_one_node_is_told_and_has_nothing_to_rebalance(folder: Path) -> None:
    with running_host(host_spec(folder)) as host:
        found = host.ask(Describe(), Description)
        assert not found.changes
        assert found.host is None
        assert [place.name for place in found.shard_map.locations] == ["shard-0", "shard-1"]
        assert all(Path(place.path).is_socket() for place in found.shard_map.locations)
        assert host.ask(GetShardMap(0, 0.0), ShardMap) == found.shard_map

        status = host.status
        assert [(actor.state, actor.epoch) for actor in status.actors] == [("running", 1)] * 2
        assert sum(actor.slots for actor in status.actors) == 4096
        assert [(node.state, node.leads) for node in status.nodes] == [("up", 2)]
        assert host.events("cluster_opened") == ["2 actors by subprocess"]

        with pytest.raises(RejectedError, match="opened on one node"):
            host.ask(Rebalance(1, 0, (), 1 << 20, 0.0), RebalanceReply)
        with pytest.raises(RejectedError, match="no other nodes"):
            host.ask(Heartbeat("node-1", "", 0, (), ()), HeartbeatReply)
        assert host.watchdog.close(PATIENCE) == ""
    assert host.watchdog.drained


def test_only_the_owner_ends_the_work_and_a_host_stays_to_say_why(folder: Path) -> None:
    with running_host(host_spec(folder)) as host:
        with pytest.raises(RejectedError, match="only the cluster's owner"):
            host.ask(End("no"), Acknowledged)
        host.watchdog.end("enough")
        host.until(lambda: {actor.state for actor in host.status.actors} == {"stopped"})
        assert host.events("cluster_closing") == ["enough"]
        assert (folder / ENDING_FILE).read_text() == "enough"

        host.kill()  # its successor completes the closing, and starts no actors
        host.until(lambda: host.status.host_restarts == 1)
        assert host.events("cluster_closing") == ["enough", "enough"]
        states = [(actor.state, actor.epoch) for actor in host.status.actors]
        assert states == [("stopped", 1)] * 2


def test_a_host_ends_with_its_owner(folder: Path) -> None:
    with running_host(host_spec(folder)) as host:
        status = host.status
        pids = [status.host_pid, *(actor.pid for actor in status.actors)]
        processes = [psutil.Process(pid) for pid in pids]
        host.watchdog.abandon()
        psutil.wait_procs([p for p in processes if p.is_running()], PATIENCE)
        assert not [process for process in processes if process.is_running()]


def test_ranks_and_blocked_programs_are_noted(folder: Path) -> None:
    with running_host(host_spec(folder)) as host:
        assert host.ask(AwaitRanks(3, 0.0), RanksReply) == RanksReply((), (1, 2))
        host.ask(AttachRank(1), Acknowledged)
        assert host.ask(AwaitRanks(2, PATIENCE), RanksReply) == RanksReply((), ())
        host.ask(LoopBlocked("pid 1: for 2 s"), Acknowledged)
        assert host.events("loop_blocked") == ["pid 1: for 2 s"]
