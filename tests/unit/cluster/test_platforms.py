"""The platforms: one for each value of `spawner`."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from flowgentic_actors.actors.spawn import SubprocessSpawner
from flowgentic_actors.actors.spec import SupervisorSettings, named_callable
from flowgentic_actors.cluster.platforms import platform_named
from flowgentic_actors.cluster.shard_limits import actor_settings, taken_from
from flowgentic_actors.config import MemoryConfig, Spawner
from flowgentic_actors.dragon.ddict_sizing import DDICT_FACTORY, make_ddict
from flowgentic_actors.dragon.platform import DragonPlatform
from flowgentic_actors.shard.settings import TierSettings


def test_every_value_of_spawner_has_a_platform_of_its_name() -> None:
    named = {name: platform_named(name).name for name in get_args(Spawner)}

    assert named.pop("auto") == DragonPlatform.name
    assert all(name == platform for name, platform in named.items())


def test_plain_processes_have_no_runtime_and_no_memory_tier() -> None:
    platform = platform_named("subprocess")

    assert platform.why_not() is None
    assert [platform.nodes(asked) for asked in (None, 1, 3)] == [1, 1, 3]
    assert platform.tier(MemoryConfig(mode="distributed")) is None
    assert not platform.owns_runtime()


def test_dragon_uses_this_node_alone_outside_of_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    platform = DragonPlatform()
    monkeypatch.setattr("flowgentic_actors.dragon.platform.job_hosts", lambda: ("a",))
    assert [platform.nodes(asked) for asked in (None, 3)] == [1, 1]
    assert platform.owns_runtime()
    assert isinstance(platform.spawner(uses_tier=True, on_event=print), SubprocessSpawner)

    monkeypatch.setattr("flowgentic_actors.dragon.platform.job_hosts", lambda: ("a", "b", "c"))
    assert [platform.nodes(asked) for asked in (None, 2)] == [0, 2]


def test_a_ddict_is_made_by_name_and_in_a_runtime_only(tmp_path: Path) -> None:
    settings = TierSettings(factory=DDICT_FACTORY, total_bytes=1 << 26)

    assert named_callable(settings.factory) is make_ddict
    assert make_ddict(settings, tmp_path / "shard-0", lambda _kind, _detail: None) is None


def test_a_struct_of_settings_takes_those_of_its_fields_names() -> None:
    config = MemoryConfig(busy_timeout=99.0, mailbox_requests=7, open_timeout=3.0)

    settings = taken_from(config, SupervisorSettings, restart_period=1.0)

    assert (settings.busy_timeout, settings.mailbox_requests) == (99.0, 7)
    assert (settings.open_timeout, settings.restart_period) == (3.0, 1.0)
    assert settings.hang_timeout == config.hang_timeout


def test_a_shard_gets_its_part_of_the_quotas_and_what_ack_means() -> None:
    config = MemoryConfig(
        mode="distributed",
        actors_per_node=4,
        ack="disk",
        store_total_mem=8 << 20,
        ttl={"sweep_interval_minutes": 2},
    )

    settings = actor_settings(config, None)

    assert settings.limits.item_bytes == 2 << 20
    assert settings.limits.thread_bytes is None
    assert settings.limits.sweep_seconds == 120.0
    assert settings.journal.ack.durable
    assert not settings.journal.ack.waits_for_follower
