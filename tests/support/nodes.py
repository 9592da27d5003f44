"""What tests of several nodes share; groups of processes on this machine stand for them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from flowgentic_actors import MemoryCluster
from flowgentic_actors.cluster.protocol.status import ClusterStatus
from flowgentic_actors.errors import RequestError
from flowgentic_actors.testing.nodes import LocalNode
from tests.support.processes import eventually

PATIENCE = 40.0
"""Seconds that anything may take on a busy machine before a test gives up."""


def settings(**changes: Any) -> dict[str, Any]:
    return {
        "mode": "distributed",
        "spawner": "subprocess",
        "n_nodes": 3,
        "replicas": 2,
        "ack": "replica",
        "node_timeout": 2.0,
        "request_timeout": 20.0,
        **changes,
    }


def node_of(memory: MemoryCluster, name: str) -> LocalNode:
    return LocalNode(Path(memory.handle.descriptor).parent, name)


def namespace_on(memory: MemoryCluster, shard: int) -> tuple[str, str]:
    """A namespace whose items a shard keeps."""
    table = memory.client.table
    places = (("nodes", f"place-{n}") for n in range(100_000))
    return next(place for place in places if table.of_namespace(place) == shard)


def everywhere(memory: MemoryCluster, status: ClusterStatus) -> list[tuple[str, str]]:
    return [namespace_on(memory, actor.shard) for actor in status.actors]


def led_by(status: ClusterStatus, node: str) -> int:
    """A shard that a node leads."""
    return next(actor.shard for actor in status.actors if actor.node == node)


async def kinds(memory: MemoryCluster) -> list[str]:
    return [event.kind for event in await memory.recent_events()]


async def until_node(memory: MemoryCluster, name: str, state: str) -> None:
    """Wait until the host says that of a node, and that every shard has all its copies."""

    async def so() -> bool:
        try:
            status = await memory.status()
        except RequestError:
            return False
        states = {node.name: node.state for node in status.nodes}
        whole = status.n_nodes < 2 or memory.config.replicas == 1
        return states.get(name) == state and (
            whole or all(actor.replica_ready for actor in status.actors)
        )

    await eventually(so, PATIENCE)


async def acknowledged(
    memory: MemoryCluster, namespace: tuple[str, str], key: str, number: int = 1
) -> None:
    """Write until that is acknowledged."""

    async def so() -> bool:
        try:
            await memory.store.aput(namespace, key, {"v": number})
        except RequestError:
            return False
        return True

    await eventually(so, PATIENCE)


async def expect(
    memory: MemoryCluster, namespace: tuple[str, str], key: str, number: int = 1
) -> None:
    """Read until that is answered, and check it."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            item = await memory.store.aget(namespace, key)
            break
        except RequestError:
            assert time.monotonic() < deadline, "it was not answered in time"
            await asyncio.sleep(0.02)
    assert item is not None
    assert item.value == {"v": number}


@asynccontextmanager
async def cut(memory: MemoryCluster, name: str) -> AsyncIterator[None]:
    """A node is cut off, and there again afterwards."""
    node = node_of(memory, name)
    await asyncio.to_thread(node.cut)
    try:
        yield
    finally:
        await asyncio.to_thread(node.heal)
    await until_node(memory, name, "up")
