"""The engine against models of it that are slow, plain and obviously right.

Every command is also given to a twin that only ever saw the records, each one twice and through
msgpack, and that has room for hardly any value in memory: it has to answer like the shard itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import product
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from msgspec.structs import replace

from flowgentic_actors.engine import Shard, values
from flowgentic_actors.engine.commands import (
    Command,
    DeleteItem,
    DeleteThread,
    DropRuns,
    FindRuns,
    GetCheckpoint,
    GetItem,
    ListCheckpoints,
    ListNamespaces,
    ListThreads,
    Match,
    PruneThread,
    PutCheckpoint,
    PutItem,
    PutWrites,
    SearchItems,
)
from flowgentic_actors.engine.model import Blob, Scalar, Version, Write
from flowgentic_actors.engine.records import Record
from flowgentic_actors.engine.replies import (
    CheckpointPage,
    CheckpointReply,
    CheckpointRow,
    Conflict,
    Done,
    ItemPage,
    ItemReply,
    ItemRow,
    MissingBlobs,
    NamespacePage,
    Reply,
    ThreadIds,
    ThreadListing,
)
from flowgentic_actors.engine.shard import ShardSize
from flowgentic_actors.errors import ColdValuesError
from tests.conftest import amounts

# every value can go cold, however small
pytestmark = pytest.mark.usefixtures("no_value_is_small")

PROFILE = settings(
    stateful_step_count=25,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

_encoder = msgspec.msgpack.Encoder()
_records: msgspec.msgpack.Decoder[Record] = msgspec.msgpack.Decoder(Record)


@pytest.fixture
def no_value_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "SMALL", -1)
    monkeypatch.setattr(values, "_AROUND", 1)


class ShardMachine(RuleBasedStateMachine):
    """A shard, its journal, and a twin that lives from the journal alone."""

    def __init__(self) -> None:
        super().__init__()
        self.shard = Shard()
        self.twin = Shard(hot_bytes=200)
        self.twin.when_dropped(self.dropped)
        self.journal: list[bytes] = []
        self.alive: dict[int, int] = {}
        self.now_us = 0

    def ask(self, command: Command) -> Reply:
        reply, record = self.shard.execute(command, self.now_us)
        if record is None:
            self.check_twin(command, reply)
        else:
            self.keep(record)
        return reply

    def keep(self, record: Record) -> None:
        lsn = len(self.journal)
        self.journal.append(_encoder.encode(record))
        kept = _records.decode(self.journal[-1])
        assert kept == record
        self.twin.apply(kept, lsn)
        self.twin.apply(kept, lsn)
        self.alive[lsn] = self.twin.alive(lsn, kept)
        self.twin.cool(len(self.journal))

    def sweep(self) -> None:
        """What goes on by itself: forget what is over."""
        while (record := self.shard.decide_expire(self.now_us, 2)) is not None:
            self.shard.apply(record)
            self.keep(record)

    def check_twin(self, command: Command, expected: Reply) -> None:
        reply = self.ask_twin(command)
        while isinstance(reply, ItemPage) and reply != expected:  # cold values close pages early
            assert reply.after is not None
            assert isinstance(command, SearchItems)
            command = replace(
                command,
                after=reply.after,
                offset=command.offset - reply.skipped,
                limit=command.limit - len(reply.rows),
            )
            rest = self.ask_twin(command)
            assert isinstance(rest, ItemPage)
            reply = ItemPage(reply.rows + rest.rows, rest.after, reply.skipped + rest.skipped)
        assert reply == expected

    def ask_twin(self, command: Command) -> Reply:
        for _ in range(100):
            try:
                return self.twin.execute(command, self.now_us).reply
            except ColdValuesError as cold:
                for lsn in cold.lsns:
                    self.twin.warm(lsn, _records.decode(self.journal[lsn]), lasting=bool(lsn % 2))
        raise AssertionError("the same values are cold again and again")

    def dropped(self, lsn: int, size: int) -> None:
        if lsn in self.alive:
            self.alive[lsn] -= size

    def write(self, command: Command, *, changes: bool) -> None:
        before = len(self.journal)
        assert self.ask(command) == Done()
        assert len(self.journal) - before == changes

    def expected_size(self) -> ShardSize:
        raise NotImplementedError

    def questions(self) -> list[Command]:
        """Reads that together show everything a shard holds."""
        raise NotImplementedError

    @invariant()
    def size_is_what_is_stored(self) -> None:
        assert self.shard.size() == self.twin.size() == self.expected_size()

    @invariant()
    def few_values_are_in_memory_and_all_are_accounted_for(self) -> None:
        self.twin.cool(len(self.journal))
        assert 0 <= self.twin.hot_bytes <= 200
        for lsn, record in enumerate(self.journal):
            assert self.twin.alive(lsn, _records.decode(record)) == self.alive[lsn]
            remains = self.twin.live_part(lsn, _records.decode(record))
            assert remains is not None or not self.alive[lsn]
        assert sum(self.alive.values()) == self.twin.size().blob_bytes

    def teardown(self) -> None:
        rebuilt = Shard()
        for record in self.journal:
            rebuilt.apply(_records.decode(record))
        for _ in "once", "again":
            assert rebuilt.size() == self.shard.size()
            for question in self.questions():
                now_us = self.now_us
                assert rebuilt.execute(question, now_us) == self.shard.execute(question, now_us)
            if self.journal:
                rebuilt.apply(_records.decode(self.journal[-1]))


# ---------------------------------------------------------------------------------- threads

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


# ---------------------------------------------------------------------------------- items

LABELS = ("a", "a\0", "b")
KEYS = ("", "k", "k\0", "l")
VALUES: tuple[dict[str, Any], ...] = (
    {},
    {"n": 1, "text": "b"},
    {"n": 2.5, "text": "B"},
    {"n": True},
    {"n": None, "tags": ["x", 1]},
    {"n": "2", "deep": {"er": {"n": 3}, "other": 1}},
)


def _number(value: object) -> float | None:
    return value if type(value) in (int, float) else None  # type: ignore[return-value]


FILTERS: tuple[tuple[dict[str, Any], Callable[[dict[str, Any]], bool]], ...] = (
    ({"n": 1}, lambda v: type(v.get("n")) is int and v["n"] == 1),
    ({"n": None}, lambda v: v.get("n") is None),
    ({"n": {"$ne": 1}}, lambda v: type(v.get("n")) is not int or v["n"] != 1),
    ({"n": {"$gte": 1, "$lt": 2.5}}, lambda v: 1 <= (_number(v.get("n")) or 0) < 2.5),
    ({"text": {"$gt": "B"}}, lambda v: "text" in v and v["text"] > "B"),
    ({"deep": {"er": {"n": 3}}}, lambda v: "deep" in v),
    ({"tags": ["x", {"$gt": 0}], "n": None}, lambda v: "tags" in v),
    ({"deep": {"other": {"$ne": 1}}}, lambda v: False),
)

labels = st.sampled_from(LABELS)
paths = st.lists(labels, max_size=2).map(tuple)
keys = st.sampled_from(KEYS)


class Item(NamedTuple):
    value: dict[str, Any]
    created_us: int
    updated_us: int
    expires_us: int  # 0 for never
    ttl_us: int


def _encoded(value: dict[str, Any]) -> Blob:
    return "msgpack", _encoder.encode(value)


def _begins(namespace: tuple[str, ...], path: tuple[str, ...]) -> bool:
    return len(namespace) >= len(path) and all(
        wanted in ("*", label) for wanted, label in zip(path, namespace, strict=False)
    )


class ItemsMachine(ShardMachine):
    def __init__(self) -> None:
        super().__init__()
        self.items: dict[tuple[tuple[str, ...], str], Item] = {}

    # ------------------------------------------------------------------ writes

    def living(self) -> dict[tuple[tuple[str, ...], str], Item]:
        return {
            place: item
            for place, item in self.items.items()
            if not item.expires_us or item.expires_us > self.now_us
        }

    @rule(
        puts=st.lists(
            st.tuples(
                paths,
                keys,
                st.sampled_from(VALUES),
                st.integers(1, 5),
                st.sampled_from((0, 0, 1, 8, 30)),
            ),
            min_size=1,
            max_size=5,
        )
    )
    def put(self, puts: list[tuple[tuple[str, ...], str, dict[str, Any], int, int]]) -> None:
        for namespace, key, value, elapsed, ttl_us in puts:
            self.now_us += elapsed
            old = self.living().get((namespace, key))
            self.write(PutItem(namespace, key, _encoded(value), ttl_us), changes=True)
            created = old.created_us if old else self.now_us
            expires = self.now_us + ttl_us if ttl_us else 0
            self.items[namespace, key] = Item(value, created, self.now_us, expires, ttl_us)

    @rule(namespace=paths, key=keys, deletes=st.booleans())
    def write_the_version_that_is_not_there(
        self, namespace: tuple[str, ...], key: str, deletes: bool
    ) -> None:
        self.now_us += 1
        item = self.living().get((namespace, key))
        found = item.updated_us if item else 0
        for expected in {0, found + 1, found - 1} - {found}:
            command: Command = PutItem(namespace, key, _encoded({}), expected=expected)
            if deletes:
                command = DeleteItem(namespace, key, expected)
            assert self.ask(command) == Conflict(found)

    @precondition(lambda self: self.items)
    @rule(data=st.data())
    def put_the_version_that_is_there(self, data: st.DataObject) -> None:
        self.now_us += 1
        place = data.draw(st.sampled_from(sorted(self.items)))
        old = self.living().get(place)
        expected = old.updated_us if old else 0
        self.write(PutItem(*place, _encoded({"a": 1}), 0, expected), changes=True)
        created = old.created_us if old else self.now_us
        self.items[place] = Item({"a": 1}, created, self.now_us, 0, 0)

    @rule(namespace=paths, key=keys)
    def delete_any(self, namespace: tuple[str, ...], key: str) -> None:
        self.write(DeleteItem(namespace, key), changes=(namespace, key) in self.items)
        self.items.pop((namespace, key), None)

    @precondition(lambda self: self.items)
    @rule(data=st.data())
    def delete_known(self, data: st.DataObject) -> None:
        self.delete_any(*data.draw(st.sampled_from(sorted(self.items))))

    @rule(elapsed=st.integers(1, 20), sweeps=st.booleans())
    def pass_time(self, elapsed: int, sweeps: bool) -> None:
        self.now_us += elapsed
        if sweeps:
            self.sweep()
            self.items = self.living()
            due = [item.expires_us for item in self.items.values() if item.expires_us]
            next_us = self.shard.next_expiry_us()
            assert (next_us is None) == (not due)
            assert next_us is None or next_us <= min(due)

    def refreshed(self, places: Iterable[tuple[tuple[str, ...], str]]) -> None:
        for place in places:
            item = self.items[place]
            if item.expires_us:
                later = max(item.expires_us, self.now_us + item.ttl_us)
                self.items[place] = item._replace(expires_us=later)

    # ------------------------------------------------------------------ reads

    @rule(namespace=paths, key=keys, refresh=st.booleans(), expired=st.booleans())
    def get(self, namespace: tuple[str, ...], key: str, refresh: bool, expired: bool) -> None:
        there = (namespace, key) in (self.items if expired else self.living())
        row = self.row(namespace, key) if there else None
        assert self.ask(GetItem(namespace, key, refresh, expired)) == ItemReply(row)
        if there and refresh:
            self.refreshed([(namespace, key)])

    @rule(
        prefix=paths,
        chosen=st.none() | st.sampled_from(FILTERS),
        limit=st.integers(0, 10),
        offset=st.integers(0, 3),
        page=st.integers(1, 3),
        refresh=st.booleans(),
    )
    def search(
        self,
        prefix: tuple[str, ...],
        chosen: tuple[dict[str, Any], Callable[[dict[str, Any]], bool]] | None,
        limit: int,
        offset: int,
        page: int,
        refresh: bool = False,
    ) -> None:
        expected = [
            self.row(*place)
            for place in sorted(self.living())
            if place[0][: len(prefix)] == prefix
            and (chosen is None or chosen[1](self.items[place].value))
        ][offset:][:limit]
        encoded = _encoder.encode(chosen[0]) if chosen else b""
        query = SearchItems(prefix, encoded, limit, offset)
        whole = self.ask(query)
        assert isinstance(whole, ItemPage)
        assert list(whole.rows) == expected

        rows: list[ItemRow] = []
        for _ in range(len(expected) // page + 1):
            answer = self.ask(replace(query, limit=min(page, limit - len(rows))))
            assert isinstance(answer, ItemPage)
            rows += answer.rows
            query = replace(query, after=answer.after, offset=query.offset - answer.skipped)
            if answer.after is None:
                break
        assert rows == expected
        if refresh:
            assert (
                self.ask(replace(query, limit=limit, offset=offset, after=None, refresh=True))
                == whole
            )
            self.refreshed((row.namespace, row.key) for row in expected)

    @rule(
        conditions=st.lists(
            st.builds(
                Match,
                kind=st.sampled_from(("prefix", "suffix")),
                path=st.lists(labels | st.just("*"), max_size=3).map(tuple),
            ),
            max_size=2,
        ),
        max_depth=st.none() | st.integers(1, 3),
        limit=st.integers(0, 10),
        offset=st.integers(0, 3),
    )
    def list_namespaces(
        self, conditions: list[Match], max_depth: int | None, limit: int, offset: int
    ) -> None:
        found = {
            namespace[:max_depth]
            for namespace, _ in self.living()
            if all(
                _begins(namespace, c.path)
                if c.kind == "prefix"
                else _begins(namespace[::-1], c.path[::-1])
                for c in conditions
            )
        }
        expected = sorted(found)[offset:][:limit]
        query = ListNamespaces(tuple(conditions), max_depth, limit, offset)
        whole = self.ask(query)
        assert isinstance(whole, NamespacePage)
        assert list(whole.namespaces) == expected

        listed: list[tuple[str, ...]] = []
        while len(listed) < limit:
            answer = self.ask(replace(query, limit=1))
            assert isinstance(answer, NamespacePage)
            listed += answer.namespaces
            query = replace(query, after=answer.after, offset=query.offset - answer.skipped)
            if answer.after is None:
                break
        assert listed == expected

    def row(self, namespace: tuple[str, ...], key: str) -> ItemRow:
        item = self.items[namespace, key]
        return ItemRow(namespace, key, _encoded(item.value), item.created_us, item.updated_us)

    def expected_size(self) -> ShardSize:
        return ShardSize(
            threads=0,
            checkpoints=0,
            items=len(self.items),
            blob_bytes=sum(len(_encoder.encode(item.value)) for item in self.items.values()),
        )

    def questions(self) -> list[Command]:
        return [
            SearchItems((), b"", 10**6, 0, expired=True),
            SearchItems((), b"", 10**6, 0),
            ListNamespaces((), None, 10**6, 0),
        ]

    def teardown(self) -> None:
        """Search below every namespace there is, and match namespaces by many patterns."""
        for prefix in sorted({namespace for namespace, _ in self.items} | {()}):
            for chosen in (None, *FILTERS):
                self.search(prefix, chosen, limit=100, offset=0, page=2)
        for begin, end in product([(), ("*",), ("a",), ("a", "*"), ("*", "b")], repeat=2):
            conditions = [Match("suffix", end), Match("prefix", begin)]
            for max_depth in None, 1:
                self.list_namespaces(conditions, max_depth, limit=100, offset=0)
        super().teardown()


@pytest.mark.parametrize("examples", amounts(20, 70))
def test_threads_answer_like_the_model(examples: int) -> None:
    profile = settings(PROFILE, max_examples=examples)
    run_state_machine_as_test(ThreadsMachine, settings=profile)


@pytest.mark.parametrize("examples", amounts(20, 70))
def test_items_answer_like_the_model(examples: int) -> None:
    profile = settings(PROFILE, max_examples=examples)
    run_state_machine_as_test(ItemsMachine, settings=profile)
