"""What the events of a cluster of several nodes tell."""

from __future__ import annotations

import os
import signal

import pytest

from flowgentic_actors import MemoryCluster
from tests.conftest import settings_of
from tests.support.processes import eventually

pytestmark = pytest.mark.anyio


async def test_what_happens_to_an_actor_names_its_node_and_its_role() -> None:
    async with MemoryCluster(**settings_of("nodes")) as memory:

        async def told(kind: str, *where: str) -> bool:
            events = [
                e for e in await memory.recent_events() if (e.kind, e.actor) == (kind, "shard-0")
            ]
            return all(any(place in event.detail for event in events) for place in where)

        places = ("leader on node-0", "follower on node-1")
        await eventually(lambda: told("actor_running", *places))
        (leader,) = [actor for actor in (await memory.status()).actors if actor.name == "shard-0"]
        assert leader.pid is not None
        os.kill(leader.pid, signal.SIGKILL)
        await eventually(lambda: told("actor_exited", "leader on node-0"))
