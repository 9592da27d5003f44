"""Flowgentic's names: what its page shows runs here, and keeps its promises."""

from __future__ import annotations

import asyncio
import operator
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langgraph.graph import StateGraph
from langgraph.store.base import PutOp
from pydantic import ValidationError

from flowgentic_actors import MemoryCluster
from flowgentic_actors.errors import ClusterClosedError
from flowgentic_actors.langGraph.distributed_memory import DragonCheckpointSaver, DragonDDictStore
from flowgentic_actors.langGraph.main import LangraphIntegration
from flowgentic_actors.langGraph.memory import (
    DistributedMemoryConfig,
    LangraphMemoryManager,
    MemoryConfig,
)
from tests.conftest import mode_params
from tests.support.faces import checkpoint_of, config_of
from tests.support.processes import python

pytestmark = pytest.mark.anyio

MiB = 2**20
SMALL = {"store_total_mem": 32 * MiB, "checkpoint_total_mem": 32 * MiB}

PLACES: dict[str, dict[str, Any]] = {
    "local": {"mode": "local"},
    "subprocess": {"mode": "distributed"},  # and `spawner=` beside it
    "dragon": {"mode": "distributed", "fallback_to_local": False},
}


@pytest.fixture(params=mode_params("local", "subprocess", "dragon"))
def place(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def config_at(place: str, **more: Any) -> DistributedMemoryConfig:
    return DistributedMemoryConfig(**{**SMALL, **PLACES[place], **more})


def settings_at(place: str) -> dict[str, Any]:
    return {"spawner": "subprocess"} if place == "subprocess" else {}


class AgentState(TypedDict):
    messages: Annotated[list[str], operator.add]


def agent_node(state: AgentState) -> AgentState:
    return {"messages": [f"answer {len(state['messages'])}"]}


# ---------------------------------------------------------------------- the page


async def test_the_pages_graph_runs_as_printed(place: str) -> None:
    with ThreadPoolExecutor(2) as backend:
        async with LangraphIntegration(
            backend=backend, distributed_config=config_at(place), **settings_at(place)
        ) as integration:
            builder = StateGraph(AgentState)
            builder.add_node("agent", agent_node)
            builder.set_entry_point("agent")  # the page leaves it out

            checkpointer = integration.memory_manager.get_checkpointer()
            store = integration.memory_manager.get_store()
            graph = builder.compile(checkpointer=checkpointer, store=store)

            config: Any = {"configurable": {"thread_id": "123"}}
            graph.invoke({"messages": ["hi"]}, config=config)
            result = await graph.ainvoke({"messages": ["again"]}, config=config)
            assert result["messages"] == ["hi", "answer 1", "again", "answer 3"]
            assert integration.memory_manager.is_distributed() == (place != "local")
            assert checkpointer is not None
            assert checkpointer.using_dragon == (place == "dragon")


def test_the_pages_managers_are_made_and_closed_without_a_loop() -> None:
    """The sizes of the page are ceilings: where there is no room for them, it falls back."""
    for config in (
        DistributedMemoryConfig(mode="local"),
        DistributedMemoryConfig(mode="auto"),
    ):
        memory_manager = LangraphMemoryManager(distributed_config=config)
        store = memory_manager.get_store()
        assert store is not None
        store.put(("users", "ada"), "likes", {"drink": "tea"})
        assert [item.key for item in store.search(("users",))] == ["likes"]
        memory_manager.close()
        memory_manager.close()
        with pytest.raises(ClusterClosedError):
            store.get(("users", "ada"), "likes")


@pytest.mark.parametrize("dragon", mode_params("dragon"))
def test_what_does_not_fit_falls_back_and_says_so(
    dragon: str, caplog: pytest.LogCaptureFixture
) -> None:
    distributed_config = DistributedMemoryConfig(
        mode="distributed",
        n_nodes=4,
        managers_per_node=2,
        store_total_mem=10 * 1024**4,  # more than any machine has
        checkpoint_total_mem=20 * 1024**3,
    )
    memory_manager = LangraphMemoryManager(distributed_config=distributed_config)
    assert not memory_manager.is_distributed()
    assert "Dragon not available - using local fallback" in caplog.text
    assert "store_total_mem" in caplog.text
    memory_manager.close()


@pytest.mark.parametrize("place", ["local", "subprocess"])
async def test_the_full_info_has_the_pages_shape(place: str) -> None:
    config = config_at(place, store_total_mem=1024**3, checkpoint_total_mem=1024**3)
    async with LangraphMemoryManager(distributed_config=config, **settings_at(place)) as manager:
        info = manager.get_full_memory_info()
        assert set(info) == {"short_term", "distributed"}
        assert info["distributed"] == {
            "mode": PLACES[place]["mode"],
            "is_distributed": place != "local",
            "store_enabled": True,
            "checkpointer_enabled": True,
            "n_nodes": 1,
            "managers_per_node": 1,
            "store_memory_gb": 1.0,
            "checkpoint_memory_gb": 1.0,
        }
        assert info["short_term"]["total_messages"] == 0


# ---------------------------------------------------------------------- the configuration


def test_the_eight_parameters_have_the_pages_defaults() -> None:
    config = DistributedMemoryConfig()
    assert config.model_dump() == {
        "mode": "auto",
        "managers_per_node": 1,
        "n_nodes": 1,
        "store_total_mem": 10 * 1024**3,
        "checkpoint_total_mem": 20 * 1024**3,
        "enable_store": True,
        "enable_checkpointer": True,
        "fallback_to_local": True,
    }


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mode", "remote"),
        ("managers_per_node", 0),
        ("n_nodes", 0),
        ("store_total_mem", -1),
        ("checkpoint_total_mem", "much"),
        ("enable_store", "perhaps"),
        ("nodes", 1),
    ],
)
def test_an_impossible_value_names_its_parameter(field: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=field):
        DistributedMemoryConfig(**{field: value})


