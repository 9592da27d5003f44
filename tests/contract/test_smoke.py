import pytest
from flowgentic_actors import MemoryCluster

pytestmark = pytest.mark.anyio


async def test_smoke(memory: MemoryCluster) -> None:
    await memory.store.aput(("a", "b"), "k", {"v": 1})
    item = await memory.store.aget(("a", "b"), "k")
    assert item is not None and item.value == {"v": 1}
    assert memory.store.get(("a", "b"), "k") is not None
