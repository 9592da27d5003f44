"""What `attach` takes, and what it says when that means no cluster."""

from __future__ import annotations

import asyncio
import base64
import os
import pickle
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from flowgentic_actors import ClusterHandle, MemoryCluster
from flowgentic_actors.environment import DESCRIPTOR_VARIABLE
from flowgentic_actors.errors import ClusterExistsError, ClusterNotFoundError, LocalClusterError
from tests.conftest import SETTINGS, mode_params
from tests.support.faces import remembers
from tests.support.processes import output_of

pytestmark = pytest.mark.anyio


@pytest.fixture
async def persistent(tmp_path: Path) -> AsyncIterator[MemoryCluster]:
    path = tmp_path / "memory"
    async with MemoryCluster(**SETTINGS["subprocess"], name="there", persist_path=path) as memory:
        yield memory


async def test_a_path_of_a_live_cluster_is_attached_to(
    persistent: MemoryCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    descriptor = Path(persistent.handle.descriptor)
    monkeypatch.setenv("HOME", str(descriptor.parent.parent))
    targets: list[Any] = [
        descriptor,
        str(descriptor),
        descriptor.parent,
        f"{descriptor.parent}/",
        tmp_path / "memory",
        "~/there/cluster.json",
        "$HOME/there/cluster.json",
    ]
    for number, target in enumerate(targets):
        async with MemoryCluster.attach(target) as attached:
            await attached.store.aput(("targets",), str(number), {})
            assert attached.handle == persistent.handle
    found = await persistent.store.asearch(("targets",))
    assert len(found) == len(targets)


async def test_a_path_without_a_cluster_says_what_is_there(tmp_path: Path) -> None:
    memory, file = tmp_path / "memory", tmp_path / "some.json"
    async with MemoryCluster(mode="local", persist_path=memory):
        with pytest.raises(ClusterNotFoundError, match=r"open in cluster 'local-.*local mode"):
            await MemoryCluster.attach(memory).__aenter__()
    file.write_text("{}")
    file.chmod(0o600)
    for target, message in (
        (memory, "no cluster has the memory in"),
        (tmp_path, f"{re.escape(str(tmp_path))} is no cluster's folder"),
        (file, "does not describe a cluster"),
        ("no/such/path", r"^no cluster is at /.*/no/such/path: there is no such file"),
        ("TEAM", r"^no cluster is at /.*/TEAM.* no cluster's name"),
        ("$NO_SUCH/path", r"variable \$NO_SUCH in it, which is not set"),
        ("tcp://localhost:7000", "begins with tcp://"),
    ):
        with pytest.raises(ClusterNotFoundError, match=message):
            await MemoryCluster.attach(target).__aenter__()
    with pytest.raises(ClusterNotFoundError, match=r"named 'nosuch'.*no cluster is open"):
        await MemoryCluster.attach("nosuch", scratch=tmp_path).__aenter__()


def test_what_is_no_target_is_refused_in_words() -> None:
    with pytest.raises(TypeError, match=r"not MemoryCluster: give its handle"):
        MemoryCluster.attach(MemoryCluster(mode="local"))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="not int"):
        MemoryCluster.attach(7)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="did you mean 'index'"):
        MemoryCluster.attach("name", indx={})


distributed = pytest.mark.parametrize("mode", mode_params("subprocess", "dragon", slow=("dragon",)))
subprocesses = pytest.mark.parametrize("mode", ["subprocess"])

ATTACHER = """
    import asyncio, base64, pickle, sys
    from flowgentic_actors import MemoryCluster

    async def main():
        handle, name, export = pickle.loads(base64.b64decode(sys.argv[1]))
        for how, target in (("handle", handle), ("name", name), ("export", export), ("env", None)):
            async with MemoryCluster.attach(target) as memory:
                assert memory.is_distributed
                item = await memory.store.aget(("attached", name), "parent")
                await memory.store.aput(("attached", name), how, item.value)
                memory.store.put(("attached", name), how + " blocking", item.value)

    asyncio.run(main())
"""