@pytest.mark.parametrize(
    ("variable", "distributed"),
    [
        (None, False),
        ("SLURM_JOB_ID", True),
        ("PBS_JOBID", True),
        ("LSB_JOBID", True),
        ("DRAGON_MY_PUID", True),
    ],
)
def test_auto_looks_where_it_is(
    monkeypatch: pytest.MonkeyPatch, variable: str | None, distributed: bool
) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_JOBID", "PBS_JOBID", "LSB_JOBID", "DRAGON_MY_PUID"):
        monkeypatch.delenv(name, raising=False)
    if variable:
        monkeypatch.setenv(variable, "1")
    assert DistributedMemoryConfig(mode="auto").should_use_distributed() == distributed
    assert DistributedMemoryConfig(mode="distributed").should_use_distributed()
    assert not DistributedMemoryConfig(mode="local").should_use_distributed()


async def test_what_is_not_enabled_is_not_there() -> None:
    config = DistributedMemoryConfig(mode="local", enable_store=False, enable_checkpointer=False)
    async with LangraphMemoryManager(distributed_config=config) as manager:
        assert manager.get_store() is None
        assert manager.get_checkpointer() is None
        info = manager.get_full_memory_info()["distributed"]
        assert not info["store_enabled"]
        assert not info["checkpointer_enabled"]


# ---------------------------------------------------------------------- store and checkpointer


@pytest.mark.parametrize("place", mode_params("subprocess", "dragon", slow=("dragon",)))
async def test_store_and_saver_are_made_as_the_original_ones(place: str) -> None:
    more: Any = {"fallback_to_local": False, **settings_at(place)}
    store = DragonDDictStore(managers_per_node=1, n_nodes=1, total_mem=32 * MiB, **more)
    if place == "dragon":  # seconds to open: one is enough
        more["cluster"] = store.cluster
    saver = DragonCheckpointSaver(managers_per_node=1, n_nodes=1, total_mem=32 * MiB, **more)
    try:
        assert store.using_dragon == saver.using_dragon == (place == "dragon")
        for key in ("a:b", "a::b", ":", "a/b", "langgraph:checkpoint"):
            store.put(("x:y", "z"), key, {"key": key})
            await store.aput(("x", "y:z"), key, {"other": key})
        found = await store.asearch(("x:y", "z"))
        assert sorted(item.value["key"] for item in found) == sorted(item.key for item in found)
        config = await saver.aput(config_of("a:b"), checkpoint_of({"v": 1}), {}, {})
        assert saver.get_tuple(config) is not None
        assert saver.get_tuple(config_of("a")) is None
    finally:
        for each in (store, saver, store, saver):
            each.close()


KILLED = """
    import asyncio, os, sys
    from flowgentic_actors import MemoryCluster

    async def main():
        async with MemoryCluster.attach(sys.argv[1]) as memory:
            number = 0
            while True:
                await asyncio.gather(*(
                    memory.store.aput(("client",), str(number + n), {"v": "x" * 1000})
                    for n in range(20)
                ))
                number += 20
                print(number, flush=True)

    asyncio.run(main())
"""


@pytest.mark.parametrize("mode", mode_params("subprocess", "dragon"))
async def test_a_client_that_is_killed_harms_nobody(memory: MemoryCluster) -> None:
    """One SIGKILL of a busy client left the original hanging for everybody."""
    store = DragonDDictStore(cluster=memory)
    for _ in range(3):
        with python(KILLED, await asyncio.to_thread(memory.handle.export)) as client:
            assert client.stdout is not None
            line = await asyncio.to_thread(client.stdout.readline)
            client.send_signal(signal.SIGKILL)
        async with asyncio.timeout(20):
            found = await store.asearch(("client",), limit=10_000)
            await store.aput(("other",), "key", {"v": 1})
        assert len(found) >= int(line)
        for item in found:
            await store.adelete(item.namespace, item.key)


async def test_settings_beside_a_cluster_that_has_its_own_are_refused() -> None:
    async with MemoryCluster(mode="local") as memory:
        for over_it in (DragonDDictStore, DragonCheckpointSaver):
            with pytest.raises(TypeError, match="keep_last: give settings to the cluster"):
                over_it(cluster=memory, keep_last=3)
            over_it(cluster=memory).close()


