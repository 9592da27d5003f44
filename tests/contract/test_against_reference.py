"""Store, checkpointer and cache against LangGraph's own in-memory ones, under the same calls.

Where the reference is not sane, ours does something else, and these tests look away:

| LangGraph's `InMemoryStore` | ours |
|---|---|
| an update resets `created_at` | keeps it |
| what is returned is what is stored: who changes it changes the item | values are copies |
| what is found is in the order of insertion | by score, then namespace, then key |
| an ordering operator on a missing field or a word raises | does not match |
| an ordering operator compares texts as numbers: "10" is above "9" | as texts |
| `True` equals 1 | they differ, as in JSON |
| asking for an item makes its namespace, and deleting one leaves it | no items, no namespace |
| pages begin anew behind the last item that has a score | pages make up the whole |
| an item keeps old vectors when its new value has fewer texts or none | each put decides anew |
| the same text twice in a batch raises | is embedded once |
| `index=["$"]` of a put is a field of that name | the whole value, as in the configuration |
| a query whose vector is zero scores nan | scores 0 |

| LangGraph's `InMemorySaver` | ours |
|---|---|
| lists, and limits, thread by thread and namespace by namespace | the newest of all first |
| a value that comes without a new version may be lost | is kept |
| a config without a namespace is refused by `put`, and given back by `get_tuple` | is the root's |
| a history never ends when parents form a circle | ends where it has been before |
| `prune`, `copy_thread` and `delete_for_runs` raise | work |

`InMemoryCache` is sane. What the references do not have, such as items' lives and versions, is
tested elsewhere; values are such as JSON has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple, TypeAlias, TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langgraph.cache.memory import InMemoryCache
from langgraph.checkpoint.base import ChannelVersions, CheckpointTuple, empty_checkpoint
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.types import ERROR, INTERRUPT, RESUME
from langgraph.store.base import (
    GetOp,
    IndexConfig,
    Item,
    ListNamespacesOp,
    MatchCondition,
    Op,
    PutOp,
    Result,
    SearchItem,
    SearchOp,
)
from langgraph.store.memory import InMemoryStore

from flowgentic_actors import AsyncStore, MemoryCluster
from tests.support.faces import SaverFace, StoreFace, config_of, id_of, unique

T = TypeVar("T")

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("mode", ["inline", "several-actors"]),
]

PROFILE = settings(
    max_examples=20,
    deadline=None,
    database=None,
    # Examples share a cluster: each begins by deleting what the last one left.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

ALL = 1000  # more than any example stores


# ---------------------------------------------------------------------- the store

ROOT = unique()  # of our namespaces in a shared cluster


def made(
    kind: type[T], *parts: st.SearchStrategy[Any], **named: st.SearchStrategy[Any]
) -> st.SearchStrategy[T]:
    """Like `st.builds`, which would also draw what has a default."""
    drawn = st.tuples(st.tuples(*parts), st.fixed_dictionaries(named))
    return drawn.map(lambda given: kind(*given[0], **given[1]))


def batches_of(
    puts: st.SearchStrategy[Any], reads: st.SearchStrategy[Any]
) -> st.SearchStrategy[list[list[Op]]]:
    """One batch that fills the store, and some of anything."""
    mixed = st.lists(puts | reads, min_size=2, max_size=8)
    drawn = st.tuples(st.lists(puts, min_size=5, max_size=20), st.lists(mixed, max_size=8))
    return drawn.map(lambda given: [given[0], *given[1]])


namespaces = st.lists(st.sampled_from(("a", "ab", "b")), max_size=2).map(lambda path: (ROOT, *path))
keys = st.sampled_from(("", "k", "kk", "l"))
NUMBERS = (-1, 0, 1, 1.5, 2)
OTHER_FIELDS: tuple[dict[str, Any], ...] = (
    {},
    {"text": "a"},
    {"text": "", "flag": True},
    {"text": "bc", "tags": []},
    {"tags": ["#a"], "flag": False},  # a tag is never the same as another text
    {"tags": ["#a", "#bb"]},
    {"deep": {"a": 1}},
    {"deep": {"a": 2, "b": "a"}, "text": "cab"},
    {"deep": {"a": 1.5, "b": ""}, "tags": ["#", "#abc"]},
)
VALUES = [{"n": n, **others} for n, others in product(NUMBERS, OTHER_FIELDS)]
values = st.sampled_from(VALUES)
values_and_deletes = st.sampled_from([*VALUES, *[None] * 10])

ORDERED = ("$eq", "$ne", "$gt", "$gte", "$lt", "$lte")
CONDITIONS: dict[str, tuple[Any, ...]] = {
    "n": (
        *NUMBERS,
        *({operator: n} for operator, n in product(ORDERED, NUMBERS)),
        {"$gte": 0, "$lt": 1.5},
        {"$gt": -1, "$ne": 1},
    ),
    "text": ("a", "", None, {"$eq": "a"}, {"$ne": "a"}, {"$ne": None}),
    "flag": (True, None, {"$eq": False}, {"$ne": True}),
    "tags": (
        [],
        ["#a"],
        ["#a", {"$ne": "#abc"}],
        [{"$eq": "#"}, "#abc"],
        {"$eq": ["#a", "#bb"]},
        {"$ne": ["#a"]},
    ),
    "deep": (
        {},
        {"a": 1},
        {"a": {"$gt": 1}, "b": {"$ne": "a"}},
        {"b": None},
        {"$eq": {"a": 1}},
        {"$ne": {"a": 2, "b": "a"}},
    ),
}
one_filter = st.sampled_from([{field: c} for field, some in CONDITIONS.items() for c in some])
filters = one_filter | st.tuples(one_filter, one_filter).map(lambda two: two[0] | two[1])
windows = {"limit": st.sampled_from((0, 1, 2, 3, 8)), "offset": st.integers(0, 3)}

patterns = st.lists(st.sampled_from(("a", "ab", "b", "*")), max_size=2)
conditions = made(MatchCondition, st.just("suffix"), patterns.map(tuple)) | made(
    MatchCondition, st.just("prefix"), patterns.map(lambda path: (ROOT, *path))
)
below_root = MatchCondition("prefix", (ROOT,))

puts = made(PutOp, namespaces, keys, values_and_deletes)
reads = (
    made(GetOp, namespaces, keys)
    | made(SearchOp, namespaces, st.none() | filters, **windows)
    | made(
        ListNamespacesOp,
        st.lists(conditions, max_size=2).map(lambda drawn: (below_root, *drawn)),
        st.none() | st.integers(1, 3),
        **windows,
    )
)

QUERIES = st.text("abc", min_size=1, max_size=3)
INDEX: IndexConfig = {
    "dims": 3,
    "embed": lambda texts: [[float(text.count(letter)) for letter in "abc"] for text in texts],
    "fields": ["text", "tags[*]"],
}
PATHS: tuple[Any, ...] = (
    None,
    False,
    [],
    ["text"],
    ["tags[-1]", "deep.b", "nowhere"],
    ["{text,deep}"],
    ["*"],
)
"""What of an item is embedded: by default, nothing, some of it."""

embedded_puts = made(PutOp, namespaces, keys, values_and_deletes, st.sampled_from(PATHS))
similarity_searches = made(
    SearchOp, namespaces, st.none() | filters, query=st.none() | QUERIES, **windows
)


class ReferenceStore:
    """LangGraph's store, asked so that what is not sane in it does not show."""

    def __init__(self, index: IndexConfig | None = None) -> None:
        self._store = InMemoryStore(index=index)

    def batch(self, ops: Sequence[Op]) -> list[Result]:
        listings = {
            n: self._list(op) for n, op in enumerate(ops) if isinstance(op, ListNamespacesOp)
        }
        results = self._store.batch(
            [op._replace(index=False) if isinstance(op, PutOp) else op for op in ops]
        )
        self._embed({(op.namespace, op.key): op for op in ops if isinstance(op, PutOp)})
        return [listings.get(n, result) for n, result in enumerate(results)]

    def _embed(self, last_puts: Mapping[Any, PutOp]) -> None:
        """Put items once more, with vectors: one by one, so that no text is twice in a batch, and
        onto nothing, so that no old vector stays.
        """
        for put in last_puts.values():
            self._store.batch([put._replace(value=None)])
            self._store.batch([put])

    def _list(self, op: ListNamespacesOp) -> Result:
        """List only namespaces that have items."""
        found: Any
        (found,) = self._store.batch([op._replace(max_depth=None, limit=ALL, offset=0)])
        inhabited = {item.namespace for item in self._store.search((), limit=ALL)}
        cut = sorted({ns[: op.max_depth] for ns in found if ns in inhabited})
        return cut[op.offset : op.offset + op.limit]