@distributed
def test_another_process_attaches_by_handle_name_export_and_environment(
    memory: MemoryCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = memory.handle
    monkeypatch.setenv(DESCRIPTOR_VARIABLE, handle.descriptor)
    memory.store.put(("attached", handle.name), "parent", {"v": 1})

    given = pickle.dumps((handle, handle.name, handle.export()))
    output_of(ATTACHER, base64.b64encode(given).decode())

    keys = [item.key for item in memory.store.search(("attached", handle.name))]
    ways = ["env", "export", "handle", "name"]
    assert keys == sorted([*ways, *(f"{way} blocking" for way in ways), "parent"])
    asyncio.run(remembers(memory))  # a program that attached and left did not close it


@distributed
def test_the_secret_is_in_nothing_that_is_shown_or_passed_on(memory: MemoryCluster) -> None:
    handle = memory.handle
    secret = handle.read().secret.reveal()
    status = asyncio.run(memory.status())
    attached = MemoryCluster.attach(handle.export())
    things = [memory, handle, handle.read(), status, asyncio.run(memory.recent_events()), attached]
    things += [memory.checkpointer, memory.store, memory._opening.client, memory._opening._owner]
    shown = [(repr(thing) + str(thing)).encode() for thing in things]
    shown += [pickle.dumps(handle), msgspec.msgpack.encode(status)]
    for pid in (status.host_pid, *(actor.pid for actor in status.actors)):
        process = psutil.Process(pid)
        shown.append(repr((process.cmdline(), process.environ())).encode())
    shown += [log.read_bytes() for log in Path(status.folder).glob("*.log")]

    forms = (secret, secret.hex().encode(), msgspec.json.encode(secret).strip(b'"'))
    for text in shown:
        assert not any(form in text for form in forms), text
    with pytest.raises(TypeError, match="handle"):
        pickle.dumps(memory)
    descriptor = Path(handle.descriptor)
    assert descriptor.stat().st_mode & 0o777 == 0o600
    assert descriptor.parent.stat().st_mode & 0o777 == 0o700


@subprocesses
async def test_a_descriptor_that_others_can_read_is_not_trusted(
    fresh_memory: MemoryCluster,
) -> None:
    await asyncio.to_thread(Path(fresh_memory.handle.descriptor).chmod, 0o644)
    with pytest.raises(ClusterNotFoundError, match="mode 0644: only its owner"):
        async with MemoryCluster.attach(fresh_memory.handle):
            pass


async def test_attaching_to_nothing_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(DESCRIPTOR_VARIABLE, raising=False)
    nowhere = ClusterHandle("nowhere", str(tmp_path / "nowhere" / "cluster.json"))
    for target in (None, "nowhere", "../nowhere", "", nowhere, "flowgentic:", "flowgentic:%%%"):
        with pytest.raises(ClusterNotFoundError):
            async with MemoryCluster.attach(target):
                pass
    async with MemoryCluster(**SETTINGS["subprocess"]) as memory:
        handle, export = memory.handle, await asyncio.to_thread(memory.handle.export)
    for target in (handle, handle.name, export):
        with pytest.raises(ClusterNotFoundError, match=handle.name):
            async with MemoryCluster.attach(target, request_timeout=0.3):
                pass


def test_attaching_takes_no_settings_that_the_opener_decided() -> None:
    with pytest.raises(TypeError, match="actors_per_node"):
        MemoryCluster.attach("name", actors_per_node=2)


async def test_a_local_cluster_has_no_handle() -> None:
    async with MemoryCluster(mode="local") as memory:
        assert not memory.is_distributed
        with pytest.raises(LocalClusterError, match="distributed"):
            _ = memory.handle


async def test_a_name_is_taken_once() -> None:
    name = f"named-{os.getpid()}"
    settings = {**SETTINGS["subprocess"], "name": name}
    async with MemoryCluster(**settings) as memory:
        with pytest.raises(ClusterExistsError, match=name):
            async with MemoryCluster(**settings):
                pass
        await remembers(memory)
        async with MemoryCluster.attach(name) as attached:
            await remembers(attached)
    async with MemoryCluster(**settings) as memory:  # it is free again
        await remembers(memory)
