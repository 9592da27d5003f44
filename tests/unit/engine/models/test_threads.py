"""Threads of the engine against a model that is slow, plain and obviously right."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule, run_state_machine_as_test
from msgspec.structs import replace

from flowgentic_actors.engine.commands import (
    Command,
    DeleteThread,
    DropRuns,
    FindRuns,
    GetCheckpoint,
    ListCheckpoints,
    ListThreads,
    PruneThread,
    PutCheckpoint,
    PutWrites,
)
from flowgentic_actors.engine.model import Blob, Scalar, Version, Write
from flowgentic_actors.engine.replies import (
    CheckpointPage,
    CheckpointReply,
    CheckpointRow,
    MissingBlobs,
    ThreadIds,
    ThreadListing,
)
from flowgentic_actors.engine.shard import ShardSize
from tests.conftest import amounts
from tests.support.shard_machine import PROFILE, ShardMachine

# every value can go cold, however small
pytestmark = pytest.mark.usefixtures("no_value_is_small")

THREADS = ("t", "t2")
NAMESPACES = ("", "child")
IDS = ("1", "10", "1\0", "2", "3", "é")  # one a prefix of another, to catch sloppy bounds
CHANNELS = ("messages", "count", "__root__")
VERSIONS: tuple[Version, ...] = ("1.a", "1.b", "2.a", 3, 4.5)
FACETS: tuple[Mapping[str, Scalar], ...] = (
    {},
    {"source": "loop"},
    {"source": None},
    {"source": "loop", "step": 1},
    {"source": None, "step": 2},
    {"source": "input", "step": 1.5, "ok": True},
    {"run_id": "r1"},
    {"run_id": "r2", "source": "loop"},
)
RUNS = ("r1", "r2", "r3")

threads = st.sampled_from(THREADS)
namespaces = st.sampled_from(NAMESPACES)
ids = st.sampled_from(IDS)
blobs = st.tuples(st.sampled_from(("msgpack", "msgpack+aes", "empty")), st.binary(max_size=3))
versions_of_channels = st.dictionaries(st.sampled_from(CHANNELS), st.sampled_from(VERSIONS))
facets = st.sampled_from(FACETS).map(dict)


class Stored(NamedTuple):
    parent_id: str | None
    checkpoint: Blob
    metadata: Blob
    facets: dict[str, Scalar]
    versions: dict[str, Version]


class ThreadsMachine(ShardMachine):
    def __init__(self) -> None:
        super().__init__()
        self.checkpoints: dict[tuple[str, str, str], Stored] = {}
        self.blobs: dict[tuple[str, str, str, Version | None], Blob] = {}
        # (thread, namespace, checkpoint, task, index) -> (path, channel, value)
        self.writes: dict[tuple[str, str, str, str, int], tuple[str, str, Blob]] = {}
        self.updated: dict[str, int] = {}

    # ------------------------------------------------------------------ writes

    @rule(
        thread=threads,
        ns=namespaces,
        id_=ids,
        parent=st.none() | ids,
        checkpoint=blobs,
        metadata=blobs,
        facets=facets,
        versions=versions_of_channels,
        given=st.dictionaries(st.sampled_from(CHANNELS), blobs),
        data=st.data(),
    )
    def put_any_checkpoint(
        self,
        thread: str,
        ns: str,
        id_: str,
        parent: str | None,
        checkpoint: Blob,
        metadata: Blob,
        facets: dict[str, Scalar],
        versions: dict[str, Version],
        given: dict[str, Blob],
        data: st.DataObject,
    ) -> None:
        others = [channel for channel in CHANNELS if channel not in given]
        present = data.draw(st.lists(st.sampled_from(others), unique=True)) if others else []
        self.put(
            PutCheckpoint(
                thread,
                ns,
                id_,
                parent,
                checkpoint,
                metadata,
                facets,
                versions,
                given,
                tuple(present),
            )
        )

    @precondition(lambda self: self.checkpoints)
    @rule(
        data=st.data(),
        children=st.lists(
            st.tuples(ids, st.sampled_from(CHANNELS), st.sampled_from(VERSIONS), blobs, facets),
            min_size=1,
            max_size=4,
        ),
    )
    def put_children(
        self,
        data: st.DataObject,
        children: list[tuple[str, str, Version, Blob, dict[str, Scalar]]],
    ) -> None:
        """As LangGraph does it: one new value, the others known from the parent."""
        thread, ns, parent = data.draw(st.sampled_from(sorted(self.checkpoints)))
        for id_, channel, version, value, facets in children:
            versions = self.checkpoints[thread, ns, parent].versions
            known = [c for c, v in versions.items() if (thread, ns, c, v) in self.blobs]
            self.put(
                PutCheckpoint(
                    thread,
                    ns,
                    id_,
                    parent,
                    ("msgpack", b"checkpoint"),
                    ("msgpack", b"metadata"),
                    facets,
                    {**versions, channel: version},
                    {channel: value},
                    tuple(c for c in known if c != channel),
                )
            )
            parent = id_

    def put(self, command: PutCheckpoint) -> None:
        thread, ns = command.thread_id, command.checkpoint_ns
        missing = tuple(
            channel
            for channel in command.present
            if (thread, ns, channel, command.versions.get(channel)) not in self.blobs
        )
        self.now_us += 1
        if missing:
            assert self.ask(command) == MissingBlobs(missing)
            return
        self.write(command, changes=True)
        self.updated[thread] = self.now_us
        self.checkpoints[thread, ns, command.checkpoint_id] = Stored(
            command.parent_id,
            command.checkpoint,
            command.metadata,
            command.facets,
            command.versions,
        )
        for channel, blob in command.blobs.items():
            if channel in command.versions:
                self.blobs[thread, ns, channel, command.versions[channel]] = blob

    @rule(thread=threads, runs=st.sets(st.sampled_from(RUNS)))
    def drop_runs(self, thread: str, runs: set[str]) -> None:
        having = {t for (t, _, _), s in self.checkpoints.items() if s.facets.get("run_id") in runs}
        assert self.ask(FindRuns(tuple(runs))) == ThreadIds(tuple(sorted(having)))
        doomed = {
            place
            for place, stored in self.checkpoints.items()
            if place[0] == thread and stored.facets.get("run_id") in runs
        }
        self.write(DropRuns(thread, tuple(runs)), changes=bool(doomed))
        self.forget(doomed)

    @rule(thread=threads, keep=st.integers(1, 3))
    def prune(self, thread: str, keep: int) -> None:
        doomed = {
            place
            for ns in NAMESPACES
            for place in sorted(p for p in self.checkpoints if p[:2] == (thread, ns))[:-keep]
        }
        self.write(PruneThread(thread, keep), changes=bool(doomed))
        self.forget(doomed)

    def forget(self, doomed: set[tuple[str, str, str]]) -> None:
        """Checkpoints go with their writes and with the values that no other one has."""
        for place in doomed:
            del self.checkpoints[place]
        self.writes = {place: w for place, w in self.writes.items() if place[:3] not in doomed}
        touched = {place[:2] for place in doomed}
        needed = {
            (t, ns, channel, version)
            for (t, ns, _), stored in self.checkpoints.items()
            for channel, version in stored.versions.items()
        }
        self.blobs = {
            place: blob
            for place, blob in self.blobs.items()
            if place[:2] not in touched or place in needed
        }

    @rule(
        thread=threads,
        ns=namespaces,
        id_=ids,
        batches=st.lists(
            st.tuples(
                st.sampled_from(("a", "b", "c")),
                st.sampled_from(("", "~path", "~")),
                st.lists(
                    st.builds(Write, st.integers(-4, 3), st.sampled_from(CHANNELS), blobs),
                    max_size=4,
                ),
            ),
            max_size=3,
        ),
    )
    def put_writes(
        self, thread: str, ns: str, id_: str, batches: list[tuple[str, str, list[Write]]]
    ) -> None:
        for task, path, writes in batches:
            changes = False
            for write in writes:
                key = (thread, ns, id_, task, write.index)
                if write.index < 0 or key not in self.writes:
                    self.writes[key] = (path, write.channel, write.value)
                    changes = True
            self.now_us += 1
            self.write(PutWrites(thread, ns, id_, task, path, tuple(writes)), changes=changes)
            if changes:
                self.updated[thread] = self.now_us

    @rule(thread=threads)
    def delete_thread(self, thread: str) -> None:
        self.write(DeleteThread(thread), changes=thread in self.thread_ids())
        self.checkpoints = {k: v for k, v in self.checkpoints.items() if k[0] != thread}
        self.blobs = {k: v for k, v in self.blobs.items() if k[0] != thread}
        self.writes = {k: v for k, v in self.writes.items() if k[0] != thread}

    # ------------------------------------------------------------------ reads

    @rule(thread=threads, ns=namespaces, id_=st.none() | st.just("") | ids)
    def get(self, thread: str, ns: str, id_: str | None) -> None:
        found = [key for key in self.checkpoints if key[:2] == (thread, ns)]
        wanted = (thread, ns, id_) if id_ else max(found, default=None)
        row = self.row(*wanted) if wanted in self.checkpoints and wanted else None
        assert self.ask(GetCheckpoint(thread, ns, id_)) == CheckpointReply(row)

    @rule(
        query=st.builds(
            ListCheckpoints,
            thread_id=st.none() | threads,
            checkpoint_ns=st.none() | namespaces,
            checkpoint_id=st.none() | st.none() | st.just("") | ids,
            before=st.none() | st.just("") | ids | st.text(max_size=2),
            facets=st.just({}) | facets,
            limit=st.none() | st.integers(0, 8),
        ),
        page=st.integers(1, 3),
    )
    def list_checkpoints(self, query: ListCheckpoints, page: int) -> None:
        expected = self.matching(query)[: query.limit]
        whole = self.ask(query)
        assert isinstance(whole, CheckpointPage)
        assert list(whole.rows) == expected

        rows: list[CheckpointRow] = []
        for _ in range(len(expected) // page + 1):
            left = page if query.limit is None else min(page, query.limit - len(rows))
            answer = self.ask(replace(query, limit=left))
            assert isinstance(answer, CheckpointPage)
            rows += answer.rows
            query = replace(query, after=answer.after)
            if answer.after is None:
                break
        assert rows == expected

    @rule(
        prefix=st.sampled_from(("", "t", "t2", "x")),
        before=st.none() | st.integers(0, 100),
        page=st.integers(1, 2),
    )
    def list_threads(self, prefix: str, before: int | None, page: int) -> None:
        expected = [
            (updated, thread)
            for updated, thread in sorted((self.updated[t], t) for t in self.thread_ids())[::-1]
            if thread.startswith(prefix) and (before is None or updated < before)
        ]
        query = ListThreads(prefix, page, before)
        rows: list[tuple[int, str]] = []
        for _ in range(len(expected) + 1):
            answer = self.ask(query)
            assert isinstance(answer, ThreadListing)
            for row in answer.rows:
                rows.append((row.updated_us, row.thread_id))
                ids = [place for place in self.checkpoints if place[0] == row.thread_id]
                assert row.checkpoints == len(ids)
            query = replace(query, after=answer.after)
            if answer.after is None:
                break
        assert rows == expected

    def matching(self, query: ListCheckpoints) -> list[CheckpointRow]:
        found = [
            (id_, thread, ns)
            for (thread, ns, id_), stored in self.checkpoints.items()
            if query.thread_id in (None, thread)
            and query.checkpoint_ns in (None, ns)
            and query.checkpoint_id in (None, "", id_)
            and (not query.before or id_ < query.before)
            and query.facets.items() <= stored.facets.items()
        ]
        return [self.row(thread, ns, id_) for id_, thread, ns in sorted(found, reverse=True)]

    def row(self, thread: str, ns: str, id_: str) -> CheckpointRow:
        stored = self.checkpoints[thread, ns, id_]
        values = {
            channel: self.blobs[thread, ns, channel, version]
            for channel, version in stored.versions.items()
            if (thread, ns, channel, version) in self.blobs
        }
        writes = sorted(
            (path, task, index, channel, value)
            for (*where, task, index), (path, channel, value) in self.writes.items()
            if where == [thread, ns, id_]
        )
        return CheckpointRow(
            thread,
            ns,
            id_,
            stored.parent_id,
            stored.checkpoint,
            stored.metadata,
            stored.versions,
            values,
            tuple((task, channel, value) for _, task, _, channel, value in writes),
        )

    def thread_ids(self) -> set[str]:
        return {thread for thread, *_ in self.checkpoints} | {thread for thread, *_ in self.writes}

    def expected_size(self) -> ShardSize:
        values = [
            *(blob for s in self.checkpoints.values() for blob in (s.checkpoint, s.metadata)),
            *self.blobs.values(),
            *(value for _, _, value in self.writes.values()),
        ]
        return ShardSize(
            threads=len(self.thread_ids()),
            checkpoints=len(self.checkpoints),
            items=0,
            blob_bytes=sum(len(data) for _, data in values),
        )

    def questions(self) -> list[Command]:
        return [
            ListCheckpoints(),
            ListThreads("", 10**6),
            *(
                GetCheckpoint(thread, ns, id_)
                for thread in THREADS
                for ns in NAMESPACES
                for id_ in (None, *IDS)
            ),
        ]

    def teardown(self) -> None:
        """Let the checkpoints come that writes wait for, and page through everything."""
        for thread, ns, id_ in sorted({key[:3] for key in self.writes} - set(self.checkpoints)):
            self.put(PutCheckpoint(thread, ns, id_, None, ("", b""), ("", b""), {}, {}, {}))
        for page in 1, 2:
            for facets in FACETS:
                self.list_checkpoints(ListCheckpoints(facets=dict(facets)), page)
        for thread, ns in product(THREADS, NAMESPACES):
            self.get(thread, ns, None)
        super().teardown()


@pytest.mark.parametrize("examples", amounts(20, 70))
def test_threads_answer_like_the_model(examples: int) -> None:
    profile = settings(PROFILE, max_examples=examples)
    run_state_machine_as_test(ThreadsMachine, settings=profile)
