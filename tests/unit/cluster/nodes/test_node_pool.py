"""The agents of other nodes are started, waited for, and given their settings."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import cast

import msgspec
import pytest

from flowgentic_actors.cluster.nodes.join_protocol import NodeSpec
from flowgentic_actors.cluster.nodes.node_pool import NodePool
from flowgentic_actors.cluster.protocol.host_spec import HostSpec
from flowgentic_actors.wire.addresses import TcpAddress
from tests.support.counter import PATIENCE
from tests.support.fake_nodes import IDENTITY, FakeLauncher, several_nodes

pytestmark = pytest.mark.anyio


class Pool(NodePool):
    """A pool over fake agents, with what it tells."""

    def __init__(self, spec: HostSpec, *nodes: str) -> None:
        self.launcher = FakeLauncher(*nodes)
        self.events: list[tuple[str, str]] = []
        super().__init__(
            spec,
            self.launcher,
            IDENTITY,
            "127.0.0.1",
            lambda kind, _actor, detail: self.events.append((kind, detail)),
        )
        self.spec = spec

    def settings(self, node: str) -> NodeSpec:
        return NodeSpec(
            cluster=self.spec,
            folder=f"/scratch/{node}",
            manifest=b"{}",
            generation="generation-1",
            identity=IDENTITY,
            host=TcpAddress("127.0.0.1", 1, IDENTITY.certificate),
            host_id="1234",
            actor=self.spec.actor,
            lease=2.0,
        )

    async def gathered(self, seconds: float = PATIENCE, known: tuple[str, ...] = ()) -> list[str]:
        return await self.gather(time.monotonic() + seconds, known)


async def test_nodes_join_and_have_their_settings_once_they_are_known(folder: Path) -> None:
    pool = await asyncio.to_thread(Pool, several_nodes(folder), "node-1", "node-2", "node-3")
    assert await pool.gathered(known=("node-3",)) == ["node-0", "node-3", "node-1"]
    assert pool.launcher.specs == {}
    assert pool.machines["node-1"] == "machine of node-1"
    await pool.hand_out(pool.settings)
    await pool.launcher.all_joined()
    assert pool.launcher.specs == {node: pool.settings(node) for node in ("node-3", "node-1")}
    await pool.close()
    assert pool.launcher.closed
    assert pool.events == []


async def test_fewer_nodes_than_wanted_and_one_that_does_not_join_are_told(folder: Path) -> None:
    pool = await asyncio.to_thread(Pool, several_nodes(folder, nodes=4), "node-1", "node-2")
    pool.launcher.absent["node-2"] = "ended with exit code 3"
    assert await pool.gathered() == ["node-0", "node-1"]
    assert pool.missing == "node-2 ended with exit code 3"
    assert pool.events == [
        ("fewer_nodes", "n_nodes=4, and there are 3: node-0, node-1, node-2"),
        ("node_missing", "node-2 ended with exit code 3"),
    ]
    await pool.hand_out(pool.settings)
    await pool.launcher.all_joined()


async def test_added_nodes_are_known_before_they_have_their_settings(folder: Path) -> None:
    pool = await asyncio.to_thread(Pool, several_nodes(folder), "node-1", "node-2")
    joined: list[str] = []

    def on_joined(nodes: object) -> None:
        assert pool.launcher.specs == {}
        joined.extend(cast("list[str]", nodes))

    assert await pool.add(["node-2"], pool.settings, on_joined) == joined == ["node-2"]
    await pool.launcher.all_joined()
    assert list(pool.launcher.specs) == ["node-2"]


async def test_an_agent_that_keeps_ending_is_given_up(folder: Path) -> None:
    usual = several_nodes(folder)
    supervision = msgspec.structs.replace(usual.supervision, restart_intensity=1)
    spec = msgspec.structs.replace(usual, supervision=supervision)
    pool = await asyncio.to_thread(Pool, spec, "node-1")
    await pool.restart("node-1", pool.settings, lambda: False)  # it came back by itself
    assert pool.launcher.launched == []

    pool = await asyncio.to_thread(Pool, spec, "node-1")
    await pool.restart("node-1", pool.settings, lambda: True)
    await pool.launcher.all_joined()
    assert list(pool.launcher.specs) == ["node-1"]
    await pool.restart("node-1", pool.settings, lambda: True)
    assert pool.events == [("node_given_up", "the program of node-1 keeps ending")]
