"""The settings of each mode: one without effect is refused, never ignored.

Only settings that were given count, and only with another value than their default: the default
asks for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from flowgentic_actors.acknowledgement import ACKS

_ONLY_DISTRIBUTED: Final = frozenset(
    {
        # Where there are no other processes, there is nothing to name, start, reach or watch.
        "spawner",
        "actors_per_node",
        "scratch",
        "orphan_ttl",
        "orphan_bytes",
        "connection_pool",
        "stay_awake",
        "mailbox_requests",
        "mailbox_bytes",
        "max_message_bytes",
        "heartbeat_interval",
        "hang_timeout",
        "busy_timeout",
        "restart_intensity",
        "restart_period",
        "rejoin_grace",
        # All values are in this process's memory.
        "hot_memory",
        "managers_per_node",
        # There is one node, and each rank of a step has a memory of its own.
        "replicas",
        "degrade",
        "node_timeout",
        "network",
        "rendezvous",
        "ranks_timeout",
    }
)
"""Settings without effect in local mode."""

_ONLY_DRAGON: Final = frozenset({"network", "managers_per_node"})
"""Settings without effect where plain subprocesses stand for nodes."""

_ASK_FOR_PROCESSES: Final = frozenset({"spawner", "name", "actors_per_node", "replicas", "degrade"})
"""Settings that decide `mode="auto"`: a local cluster would not be what they ask for."""


def asks_for_processes(given: Mapping[str, Any]) -> tuple[str, ...]:
    """The given settings that require a distributed cluster.

    Args:
        given: Settings that differ from their defaults.
    """
    asked = [name for name in given if name in _ASK_FOR_PROCESSES]
    if given.get("n_nodes", 1) > 1:
        asked.append("n_nodes")
    if _waits_for_follower(given):
        asked.append("ack")
    return tuple(asked)


def without_effect_locally(given: Mapping[str, Any]) -> tuple[str, ...]:
    """The given settings that a local cluster does not have.

    Args:
        given: Settings that differ from their defaults.
    """
    missing = [name for name in given if name in _ONLY_DISTRIBUTED]
    if given.get("n_nodes", 1) > 1:
        missing.append("n_nodes")
    if _waits_for_follower(given):
        missing.append(f"ack={given['ack']!r}")
    if "persist_path" not in given:  # no journal, and nothing on disk whose holder has a name
        missing += [name for name in ("name", "segment_bytes") if name in given]
    return tuple(missing)


def without_effect_in_subprocesses(given: Mapping[str, Any]) -> tuple[str, ...]:
    """The given settings that a cluster of plain subprocesses does not have.

    Args:
        given: Settings that differ from their defaults.
    """
    return tuple(name for name in given if name in _ONLY_DRAGON)


def _waits_for_follower(given: Mapping[str, Any]) -> bool:
    """Whether acknowledgements need a second copy of each shard."""
    return "ack" in given and ACKS[given["ack"]].waits_for_follower