async def expect_same_results(
    store: StoreFace, reference: ReferenceStore, ops: Sequence[Op]
) -> None:
    """Carry out a batch in both.

    The orders of what a search finds differ: all of it is compared, and the page with all of ours.
    """
    wholes = [op._replace(limit=ALL, offset=0) for op in ops if isinstance(op, SearchOp)]
    ours = await store.batch([*ops, *wholes])
    theirs = reference.batch([*ops, *wholes])

    found: Any = iter(zip(ours[len(ops) :], theirs[len(ops) :], strict=True))
    for op, our, their in zip(ops, ours, theirs, strict=False):
        if isinstance(op, SearchOp):
            whole, expected = next(found)
            assert looked_at(our) == looked_at(whole)[op.offset : op.offset + op.limit]
            expect_same_whole(whole, expected)
        else:
            assert looked_at(our) == looked_at(their)


def expect_same_whole(ours: Any, theirs: Any) -> None:
    assert ours == sorted(ours, key=in_our_order)
    found, expected = ({(i.namespace, i.key): i for i in items} for items in (ours, theirs))
    assert len(found) == len(ours)
    assert {place: item.value for place, item in found.items()} == {
        place: item.value for place, item in expected.items()
    }
    for place, item in found.items():
        assert item.score == pytest.approx(expected[place].score, abs=1e-6)  # ours are 32-bit


