"""Searches by similarity: what is embedded, how it is ranked, and that pages are whole."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from langchain_core.embeddings import Embeddings
from langgraph.store.base import PutOp, SearchOp
from pydantic import ValidationError

from flowgentic_actors import AsyncStore, MemoryCluster
from flowgentic_actors.engine import item_queries, pace
from flowgentic_actors.errors import InvalidRequestError
from tests.conftest import settings_of
from tests.support.faces import StoreFace, unique

pytestmark = pytest.mark.anyio

WORDS = ("tea", "rain", "sea", "bread")


class Embedder:
    """Counts words, and how often it is asked."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def vectors(self, texts: Sequence[str]) -> list[list[float]]:
        self.calls.append(list(texts))
        if any("poison" in text for text in texts):
            raise ValueError("that text is poison")
        return [[float(text.split().count(word)) for word in WORDS] for text in texts]

    async def awaited(self, texts: Sequence[str]) -> list[list[float]]:
        await asyncio.sleep(0.001)
        return self.vectors(texts)


class _LangChain(Embeddings):
    def __init__(self) -> None:
        self.embedder = Embedder()

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return self.embedder.vectors(texts)

    def embed_query(self, text: str) -> list[float]:
        return self.embedder.vectors([text])[0]


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder()


@pytest.fixture(params=["inline", "several-actors"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def clusters(scratch: Path, embedder: Embedder) -> Iterator[dict[str, MemoryCluster]]:
    index = {"dims": 4, "embed": embedder.vectors, "fields": ["text", "parts[*]"]}
    modes = ("inline", "several-actors")
    found = {mode: MemoryCluster(**settings_of(mode), index=index) for mode in modes}
    for memory in found.values():
        asyncio.run(memory.__aenter__())
    yield found
    for memory in found.values():
        asyncio.run(memory.__aexit__(None, None, None))


@pytest.fixture
async def indexed(mode: str, clusters: dict[str, MemoryCluster]) -> AsyncIterator[MemoryCluster]:
    """A cluster with an index, empty."""
    store = clusters[mode].store
    yield clusters[mode]
    for item in await store.asearch((), limit=10_000):
        await store.adelete(item.namespace, item.key)


@pytest.fixture
def store(indexed: MemoryCluster, face: str) -> StoreFace:
    return StoreFace(indexed.store, blocking=face == "sync")


def keys_and_scores(found: Sequence[Any]) -> list[tuple[str, float | None]]:
    return [(i.key, None if i.score is None else round(i.score, 4)) for i in found]


async def test_the_most_similar_comes_first_with_its_score(store: StoreFace) -> None:
    await store.put(("a", "x"), "both", {"text": "tea rain"})
    await store.put(("a", "y"), "tea", {"text": "tea tea tea"})
    await store.put(("a", "y"), "rain", {"text": "rain"})
    await store.put(("a", "z"), "nothing to embed", {"other": "tea"})
    half = round(math.sqrt(0.5), 4)

    found = await store.search(("a",), query="tea")

    expected = [("tea", 1.0), ("both", half), ("rain", 0.0), ("nothing to embed", None)]
    assert keys_and_scores(found) == expected
    assert keys_and_scores(await store.search(("a", "y"), query="tea")) == [
        ("tea", 1.0),
        ("rain", 0.0),
    ]
    assert keys_and_scores(await store.search(("a",), query="tea", limit=1, offset=1)) == [
        ("both", half)
    ]


async def test_an_item_counts_once_with_the_nearest_of_its_vectors(store: StoreFace) -> None:
    await store.put(("a",), "parts", {"parts": ["tea", "tea rain", "sea"]})
    await store.put(("a",), "both", {"text": "bread", "parts": ["rain"]})

    assert keys_and_scores(await store.search(("a",), query="sea")) == [
        ("parts", 1.0),
        ("both", 0.0),
    ]
    assert keys_and_scores(await store.search(("a",), query="rain")) == [
        ("both", 1.0),
        ("parts", round(math.sqrt(0.5), 4)),
    ]


async def test_a_put_says_what_is_embedded(store: StoreFace) -> None:
    value = {"text": "tea", "title": "rain", "deep": {"er": "sea"}}
    await store.put(("a",), "as configured", value)
    await store.put(("a",), "title", value, index=["title", "deep.er"])
    await store.put(("a",), "whole", {"tea": 1}, index=["$"])
    await store.put(("a",), "not", value, index=False)

    found = keys_and_scores(await store.search(("a",), query="rain"))
    assert found[0] == ("title", 1.0)
    assert found[-1] == ("not", None)
    assert {key for key, score in found if score == 0} == {"as configured", "whole"}


async def test_what_was_replaced_or_deleted_is_found_no_more(store: StoreFace) -> None:
    await store.put(("a",), "moved", {"parts": ["tea", "rain"]})
    await store.put(("a",), "gone", {"text": "tea"})
    await store.put(("a",), "moved", {"parts": ["sea"]})
    await store.delete(("a",), "gone")

    assert keys_and_scores(await store.search(("a",), query="tea")) == [("moved", 0.0)]
    await store.put(("a",), "moved", {"other": 1})
    assert keys_and_scores(await store.search(("a",), query="sea")) == [("moved", None)]


async def test_filters_and_namespaces_decide_before_the_order_does(store: StoreFace) -> None:
    for number in range(300):
        value = {"text": "tea " * (number % 3) + "rain", "n": number}
        await store.put(("a", str(number % 4)), f"{number:03}", value)

    found = await store.search(("a", "1"), query="tea", filter={"n": {"$gte": 250}}, limit=3)
    expected = [n for n in range(250, 300) if n % 4 == 1 and n % 3 == 2][:3]
    assert [item.value["n"] for item in found] == expected
    rare = await store.search(("a",), query="tea", filter={"n": 3}, limit=5)
    assert [item.value["n"] for item in rare] == [3]


async def test_deep_pages_are_whole(store: StoreFace, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(150):
        text = " ".join(WORDS[: number % 4] * (1 + number % 2))
        await store.put(("a", str(number % 5)), f"{number:03}", {"text": text, "n": number})
    for number in range(20):
        await store.put(("a",), f"none {number:02}", {})
    whole = await store.search(("a",), query="tea rain", limit=1000)
    assert len(whole) == len({(i.namespace, i.key) for i in whole}) == 170

    paged = []
    for offset in range(0, 180, 7):
        paged += await store.search(("a",), query="tea rain", limit=7, offset=offset)
    assert keys_and_scores(paged) == keys_and_scores(whole)
    if store.store._client.table.owners == (0,):  # in this process: with pages that end early
        monkeypatch.setattr(item_queries, "MAX_PAGE", 3)
        monkeypatch.setattr(pace, "PAGE_SECONDS", -1.0)
        monkeypatch.setattr(pace, "LOOKS", 2)
        again = await store.search(("a",), query="tea rain", limit=1000)
        assert keys_and_scores(again) == keys_and_scores(whole)
        some = await store.search(("a",), query="tea rain", filter={"n": {"$lt": 100}}, limit=99)
        expected = [i.key for i in whole if i.value.get("n", 100) < 100][:99]
        assert [item.key for item in some] == expected


async def test_a_batch_is_embedded_in_one_call(store: StoreFace, embedder: Embedder) -> None:
    embedder.calls.clear()
    await store.batch(
        [PutOp(("a",), str(n), {"text": f"tea {n}"}) for n in range(50)]
        + [PutOp(("a",), "0", {"text": "rain"}), SearchOp(("a",), query="tea")]
    )
    assert [len(call) for call in embedder.calls] == [50, 1]


async def test_calls_of_one_tick_are_embedded_together(
    indexed: MemoryCluster, embedder: Embedder
) -> None:
    embedder.calls.clear()
    puts = [indexed.store.aput(("a",), str(n), {"text": f"tea {n}"}) for n in range(50)]
    puts += [indexed.store.aput(("a",), "poison", {"text": "poison"})]
    results = await asyncio.gather(*puts, return_exceptions=True)
    assert results[:-1] == [None] * 50
    assert isinstance(results[-1], ValueError)
    assert len(embedder.calls[0]) == 51  # and once more, each caller for himself

    embedder.calls.clear()
    await asyncio.gather(*puts_of(indexed, 50))
    assert len(embedder.calls) == 1


def puts_of(memory: MemoryCluster, count: int) -> list[Any]:
    return [memory.store.aput(("a",), str(n), {"text": f"sea {n}"}) for n in range(count)]


async def test_an_embedding_that_fails_stores_nothing(store: StoreFace) -> None:
    with pytest.raises(ValueError, match="poison"):
        await store.put(("a",), "key", {"text": "poison"})
    assert await store.get(("a",), "key") is None
    with pytest.raises(ValueError, match="poison"):
        await store.search(("a",), query="poison")


@pytest.mark.parametrize("kind", ["sync", "async", "LangChain"])
async def test_any_kind_of_embedding_serves_awaiting_and_blocking_calls(
    kind: str, face: str
) -> None:
    embedder = Embedder()
    kinds = {"sync": embedder.vectors, "async": embedder.awaited, "LangChain": _LangChain()}
    index = {"dims": 4, "embed": kinds[kind], "fields": ["text"]}
    async with MemoryCluster(mode="local", index=index) as memory:
        store = StoreFace(memory.store, blocking=face == "sync")
        await store.put(("a",), "tea", {"text": "tea"})
        await store.put(("a",), "rain", {"text": "rain"})
        assert await store.keys(("a",), query="rain", limit=1) == ["rain"]


async def test_vectors_of_another_size_are_refused(face: str) -> None:
    async def wrong(texts: Sequence[str]) -> list[list[float]]:
        return [[1.0, 2.0]] * len(texts)

    async with MemoryCluster(mode="local", index={"dims": 3, "embed": wrong}) as memory:
        store = StoreFace(memory.store, blocking=face == "sync")
        with pytest.raises(InvalidRequestError, match=r"index\['dims'\] is 3"):
            await store.put(("a",), "key", {"text": "tea"})


@pytest.mark.parametrize(
    ("index", "field"),
    [
        ({"embed": len}, "dims"),
        ({"dims": 0, "embed": len}, "dims"),
        ({"dims": 3}, "embed"),
        ({"dims": 3, "embed": 7}, "embed"),
        ({"dims": 3, "embed": len, "fields": "text"}, "fields"),
        ({"dims": 3, "embed": len, "field": ["text"]}, "field"),
    ],
)
def test_an_impossible_index_is_refused(index: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError, match=f"index.{field}"):
        MemoryCluster(index=index)


@pytest.mark.parametrize("mode", ["subprocess"])
async def test_vectors_are_there_again_in_the_next_cluster(
    mode: str, embedder: Embedder, tmp_path: Path
) -> None:
    index = {"dims": 4, "embed": embedder.vectors, "fields": ["text"]}
    path = tmp_path / "memory"
    for actors, round_ in ((1, 0), (2, 1)):
        async with MemoryCluster(
            **settings_of(mode), index=index, persist_path=path, actors_per_node=actors
        ) as memory:
            for word in WORDS:
                await memory.store.aput((word, str(round_)), "key", {"text": word})
            found = await memory.store.asearch((), query="sea", limit=1 + round_)
            assert [item.namespace for item in found] == [("sea", "0"), ("sea", "1")][: 1 + round_]
            sizes = [actor.vector_bytes for actor in (await memory.status()).actors]
        async with MemoryCluster(mode="local", index=index, persist_path=path) as memory:
            assert len(await memory.store.asearch((), query="rain", limit=99)) == 4 * (1 + round_)
    assert len(sizes) == 2


async def test_namespaces_of_others_are_not_seen(store: StoreFace) -> None:
    label = unique()
    await store.put((label, "mine"), "key", {"text": "tea"})
    assert await store.search((label, "yours"), query="tea") == []
    assert await store.search((label[:-1],), query="tea") == []


def the(store_index: dict[str, Any]) -> dict[str, Any]:
    return {"dims": 4, "embed": Embedder().vectors, "fields": ["text"], **store_index}


SCORES = {
    "cosine": [("tea", 1.0), ("much", 1.0), ("both", math.sqrt(0.5)), ("rain", 0.0)],
    "l2": [("tea", 0.0), ("both", -1.0), ("rain", -math.sqrt(2)), ("much", -2.0)],
    "inner_product": [("much", 3.0), ("both", 1.0), ("tea", 1.0), ("rain", 0.0)],
}
"""Keys and scores of a search for tea, by `distance_type`, as PostgresStore gives them."""


@pytest.mark.parametrize("search_mode", ["inline", "inline-journal", "several-actors"])
async def test_scores_are_those_of_the_distance_type(search_mode: str, face: str) -> None:
    settings = {**settings_of(search_mode), "namespace_depth": 2}
    texts = {"tea": "tea", "much": "tea tea tea", "both": "tea rain", "rain": "rain"}
    async with MemoryCluster(**settings, index=the({"distance_type": "l2"})) as memory:
        for metric, expected in SCORES.items():
            faced = AsyncStore(memory.client, index=the({"distance_type": metric}))  # type: ignore[arg-type]
            store = StoreFace(faced, blocking=face == "sync")
            for key, text in texts.items():
                await store.put(("a", key), key, {"text": text})
            found = await store.search(("a",), query="tea")
            order = sorted(expected, key=lambda pair: (-pair[1], pair[0]))
            assert [item.key for item in found] == [key for key, _ in order]
            assert [item.score for item in found] == pytest.approx([score for _, score in order])
        by_default = await memory.store.asearch(("a",), query="tea")
        assert [item.key for item in by_default] == [key for key, _ in SCORES["l2"]]


async def test_a_reopened_memory_is_searched_by_its_new_distance_type(tmp_path: Path) -> None:
    path = tmp_path / "memory"
    async with MemoryCluster(mode="local", persist_path=path, index=the({})) as memory:
        await memory.store.aput(("a",), "much", {"text": "tea tea tea"})
    for metric, score in (("inner_product", 3.0), ("l2", -2.0), ("cosine", 1.0)):
        index = the({"distance_type": metric})
        async with MemoryCluster(mode="local", persist_path=path, index=index) as memory:
            assert [i.score for i in await memory.store.asearch((), query="tea")] == [score]


@pytest.mark.parametrize("component", [math.nan, math.inf, 1e39, None])
async def test_a_query_vector_that_is_not_finite_is_refused(component: Any, face: str) -> None:
    def embed(texts: Sequence[str]) -> list[list[Any]]:
        return [[component if "wrong" in text else 1.0, 0.0] for text in texts]

    async with MemoryCluster(mode="local", index={"dims": 2, "embed": embed}) as memory:
        store = StoreFace(memory.store, blocking=face == "sync")
        await store.put(("a",), "key", {"text": "right"})
        with pytest.raises(InvalidRequestError, match="vector"):
            await store.search(("a",), query="wrong")
        with pytest.raises(InvalidRequestError, match="vector"):
            await store.put(("a",), "other", {"text": "wrong"})
        assert await store.keys(("a",), query="right") == ["key"]


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"distance_type": "hamming"}, "'cosine', 'l2' or 'inner_product'"),
        ({"ann_index_config": {"kind": "hnsw"}}, "exact without an approximate index"),
        ({"ann_index_config": {"vector_type": "halfvec"}}, "32-bit floats"),
        ({"quantization": "int8"}, "32-bit floats"),
        ({"vector_type": "halfvec"}, "32-bit floats"),
        ({"metric": "l2"}, "use distance_type"),
        ({"fields": ["a"], "text_fields": ["b"]}, "another name of 'fields'"),
    ],
)
def test_keys_of_other_stores_are_refused_with_what_to_use(
    index: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=f"index.{list(index)[-1]}") as refused:
        MemoryCluster(index={"dims": 3, "embed": len, **index})
    assert message in str(refused.value)


async def test_keys_of_other_stores_that_mean_the_same_are_taken() -> None:
    index = {"ann_index_config": {"kind": "flat", "vector_type": "vector"}, "fields": None}
    given = {"dims": 4, "embed": Embedder().vectors, "text_fields": ["text"], **index}
    async with MemoryCluster(mode="local", index=given) as memory:
        await memory.store.aput(("a",), "key", {"text": "tea", "other": "rain"})
        assert [i.score for i in await memory.store.asearch((), query="tea")] == [1.0]
        assert memory.store.index_config == given
