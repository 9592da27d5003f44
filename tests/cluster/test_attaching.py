"""What `attach` takes, and what it says when that means no cluster."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from flowgentic_actors import MemoryCluster
from flowgentic_actors.errors import ClusterNotFoundError
from tests.conftest import SETTINGS

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