def in_our_order(item: SearchItem) -> tuple[bool, float, tuple[str, ...], str]:
    return item.score is None, -(item.score or 0.0), item.namespace, item.key


def looked_at(result: Any) -> Any:
    """Items without their times."""
    if isinstance(result, list):
        return [looked_at(part) for part in result]
    if isinstance(result, Item):
        return result.namespace, result.key, result.value, getattr(result, "score", None)
    return result


async def delete_all(store: StoreFace) -> None:
    left = await store.search((ROOT,), limit=ALL)
    await store.batch([PutOp(item.namespace, item.key, None) for item in left])


@PROFILE
@given(batches=batches_of(puts, reads), blocking=st.booleans())
async def test_a_store_answers_like_the_reference(
    memory: MemoryCluster, batches: list[list[Op]], blocking: bool
) -> None:
    store, reference = StoreFace(memory.store, blocking=blocking), ReferenceStore()
    await delete_all(store)
    for ops in batches:
        await expect_same_results(store, reference, ops)
    await expect_same_results(
        store, reference, [SearchOp((ROOT,)), ListNamespacesOp((below_root,), None, ALL)]
    )


@PROFILE
@given(
    batches=batches_of(embedded_puts, similarity_searches),
    query=QUERIES,
    blocking=st.booleans(),
)
async def test_similarity_searches_find_what_the_reference_finds(
    memory: MemoryCluster, batches: list[list[Op]], query: str, blocking: bool
) -> None:
    store = StoreFace(AsyncStore(memory.store._client, index=INDEX), blocking=blocking)
    reference = ReferenceStore(INDEX)
    await delete_all(store)
    for ops in batches:
        await expect_same_results(store, reference, ops)
    await expect_same_results(store, reference, [SearchOp((ROOT,), query=query)])


# ---------------------------------------------------------------------- the checkpointer