async def test_a_search_costs_its_answer_and_not_the_whole() -> None:
    store = DragonDDictStore(total_mem=64 * MiB, spawner="subprocess")
    try:

        async def took() -> float:
            times = []
            for _ in range(30):
                began = time.perf_counter()
                assert len(await store.asearch(("few", "x"), limit=10)) == 10
                times.append(time.perf_counter() - began)
            return sorted(times)[len(times) // 2]

        await store.abatch([PutOp(("few", "x"), str(n), {"n": n}) for n in range(10)])
        alone = await took()
        for start in range(0, 20_000, 1000):
            ops = [
                PutOp(("many", str(n % 50)), str(n), {"n": n}) for n in range(start, start + 1000)
            ]
            await store.abatch(ops)
        assert await took() < 3 * alone  # the original read all keys
    finally:
        await asyncio.to_thread(store.close)


# ---------------------------------------------------------------------- short-term memory


async def test_of_a_hundred_users_none_sees_anothers_messages() -> None:
    index = {"dims": 2, "embed": lambda texts: [[1.0, len(t)] for t in texts], "fields": ["text"]}
    async with LangraphMemoryManager(MemoryConfig(max_short_term_messages=6), index=index) as m:
        store = m.get_store()
        assert store is not None

        async def talk(user: str) -> None:
            for number in range(5):
                said: list[BaseMessage] = [HumanMessage(f"{user} says {number}"), AIMessage(user)]
                await m.add_interaction(user, said, thread_id=f"t{number % 2}")
                await store.aput(("notes", user.replace(".", "-")), "note", {"owner": user})

        users = [f"user.{n}" for n in range(100)]
        await asyncio.gather(*map(talk, users))

        for user in users:
            for thread in ("t0", "t1"):
                context = await m.get_relevant_context(user, "says", thread_id=thread)
                for kept in (context["short_term"], context["relevant_messages"]):
                    assert kept
                    assert all(str(message.content).split()[0] == user for message in kept)
            (item,) = await store.asearch(("notes", user.replace(".", "-")))
            assert item.value == {"owner": user}
        with pytest.raises(ValueError, match="user_id"):
            m.get_short_term_messages()
        assert m.get_memory_health()["conversations"] == 200


async def test_relevant_messages_are_found_by_similarity_also_when_they_are_let_go() -> None:
    def embed(texts: Any) -> list[list[float]]:
        return [[float(word in text) for word in ("tea", "rain", "sea")] for text in texts]

    index = {"dims": 3, "embed": embed, "fields": ["text"]}
    config = MemoryConfig(max_short_term_messages=3, context_window_buffer=2)
    async with LangraphMemoryManager(config, index=index) as manager:
        for text in ("I like tea", "it may rain", "the sea", "hm", "well", "so"):
            await manager.add_interaction("ada", [HumanMessage(text)])
        context = await manager.get_relevant_context("ada", "any tea?")
        assert [m.content for m in context["short_term"]] == ["hm", "well", "so"]
        assert context["relevant_messages"][0].content == "I like tea"
        assert [m.content for m in context["relevant_messages"][-2:]] == ["well", "so"]
        await manager.aclear("ada")
        context = await manager.get_relevant_context("ada", "any tea?")
        assert context["relevant_messages"] == context["short_term"] == []


async def test_the_managers_short_term_methods_have_the_originals_shapes() -> None:
    manager = LangraphMemoryManager()
    said: list[BaseMessage] = [HumanMessage("hi"), AIMessage("hello")]
    told = await manager.add_interaction("ada", said, {"from": "a test"})
    assert told["short_term_messages"] == 2
    assert told["total_interactions"] == 1
    assert told["memory_stats"]["human_messages"] == 1
    assert manager.get_short_term_messages() == said
    assert manager.get_short_term_messages("grace") == []
    consolidated = await manager.consolidate_memory()
    assert consolidated["short_term"]["consolidated_messages"] == 2
    assert manager.get_memory_health()["ai_messages"] == 1
    with pytest.raises(ValidationError, match="max_short_term_messages"):
        manager.update_config(max_short_term_messages=0)
    manager.update_config(max_short_term_messages=1)
    assert manager.get_short_term_messages("ada") == said[1:]
    manager.clear_short_term_memory()
    assert manager.get_short_term_messages("ada") == []
    manager.close()


# ---------------------------------------------------------------------- the integration


async def test_what_fails_on_entry_leaves_nothing_open() -> None:
    class Broken(ThreadPoolExecutor):
        pass

    with pytest.raises(TypeError, match="backend"):
        LangraphIntegration(backend=object())
    integration = LangraphIntegration()
    with pytest.raises(ClusterClosedError):
        _ = integration.execution_wrappers
    async with integration:
        pass
    assert integration.memory_manager.distributed.closed


def test_the_package_root_hands_the_names_on() -> None:
    program = """
        from flowgentic_actors import (
            DistributedMemoryConfig, DistributedMemoryManager, DragonCheckpointSaver,
            DragonDDictStore, LangraphIntegration, LangraphMemoryManager,
        )
        print(LangraphIntegration.__module__)
    """
    told = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.strip() == "flowgentic_actors.langGraph.main"
