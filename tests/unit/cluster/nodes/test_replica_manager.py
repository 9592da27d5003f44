"""What orders mean for the actors of a node."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from flowgentic_actors.actors.child import ChildState
from flowgentic_actors.actors.spec import ChildSpec
from flowgentic_actors.cluster.nodes.replica_manager import ReplicaManager
from flowgentic_actors.cluster.nodes.shard_specs import NodeMemory
from flowgentic_actors.cluster.protocol.assignments import NodeAssignments
from flowgentic_actors.shard.assignment import Assignment
from flowgentic_actors.shard.settings import ActorSettings

pytestmark = pytest.mark.anyio


@dataclass
class _Child:
    spec: ChildSpec
    state: ChildState = ChildState.RUNNING


@dataclass
class _Supervisor:
    """Notes what it is asked for."""

    asked: list[str] = field(default_factory=list)
    all: dict[str, _Child] = field(default_factory=dict)

    @property
    def children(self) -> list[_Child]:
        return list(self.all.values())

    async def add(self, _tasks: object, spec: ChildSpec, _told: object) -> None:
        self.asked.append(f"add {spec.name}")
        self.all[spec.name] = _Child(spec)

    async def remove(self, name: str) -> None:
        self.asked.append(f"remove {name}")
        del self.all[name]

    def tell(self, name: str, _body: object) -> None:
        self.asked.append(f"tell {name}")

    def take(self) -> list[str]:
        asked, self.asked = self.asked, []
        return asked


async def test_one_that_has_failed_is_started_again_by_another_term_alone(tmp_path: Path) -> None:
    supervisor = _Supervisor()
    members = ReplicaManager(
        cast("Any", supervisor),
        cast("Any", None),
        NodeMemory(
            actor=ActorSettings(),
            replicated=True,
            generation=tmp_path,
            folder=tmp_path,
            ip="127.0.0.1",
        ),
        certificate="",
    )

    async def ordered(term: int, follower: str = "b") -> list[str]:
        assignments = (
            Assignment(0, "leader", term, follower=follower),
            Assignment(1, "follower", term),
        )
        await members.carry_out(NodeAssignments(term, assignments))
        return supervisor.take()

    assert await ordered(1) == ["add shard-0", "add shard-1"]
    assert await ordered(2) == ["tell shard-0", "tell shard-1"]
    supervisor.all["shard-1"].state = ChildState.FAILED
    assert await ordered(2) == []
    assert await ordered(2, follower="c") == ["tell shard-0"]
    assert await ordered(3) == ["tell shard-0", "remove shard-1", "add shard-1"]
    assert await ordered(4) == ["tell shard-0", "tell shard-1"]
