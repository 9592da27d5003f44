"""The specifications of shards' actors: what reaches the actor of what the opener decided."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from flowgentic_actors.actors.serving import make_actor
from flowgentic_actors.cluster.nodes.shard_specs import NodeMemory
from flowgentic_actors.shard.actor import ShardActor
from flowgentic_actors.shard.replication.replica_actor import ReplicatedShardActor
from flowgentic_actors.shard.settings import ActorArguments, TierSettings
from tests.support.actor_settings import actor_settings

SETTINGS = actor_settings(
    "replica",
    segment_bytes=1 << 20,
    appends="thread",
    hot_bytes=1 << 22,
    tier=TierSettings(factory="module:make", total_bytes=1 << 26),
    claimed=True,
)


def memory(folder: Path, *, replicated: bool) -> NodeMemory:
    return NodeMemory(
        actor=SETTINGS,
        replicated=replicated,
        generation=folder / "memory",
        folder=folder,
        ip="",
    )


def test_an_actor_gets_all_settings_and_its_own_folders(tmp_path: Path) -> None:
    here = memory(tmp_path, replicated=True)
    spec = here.shard_spec(3)

    arguments = msgspec.json.decode(spec.arguments, type=ActorArguments)
    assert arguments.settings == SETTINGS
    assert Path(arguments.folder) == here.shard_folder(3) == tmp_path / "memory" / spec.name
    assert Path(arguments.tier_path).parent == tmp_path
    assert spec.name in spec.address


@pytest.mark.parametrize("replicated", [False, True])
def test_each_specification_makes_its_actor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, replicated: bool
) -> None:
    monkeypatch.setattr("flowgentic_actors.shard.memory_tier.named_callable", lambda _: print)
    actor = make_actor(memory(tmp_path, replicated=replicated).shard_spec(3))
    try:
        assert isinstance(actor, ReplicatedShardActor if replicated else ShardActor)
    finally:
        actor.close()
