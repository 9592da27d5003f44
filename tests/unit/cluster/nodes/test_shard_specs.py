"""The specifications of shards' actors: what reaches the actor of what the opener decided."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from flowgentic_actors.actors.serving import make_actor
from flowgentic_actors.actors.spec import ChildSpec
from flowgentic_actors.cluster.nodes.shard_specs import shard_folder, shard_spec
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


def spec(folder: Path, *, replicated: bool) -> ChildSpec:
    return shard_spec(
        3,
        SETTINGS,
        replicated=replicated,
        memory=folder / "memory",
        folder=folder,
        host="",
    )


def test_an_actor_gets_all_settings_and_its_own_folders(tmp_path: Path) -> None:
    made = spec(tmp_path, replicated=True)

    arguments = msgspec.json.decode(made.arguments, type=ActorArguments)
    assert arguments.settings == SETTINGS
    assert shard_folder(made) == tmp_path / "memory" / made.name
    assert Path(arguments.tier_path).parent == tmp_path
    assert made.name in made.address


@pytest.mark.parametrize("replicated", [False, True])
def test_each_specification_makes_its_actor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, replicated: bool
) -> None:
    monkeypatch.setattr("flowgentic_actors.shard.memory_tier.named_callable", lambda _: print)
    actor = make_actor(spec(tmp_path, replicated=replicated))
    try:
        assert isinstance(actor, ReplicatedShardActor if replicated else ShardActor)
    finally:
        actor.close()