THREAD, OTHER_THREAD = THREADS = (unique(), unique())
BRANCHES = ((THREAD, ""), (THREAD, "child:1"), (OTHER_THREAD, ""))
IDS = ("1", "2", "3", "4", "5")  # by chance they arrive late, or once more
CHANNELS = ("messages", "count", "__root__")
EMPTIED = object()
OWNER = unique()  # tells our checkpoints from what others have in a shared cluster


class Put(NamedTuple):
    """Store a checkpoint as LangGraph's loop does: what has changed has a new version.

    Its parent is one of those that are older, by `age`: often not the latest of its branch.
    """

    branch: tuple[str, str]
    id: str
    age: int
    changes: dict[str, Any]
    metadata: dict[str, Any]
    with_our_version: bool


class Write(NamedTuple):
    """Store pending writes, maybe before their checkpoint."""

    branch: tuple[str, str]
    id: str
    task: str
    path: str
    writes: list[tuple[str, Any]]


class Listing(NamedTuple):
    """List checkpoints: of all threads, namespaces or ids where it names none."""

    thread: str | None
    ns: str | None
    id: str | None
    filter: dict[str, Any] | None
    before: str | None
    limit: int | None


Step: TypeAlias = Put | Write | Listing

METADATA: dict[str, tuple[Any, ...]] = {
    "source": ("input", "loop", "fork"),
    "step": (-1, 0, 1.0),
    "score": (None, 0.5, 1),
    "by": ({"name": "x"}, {"name": "x", "n": 1}),
    "tags": ([], ["a"]),
}
one_field = st.sampled_from([{field: v} for field, some in METADATA.items() for v in some])
two_fields = st.tuples(one_field, one_field).map(lambda two: two[0] | two[1])

branches = st.sampled_from(BRANCHES)
ids = st.sampled_from(IDS)
channels = st.sampled_from(CHANNELS)
steps: st.SearchStrategy[Step] = st.one_of(
    made(
        Put,
        branches,
        ids,
        age=st.sampled_from((0, 0, 1, 2)),
        changes=st.dictionaries(channels, st.sampled_from((EMPTIED, None, 1, {"a": [2.5]}))),
        metadata=two_fields,
        with_our_version=st.booleans(),
    ),
    made(
        Write,
        branches,
        ids,
        task=st.sampled_from(("t1", "t2")),
        path=st.sampled_from(("", "~a", "~b")),
        writes=st.lists(
            st.tuples(channels | st.sampled_from((ERROR, INTERRUPT, RESUME)), values),
            min_size=1,
            max_size=3,
        ),
    ),
    made(
        Listing,
        thread=st.sampled_from((None, *THREADS)),
        ns=st.sampled_from((None, None, "", "child:1")),
        id=st.sampled_from((None, None, None, *IDS[:2])),
        filter=st.none() | one_field | two_fields,
        before=st.none() | ids,
        limit=st.none() | st.integers(0, 4),
    ),
)


