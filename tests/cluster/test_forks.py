"""Forked children of a program that has a cluster."""

from __future__ import annotations

import asyncio
import multiprocessing
from pathlib import Path

import pytest

from flowgentic_actors import MemoryCluster
from flowgentic_actors.errors import LocalClusterError
from tests.conftest import mode_params
from tests.support.faces import remembers, unique
from tests.support.processes import in_fork

fork_with_threads = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
distributed = pytest.mark.parametrize("mode", mode_params("subprocess", "dragon", slow=("dragon",)))


@fork_with_threads
@distributed
def test_a_forked_child_uses_the_cluster_too(memory: MemoryCluster) -> None:
    label = unique()
    memory.store.put((label,), "parent", {})  # so that there are connections to inherit

    def child() -> list[str]:
        memory.store.put((label,), "blocking", {})
        asyncio.run(memory.store.aput((label,), "awaited", {}))
        asyncio.run(remembers(memory))
        return [item.key for item in memory.store.search((label,))]

    assert in_fork(child) == ["awaited", "blocking", "parent"]
    memory.store.put((label,), "parent again", {})
    assert len(memory.store.search((label,))) == 4


@fork_with_threads
@distributed
@pytest.mark.anyio
async def test_a_child_forked_inside_a_running_loop_uses_the_cluster_too(
    memory: MemoryCluster,
) -> None:
    label = unique()
    await memory.store.aput((label,), "parent", {})

    def child() -> int:
        asyncio.run(memory.store.aput((label,), "child", {}))
        return len(memory.store.search((label,)))

    assert in_fork(child) == 2
    assert len(await memory.store.asearch((label,))) == 2


@fork_with_threads
@distributed
def test_a_process_forked_by_multiprocessing_uses_the_cluster_too(memory: MemoryCluster) -> None:
    label = unique()
    memory.store.put((label,), "parent", {})
    context = multiprocessing.get_context("fork")

    def child(key: str) -> None:
        memory.store.put((label,), key, {})
        asyncio.run(remembers(memory))

    children = [context.Process(target=child, args=(f"child {n}",)) for n in range(3)]
    for process in children:
        process.start()
    for process in children:
        process.join(30)

    assert [process.exitcode for process in children] == [0, 0, 0]
    assert len(memory.store.search((label,))) == 4


@fork_with_threads
@pytest.mark.parametrize("mode", ["inline"])
def test_a_fork_of_a_local_clusters_process_is_refused(memory: MemoryCluster) -> None:
    label = unique()

    def awaited() -> None:
        asyncio.run(memory.store.aput((label,), "child", {}))

    for child in (lambda: memory.store.put((label,), "child", {}), awaited):
        error = in_fork(child)
        assert isinstance(error, LocalClusterError)
        assert "mode='distributed'" in str(error)
    memory.store.put((label,), "parent", {})
    assert len(memory.store.search((label,))) == 1


@fork_with_threads
@distributed
def test_a_forked_child_that_closes_the_cluster_ends_only_its_own_part(
    memory: MemoryCluster,
) -> None:
    label = unique()
    memory.store.put((label,), "key", {"v": 1})

    assert in_fork(lambda: asyncio.run(memory.__aexit__(None, None, None))) is None

    assert Path(memory.handle.descriptor).exists()
    assert len(memory.store.search((label,))) == 1
    asyncio.run(remembers(memory))
