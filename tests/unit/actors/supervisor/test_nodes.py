"""Supervision of actors on several nodes."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import Raw

from flowgentic_actors.actors.child import Child, ChildState
from flowgentic_actors.actors.ref import ActorRef
from flowgentic_actors.actors.spec import ChildSpec
from flowgentic_actors.wire.addresses import TcpAddress
from flowgentic_actors.wire.certificates import new_identity
from tests.support.counter import (
    FACTORY,
    PATIENCE,
    SECRET,
    Office,
    alive,
    command,
    number,
    office,
    until,
)
from tests.support.supervision import restarted, total

pytestmark = pytest.mark.anyio


async def added(
    opened: Office, name: str = "a", told: int | None = None, **changes: Any
) -> tuple[Child, ActorRef]:
    """A counter that is started beside others, and that serves now unless it needs a lease."""
    await opened.start()
    spec = ChildSpec(
        name=name,
        factory=FACTORY,
        arguments=Raw(b"{}"),
        address=str(opened.folder / f"{name}.sock"),
        **changes,
    )
    body = None if told is None else Raw(msgspec.msgpack.encode(told))
    child = await opened.supervisor.add(opened.tasks, spec, body)
    await until(lambda: child.state is ChildState.RUNNING)
    return child, ActorRef(name, spec.address, SECRET, 1 << 20, 4)


async def test_what_is_told_reaches_every_incarnation(folder: Path) -> None:
    async with office(folder) as opened:
        child, ref = await added(opened, told=5)
        assert await total(ref) == 5
        os.kill(child.pid, signal.SIGKILL)
        await restarted(opened)
        assert await total(ref) == 5
        opened.supervisor.tell("a", Raw(msgspec.msgpack.encode(7)))
        await until(lambda: child.stats.get("total") == 7)
        os.kill(child.pid, signal.SIGKILL)
        await restarted(opened, 3)
        assert await total(ref) == 7
        await ref.close()


async def test_an_actor_with_a_lease_answers_until_its_end_and_again_with_the_next(
    folder: Path,
) -> None:
    async with office(folder) as opened:
        child, ref = await added(opened, leased=True)
        asked = asyncio.create_task(ref.ask(command("add", 1), PATIENCE))
        await until(lambda: child.stats.get("mailbox_requests") == 1)
        assert not asked.done()
        assert child.stats["total"] == 0
        opened.supervisor.extend(time.monotonic() + 3600)
        assert number(await asked) == 1
        os.kill(child.pid, signal.SIGKILL)
        await restarted(opened)
        assert await total(ref) == 0  # the successor has it, too
        opened.supervisor.extend(time.monotonic())
        opened.supervisor.tell("a", Raw(msgspec.msgpack.encode(40)))
        await until(lambda: child.stats.get("total") == 40)  # so it knows its lease, too
        asked = asyncio.create_task(ref.ask(command("add", 1), PATIENCE))
        await until(lambda: child.stats.get("mailbox_requests") == 1)
        assert not asked.done()
        assert child.stats["total"] == 40
        opened.supervisor.extend(time.monotonic() + 3600)
        assert number(await asked) == 41
        await ref.close()


async def test_an_actor_is_removed_at_once_whatever_it_does(folder: Path) -> None:
    async with office(folder) as opened:
        child, ref = await added(opened)
        _, other = await added(opened, "b")
        pid = child.pid
        busy = asyncio.create_task(ref.ask(command("busy", 3_600_000), PATIENCE))
        await until(lambda: child.life is not None and child.life.busy > 0)
        await opened.supervisor.remove("a")
        assert not alive(pid)
        assert [known.spec.name for known in opened.supervisor.children] == ["b"]
        busy.cancel()
        assert await total(other) == 0
        again, ref_again = await added(opened)
        assert again.pid != pid
        assert await total(ref_again) == 0
        for each in (ref, ref_again, other):
            await each.close()


async def test_an_actor_that_has_not_started_yet_is_removed(folder: Path) -> None:
    async with office(folder) as opened:
        await opened.start()
        spec = ChildSpec(
            name="a",
            factory=FACTORY,
            arguments=Raw(b'{"seconds": "3600"}'),
            address=str(folder / "a.sock"),
        )
        child = await opened.supervisor.add(opened.tasks, spec)
        await until(lambda: child.pid)
        pid = child.pid
        await opened.supervisor.remove("a")
        assert not alive(pid)
        assert not opened.supervisor.children


async def test_other_nodes_reach_an_actor_at_the_port_that_it_tells(folder: Path) -> None:
    async with office(folder) as opened:
        identity = opened.supervisor._identity = new_identity()
        child, ref = await added(opened, host="127.0.0.1")
        _, without = await added(opened, "b")
        for epoch in (1, 2):
            await restarted(opened, epoch)
            address = TcpAddress("127.0.0.1", child.port, identity.certificate)
            remote = ActorRef("a", address, SECRET, 1 << 20, 4)
            assert number(await remote.ask(command("pid"), PATIENCE)) == child.pid
            await remote.close()
            os.kill(child.pid, signal.SIGKILL)
        assert opened.child("b").port == 0
        await ref.close()
        await without.close()
