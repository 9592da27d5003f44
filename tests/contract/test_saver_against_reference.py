"""Checkpointer against LangGraph's own in-memory one, under the same calls.

Where the reference is not sane, ours does something else, and these tests look away:

| LangGraph's `InMemorySaver` | ours |
|---|---|
| lists, and limits, thread by thread and namespace by namespace | the newest of all first |
| a value that comes without a new version may be lost | is kept |
| a config without a namespace is refused by `put`, and given back by `get_tuple` | is the root's |
| a history never ends when parents form a circle | ends where it has been before |
| `prune`, `copy_thread` and `delete_for_runs` raise | work |
"""

from __future__ import annotations

from itertools import product
from typing import Any, NamedTuple, TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langgraph.checkpoint.base import ChannelVersions, CheckpointTuple, empty_checkpoint
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.types import ERROR, INTERRUPT, RESUME

from flowgentic_actors import MemoryCluster
from tests.support.drawn_values import PROFILE, made, values
from tests.support.faces import SaverFace, config_of, id_of, unique

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("mode", ["inline", "several-actors"]),
]

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
