"""`MemoryConfig`: what is accepted, and what is refused with the name of the field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from flowgentic_actors import MemoryCluster, MemoryConfig

REFUSED: list[tuple[str, Any]] = [
    ("mode", "remote"),
    ("spawner", "ssh"),
    ("name", "Upper"),
    ("name", ""),
    ("name", "a/b"),
    ("name", ".."),
    ("name", "a\n"),
    ("name", "a" * 41),
    ("actors_per_node", 0),
    ("ack", "replica"),  # without replicas
    ("n_nodes", 0),
    ("replicas", 3),
    ("replicas", 0),
    ("degrade", True),  # without ack="replica"
    ("degrade", "perhaps"),
    ("node_timeout", 0.5),
    ("network", "10.1.0.0/99"),
    ("network", ""),
    ("rendezvous", 5),
    ("ranks_timeout", -1),
    ("ack", "soon"),
    ("actors_per_node", 257),
    ("actors_per_node", 1.5),
    ("namespace_depth", 0),
    ("namespace_depth", 17),
    ("fallback_to_local", "perhaps"),
    ("scratch", 7),
    ("scratch", "/dev/shm"),
    ("scratch", "/dev/shm/mine"),
    ("persist_path", 7),
    ("persist_path", "/dev/shm/mine"),
    ("orphan_ttl", -1),
    ("orphan_ttl", 32 * 86_400),
    ("orphan_bytes", -1),
    ("hot_memory", 2**20 - 1),
    ("store_total_mem", 0),
    ("checkpoint_total_mem", "much"),
    ("cache_total_mem", 2**20 - 1),
    ("checkpoint_ttl", 0),
    ("checkpoint_ttl", float("inf")),
    ("keep_last", 0),
    ("detect_conflicts", "perhaps"),
    ("thread_backlog", 1000),
    ("ttl", 60),
    ("ttl", {"default_ttl": 0}),
    ("ttl", {"default": 60}),
    ("ttl", {"sweep_interval_minutes": -1}),
    ("index", ["text"]),
    ("index", {"dims": 1.5, "embed": len}),
    ("allowed_types", "app.Person"),
    ("allowed_types", ["app.Person"]),
    ("allowed_types", [("app", "")]),
    ("allowed_types", [("app/..", "Person")]),
    ("allowed_types", [("app", "Person", "make")]),
    ("allowed_types", True),
    ("reindex", True),  # without index
    ("managers_per_node", 0),
    ("segment_bytes", 1000),
    ("request_timeout", 0),
    ("request_timeout", -1),
    ("request_timeout", float("nan")),
    ("request_timeout", float("inf")),
    ("request_timeout", 86_401),
    ("open_timeout", 0),
    ("close_timeout", "soon"),
    ("stop_signal", "SIGKILL"),
    ("stop_file", 7),
    ("walltime_margin", 0),
    ("heartbeat_interval", 0),
    ("heartbeat_interval", 7.5),  # twice that is the hang_timeout
    ("hang_timeout", 1.0),
    ("busy_timeout", 10.0),  # shorter than hang_timeout
    ("restart_intensity", -1),
    ("restart_period", 0),
    ("rejoin_grace", 0),
    ("mailbox_requests", 0),
    ("mailbox_bytes", 2**20 - 1),
    ("max_message_bytes", 2**22 - 1),
    ("max_message_bytes", 2**31),
    ("connection_pool", 0),
    ("stay_awake", -0.0001),
    ("stay_awake", 0.02),
    ("stay_awake", float("nan")),
]


@pytest.mark.parametrize(("field", "value"), REFUSED)
def test_an_impossible_value_is_refused_with_the_name_of_its_field(field: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=field):
        MemoryConfig(**{field: value})


def test_every_field_has_a_value_that_is_refused() -> None:
    assert {field for field, _ in REFUSED} == set(MemoryConfig.model_fields)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValidationError, match="actor_per_node"):
        MemoryConfig(actor_per_node=2)  # type: ignore[call-arg]
    with pytest.raises(ValidationError, match="actor_per_node"):
        MemoryCluster(actor_per_node=2)


def test_replicas_need_another_node_and_a_journal_of_their_own() -> None:
    many: dict[str, Any] = {"mode": "distributed", "replicas": 2}
    MemoryConfig(**many, ack="replica", degrade=True, n_nodes=3)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"n_nodes": 1}, "second node"),
        ({"persist_path": "/somewhere"}, "persist_path"),
        ({"ack": "disk"}, "ack='disk'"),
        ({"mode": "local"}, "mode='distributed'"),
    ]
    for settings, message in cases:
        with pytest.raises(ValidationError, match=message):
            MemoryConfig(**(many | settings))


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"spawner.*mode='distributed'"):
        MemoryConfig(mode="local", spawner="subprocess")


def test_a_persist_path_that_would_not_persist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"persist_path must not be in scratch"):
        MemoryConfig(scratch=tmp_path, persist_path=tmp_path / "memory")
    assert MemoryConfig(mode="local", ack="disk", persist_path=tmp_path).ack == "disk"


def test_the_defaults_are_possible() -> None:
    config = MemoryConfig()

    assert config.mode == "auto"
    assert MemoryConfig(**config.model_dump()) == config


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "a"),
        ("name", "0-a" * 13),
        ("actors_per_node", 256),
        ("restart_intensity", 0),
        ("scratch", Path("/var/tmp")),
        ("scratch", "/dev/shmem"),
        ("max_message_bytes", 2**31 - 1),
        ("request_timeout", 0.001),
    ],
)
def test_a_value_at_the_edge_is_taken(field: str, value: Any) -> None:
    config = MemoryConfig(**{field: value})

    assert getattr(config, field) == (Path(value) if field == "scratch" else value)


def test_a_config_does_not_change() -> None:
    config = MemoryConfig()
    with pytest.raises(ValidationError, match="frozen"):
        config.mode = "local"


def test_a_cluster_takes_a_config_or_its_fields_and_not_both() -> None:
    config = MemoryConfig(name="x")

    assert MemoryCluster(config).config is config
    assert MemoryCluster(name="x").config == config
    with pytest.raises(TypeError, match="not both"):
        MemoryCluster(config, name="y")