class Savers:
    """Ours and the reference: they are told the same and have to answer the same."""

    def __init__(self, ours: SaverFace) -> None:
        self.ours = ours
        self.reference = InMemorySaver()

    async def take(self, step: Step) -> None:
        match step:
            case Put():
                await self.put(step)
            case Write(branch, id_, task, path, writes):
                config = config_of(*branch, id_)
                await self.ours.put_writes(config, writes, task, path)
                self.reference.put_writes(config, writes, task, path)
            case Listing():
                await self.list(step)

    async def forget(self, thread: str) -> None:
        await self.ours.delete_thread(thread)
        self.reference.delete_thread(thread)

    async def put(self, step: Put) -> None:
        branch, before = config_of(*step.branch), config_of(*step.branch, step.id)
        older = list(self.reference.list(branch, before=before))
        parent = await self.get(older[step.age].config) if step.age < len(older) else None
        config = parent.config if parent else branch

        checkpoint = parent.checkpoint if parent else empty_checkpoint()
        values, versions = checkpoint["channel_values"], checkpoint["channel_versions"]
        by = self.ours.saver if step.with_our_version else self.reference
        latest = max((str(version) for version in versions.values()), default=None)
        new: ChannelVersions = dict.fromkeys(step.changes, by.get_next_version(latest, None))
        versions.update(new)
        values.update(step.changes)
        checkpoint["channel_values"] = {c: v for c, v in values.items() if v is not EMPTIED}
        checkpoint["id"] = step.id
        checkpoint["versions_seen"] = {"node": dict(versions)}

        metadata: Any = {"source": "loop", "step": 0, "parents": {}, **step.metadata}
        metadata["owner"] = OWNER
        stored = self.reference.put(config, checkpoint, metadata, new)
        assert await self.ours.put(config, checkpoint, metadata, new) == stored
        await self.get(stored)

    async def get(self, config: Any) -> CheckpointTuple | None:
        found = await self.ours.get(config)
        assert found == self.reference.get_tuple(config)
        return found

    async def list(self, step: Listing) -> None:
        config = config_of(step.thread, step.ns, step.id) if step.thread else None
        wanted = step.filter if step.thread else {**(step.filter or {}), "owner": OWNER}
        before = config_of("any", "any", step.before) if step.before else None

        whole = self.reference.list(config, filter=wanted, before=before)
        expected = sorted(whole, key=position_of, reverse=True)[: step.limit]
        listing = self.ours.each(config, filter=wanted, before=before, limit=step.limit)
        assert [found async for found in listing] == expected

    async def compare_everything(self) -> None:
        for branch, id_ in product(BRANCHES, (None, *IDS)):
            config = config_of(*branch, id_)
            await self.get(config)
            history = self.reference.get_delta_channel_history(config=config, channels=CHANNELS)
            assert await self.ours.channel_history(config, CHANNELS) == history
        await self.list(Listing(None, None, None, None, None, None))


def position_of(found: CheckpointTuple) -> tuple[str, str, str]:
    where = found.config["configurable"]
    return id_of(found.config), where["thread_id"], where["checkpoint_ns"]


@PROFILE
@given(
    before=st.lists(steps, min_size=15, max_size=40),
    forgotten=st.sampled_from(THREADS),
    after=st.lists(steps, max_size=10),
    blocking=st.booleans(),
)
async def test_a_checkpointer_answers_like_the_reference(
    memory: MemoryCluster, before: list[Step], forgotten: str, after: list[Step], blocking: bool
) -> None:
    savers = Savers(SaverFace(memory.checkpointer, blocking=blocking))
    for thread in THREADS:
        await savers.forget(thread)
    for step in before:
        await savers.take(step)
    await savers.compare_everything()
    await savers.forget(forgotten)
    for step in after:
        await savers.take(step)
    await savers.compare_everything()


# ---------------------------------------------------------------------- the cache

CACHE_NAMESPACES = ((ROOT,), (ROOT, "a"), (ROOT, "a", "b"))
CACHE_KEYS = tuple(product(CACHE_NAMESPACES, ("", "k", "l")))

calls = st.one_of(
    st.tuples(
        st.just("set"),
        st.dictionaries(
            st.sampled_from(CACHE_KEYS),
            st.tuples(st.none() | values, st.sampled_from((None, 0, 1000))),
        ),
    ),
    st.tuples(st.just("get"), st.lists(st.sampled_from(CACHE_KEYS))),
    st.tuples(st.just("clear"), st.none() | st.lists(st.sampled_from(CACHE_NAMESPACES))),
)


@PROFILE
@given(calls=st.lists(calls, min_size=10, max_size=30), blocking=st.booleans())
async def test_a_cache_answers_like_the_reference(
    memory: MemoryCluster, calls: list[tuple[str, Any]], blocking: bool
) -> None:
    ours, reference = memory.cache, InMemoryCache[Any]()
    for operation, given_to_it in [("clear", CACHE_NAMESPACES), *calls, ("get", CACHE_KEYS)]:
        expected = getattr(reference, operation)(given_to_it)
        if blocking:
            assert getattr(ours, operation)(given_to_it) == expected
        else:
            assert await getattr(ours, "a" + operation)(given_to_it) == expected
