"""Settings that a mode does not have: they decide `mode="auto"`, or are refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from flowgentic_actors import DistributedMemoryConfig, MemoryCluster, MemoryConfig
from flowgentic_actors.config_modes import _ONLY_DISTRIBUTED

OTHER_VALUES: dict[str, Any] = {
    "spawner": "subprocess",
    "name": "team",  # without persist_path
    "actors_per_node": 4,
    "n_nodes": 2,
    "replicas": 2,
    "ack": "replica",
    "scratch": "/somewhere",
    "orphan_ttl": 5.0,
    "orphan_bytes": 5,
    "hot_memory": "2GiB",
    "connection_pool": 4,
    "stay_awake": 0.0,
    "mailbox_requests": 5,
    "mailbox_bytes": "2 MiB",
    "max_message_bytes": "5 MiB",
    "heartbeat_interval": 0.1,
    "hang_timeout": 5.0,
    "busy_timeout": 60.0,
    "restart_intensity": 3,
    "restart_period": 3.0,
    "rejoin_grace": 3.0,
    "managers_per_node": 2,
    "node_timeout": 5.0,
    "network": "hsn",
    "rendezvous": "/somewhere",
    "ranks_timeout": 5.0,
    "segment_bytes": "1 MiB",  # without persist_path
}
"""Settings without effect in local mode, each with another value than its default."""

SIZES: Any = {"store_total_mem": "1 GB"}

EFFECTIVE_LOCALLY: dict[str, Any] = {
    "mode": "local",
    "namespace_depth": 3,
    "fallback_to_local": False,  # it never falls back
    "persist_path": "/somewhere",
    "ack": "disk",
    "store_total_mem": "1 GiB",
    "checkpoint_total_mem": "1 GiB",
    "cache_total_mem": "1 GiB",
    "checkpoint_ttl": 60.0,
    "keep_last": 3,
    "detect_conflicts": True,
    "thread_backlog": "1 MiB",
    "ttl": {"default_ttl": 5.0},
    "index": {"dims": 2, "embed": len},
    "allowed_types": [("app", "Person")],
    "reindex": True,
    "segment_bytes": "1 MiB",
    "request_timeout": 5.0,
    "open_timeout": 5.0,
    "close_timeout": 5.0,
    "stop_signal": "SIGUSR1",
    "stop_file": "/somewhere/stop",
    "walltime_margin": 60.0,
}


@pytest.mark.parametrize("field", OTHER_VALUES)
def test_local_mode_refuses_what_it_does_not_have(field: str) -> None:
    with pytest.raises(ValidationError, match=rf"local mode does not have {field}\b.*distributed"):
        MemoryConfig(mode="local", **{field: OTHER_VALUES[field]})


def test_all_refused_settings_are_named_in_one_error() -> None:
    with pytest.raises(ValidationError, match="actors_per_node, scratch, n_nodes, name"):
        MemoryCluster(mode="local", name="x", scratch="/x", actors_per_node=4, n_nodes=3)


def test_local_mode_takes_what_has_an_effect_and_what_is_true_of_it_anyway() -> None:
    MemoryConfig(**EFFECTIVE_LOCALLY)
    MemoryConfig(mode="local", n_nodes=1, replicas=1, actors_per_node=1, spawner="auto", name=None)
    config = MemoryConfig(mode="local", keep_last=3)
    assert MemoryConfig(**config.model_dump()) == config


def test_every_setting_is_decided_on_for_local_mode() -> None:
    only_with_replicas = {"degrade"}  # which local mode does not have
    decided = set(OTHER_VALUES) | set(EFFECTIVE_LOCALLY) | only_with_replicas

    assert decided == set(MemoryConfig.model_fields)
    assert set(MemoryConfig.model_fields) >= _ONLY_DISTRIBUTED


@pytest.mark.parametrize(
    "asked",
    [
        {"spawner": "subprocess"},
        {"name": "team"},
        {"n_nodes": 2},
        {"replicas": 2},
        {"actors_per_node": 4},
        {"replicas": 2, "ack": "replica", "degrade": True},
    ],
    ids=",".join,
)
def test_auto_is_distributed_where_a_setting_can_mean_nothing_else(
    asked: dict[str, Any],
) -> None:
    assert set(MemoryConfig(**asked).asks_for_processes) == set(asked)


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"n_nodes": 1},
        {"replicas": 1, "actors_per_node": 1, "spawner": "auto", "ack": "node"},
        {"ack": "disk"},  # refused when it opens, unless it is distributed by then
        {"hot_memory": "2 GiB", "node_timeout": 5.0, "scratch": "/somewhere"},
    ],
    ids=",".join,
)
def test_auto_stays_local_where_nothing_asks_for_processes(asked: dict[str, Any]) -> None:
    assert MemoryConfig(**asked).asks_for_processes == ()


def test_plain_subprocesses_refuse_what_only_dragon_has() -> None:
    for setting in ({"network": "hsn"}, {"managers_per_node": 2}):
        with pytest.raises(ValidationError, match=f"does not have {next(iter(setting))}"):
            MemoryConfig(mode="distributed", spawner="subprocess", **setting)


def test_flowgentics_own_configuration_is_decided_the_same_way() -> None:
    assert DistributedMemoryConfig(n_nodes=2).should_use_distributed()
    with pytest.raises(ValidationError, match="did you mean 'n_nodes'"):
        DistributedMemoryConfig(n_node=2)  # type: ignore[call-arg]
    assert DistributedMemoryConfig(**SIZES).store_total_mem == 10**9
