"""Long lists in parts: any evolution of a list comes back whole, and little of it travels."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from langgraph.checkpoint.base import ChannelVersions
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from flowgentic_actors.adapters import checkpoint_ops
from flowgentic_actors.adapters.checkpoint import AsyncCheckpointSaver
from flowgentic_actors.adapters.chunked_lists import chunking
from flowgentic_actors.adapters.chunked_lists import format as list_format
from flowgentic_actors.adapters.chunked_lists import outgoing as outgoing_lists
from flowgentic_actors.adapters.chunked_lists import recent as recent_lists
from flowgentic_actors.adapters.chunked_lists.chunking import cut
from flowgentic_actors.adapters.chunked_lists.format import ChunkedList, ListChunk, load
from flowgentic_actors.adapters.chunked_lists.recent import RecentLists
from flowgentic_actors.cluster.protocol.slot_table import even_table
from flowgentic_actors.engine import Shard
from flowgentic_actors.engine.commands import Command, ListCheckpoints, PutCheckpoint
from flowgentic_actors.engine.model import Blob
from flowgentic_actors.engine.records import Record
from flowgentic_actors.engine.replies import CheckpointPage, Reply
from flowgentic_actors.errors import (
    JournalDamagedError,
    NotSentError,
    OutcomeUnknownError,
    RequestError,
)
from tests.conftest import amounts
from tests.support.faces import checkpoint_of, config_of

dumps = JsonPlusSerializer().dumps_typed
loads = JsonPlusSerializer().loads_typed

ENCODER = msgspec.msgpack.Encoder()
DECODER: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command)
REPLIES: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)


@pytest.fixture(autouse=True, scope="module")
def small_parts() -> Iterator[None]:
    """Parts of a few items, so that short lists have many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outgoing_lists, "SPLIT", 40)
        patch.setattr(checkpoint_ops, "SPLIT", 40)
        patch.setattr(chunking, "PART", 200)
        patch.setattr(chunking, "_TINY", 12)
        patch.setattr(chunking, "_SCAN", 800)
        patch.setattr(chunking, "_FRAGMENTS", 6)
        yield


# ---------------------------------------------------------------------- cutting

ITEMS = st.one_of(
    st.integers(0, 3),
    st.text("ab", max_size=60),
    st.binary(max_size=300),
    st.lists(st.integers(0, 1), max_size=30),
    st.dictionaries(st.text("ab", max_size=3), st.integers(0, 2**40), max_size=3),
    st.none(),
)
LISTS = st.lists(ITEMS, max_size=60)


def names(found: list[tuple[ListChunk, Blob]]) -> list[str]:
    return [part.name for part, _ in found]


def bases(value: list[Any]) -> tuple[ListChunk, ...]:
    return tuple(part for part, _ in cut(value, dumps))


def whole(found: list[tuple[ListChunk, Blob]]) -> list[Any]:
    return load([part for part, _ in found], {part.name: blob for part, blob in found}, loads)


@st.composite
def changed(draw: st.DrawFn, value: list[Any]) -> list[Any]:
    """The list after some changes."""
    value = list(value)
    for _ in range(draw(st.integers(1, 4))):
        begin = draw(st.integers(0, len(value)))
        end = draw(st.integers(begin, min(len(value), begin + 8)))
        how = draw(st.sampled_from(["append", "replace", "delete", "shrink", "grow"]))
        if how == "append":
            value += draw(st.lists(ITEMS, max_size=3))
        elif how == "replace":
            value[begin:end] = draw(st.lists(ITEMS, max_size=8))
        elif how == "delete":
            del value[begin:end]
        elif how == "shrink":
            del value[begin:]
        else:
            value[begin:begin] = [*range(draw(st.sampled_from([30, 300])))]
    return value


@given(st.data())
@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
def test_any_list_is_the_sum_of_its_parts(data: st.DataObject) -> None:
    value: list[Any] = data.draw(LISTS)
    base: tuple[ListChunk, ...] = ()
    for _ in range(4):
        found = cut(value, dumps, base)
        assert whole(found) == value
        for part, blob in found:
            assert part.size == len(blob[1])
            assert part.items > 0
            assert part.size <= 2 * chunking.PART or part.items == 1
        assert len(found) <= 6 + 8 * sum(part.size for part, _ in found) / chunking.PART + 8
        base = tuple(part for part, _ in found)
        value = data.draw(changed(value))


def messages(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"id": number, "text": f"message {number}"} for number in range(start, start + count)]


def test_what_is_appended_is_all_that_is_new() -> None:
    value = messages(100)
    base = bases(value)
    found = cut([*value, *messages(1, 100)], dumps, base)
    assert names(found)[:-1] == [part.name for part in base]
    assert found[-1][0].items == 1


def test_a_long_conversation_is_written_a_few_times_over() -> None:
    value: list[Any] = []
    base: tuple[ListChunk, ...] = ()
    written = most = 0
    for number in range(2000):
        value += messages(1, number)
        stored = {part.name for part in base}
        found = cut(value, dumps, base)
        written += sum(part.size for part, _ in found if part.name not in stored)
        base = tuple(part for part, _ in found)
        size = sum(part.size for part in base)
        most = max(most, len(base) - 4 * size // chunking.PART)
    assert written < 6 * size
    assert most <= 16  # beyond what the size accounts for


@pytest.mark.parametrize("where", [0, 1, 50, 98])
def test_items_changed_in_place_cost_their_part(where: int) -> None:
    value = messages(100)
    base = bases(value)
    value[where]["text"] = "something else, of another length"
    new = [n for n in names(cut(value, dumps, base)) if n not in {part.name for part in base}]
    assert 1 <= len(new) <= 2


@pytest.mark.parametrize("count", [1, 2, 7, 20])
@pytest.mark.parametrize("where", [0, 1, 40])
def test_items_taken_out_or_put_in_cost_what_is_around_them(where: int, count: int) -> None:
    value = messages(300)
    base = bases(value)
    stored = {part.name for part in base}
    for after in (
        value[:where] + value[where + count :],
        value[:where] + messages(count, 1000) + value[where:],
        value[where + count :] + messages(2, 1000),  # a window that moves on
    ):
        found = cut(after, dumps, base)
        assert whole(found) == after
        new = sum(part.size for part, _ in found if part.name not in stored)
        assert new < (count + 4) * 40 + 3 * chunking.PART


def test_items_that_are_all_the_same_are_no_trouble() -> None:
    value: list[Any] = ["x" * 20] * 100
    base = bases(value)
    for after in (value[1:], value[:50], ["y", *value], value * 3):
        assert whole(cut(after, dumps, base)) == after


def test_the_type_of_a_blob_belongs_to_its_name() -> None:
    assert list_format.chunk_name(("a", b"bc")) != list_format.chunk_name(("ab", b"c"))
    assert list_format.chunk_name(("a", b"bc")) == list_format.chunk_name(("a", b"bc"))


def test_a_list_that_was_never_cut_is_cut_by_its_size() -> None:
    value = [{"text": "x" * size} for size in random.Random(1).choices([1, 50, 500], k=200)]
    found = cut(value, dumps, average=len(dumps(value)[1]) / 200)
    assert whole(found) == value
    assert len(found) < 2 * len(dumps(value)[1]) / chunking.PART


def test_a_part_that_is_not_there_is_told() -> None:
    client = Direct(Shard())
    checkpoint = checkpoint_of({"a": messages(50)})
    AsyncCheckpointSaver(client).put(config_of("t"), checkpoint, {}, {"a": 0})
    (command,) = client.sent
    blobs = {name: blob for name, blob in command.blobs.items() if not name.startswith("\0")}
    with pytest.raises(JournalDamagedError, match="'a'"):
        list_format.find(command.versions, blobs)


# ---------------------------------------------------------------------- what is remembered


def known(number: int, count: int = 3) -> ChunkedList:
    return ChunkedList(number, f"place {number}", (ListChunk("name", 1, 100, 0),) * count)


def test_the_lists_of_the_parent_come_first() -> None:
    recent = RecentLists()
    assert recent.of("t", "", None) == {}
    for number in range(6):
        recent.remember("t", "", f"c{number}", {"a": known(number)})
    recent.remember("t", "child", "c", {"a": known(99)})
    recent.remember("t", "none", "c", {})

    assert [a.version for a in recent.of("t", "", "c3")["a"]] == [3, 5, 4, 3, 2]
    assert [a.version for a in recent.of("t", "", "c0")["a"]] == [5, 4, 3, 2]
    assert recent.of("t", "none", "c") == {}
    for number in range(6):
        recent.remember("t", "", f"d{number}", {})
    assert recent.of("t", "", "d5") == {}
    assert recent._parts == 3  # of the child


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent_lists, "_REMEMBERED", 100)
    recent = RecentLists()
    for number in range(40):
        for step in range(3):
            recent.remember(f"t{number}", "", f"c{step}", {"a": known(step, 10)})
        recent.of("t0", "", None)
    assert recent._parts <= 100
    assert [number for number in range(40) if recent.of(f"t{number}", "", None)] == [
        0,
        *range(31, 40),
    ]
    recent.remember("huge", "", "c", {"a": known(1, 1000)})
    assert recent.of("huge", "", "c")


# ---------------------------------------------------------------------- savers and a shard


class Direct:
    """A client whose shard is called, and that keeps what was sent."""

    def __init__(self, shard: Shard) -> None:
        self.table = even_table(1, 2)
        self.shard = shard
        self.records: list[Record] = []
        self.sent: list[PutCheckpoint] = []
        self.trouble = ""  # of the next command: "before" it is carried out, or "after" that

    def shard_of(self, command: Command) -> int:
        return 0

    async def ask(self, command: Command) -> Reply:
        return self.ask_sync(command)

    async def ask_each(self, asks: Sequence[tuple[int, Command]]) -> list[Reply | Exception]:
        return self.ask_each_sync(asks)

    def ask_each_sync(self, asks: Sequence[tuple[int, Command]]) -> list[Reply | Exception]:
        return [self.ask_sync(command) for _, command in asks]

    def ask_sync(self, command: Command) -> Reply:
        if self.trouble == "before":
            self.trouble = ""
            raise NotSentError("no luck")
        reply, record = self.shard.execute(DECODER.decode(ENCODER.encode(command)), 0)
        if record is not None:
            self.records.append(record)
        if isinstance(command, PutCheckpoint):
            self.sent.append(command)
            if self.trouble and record is not None:
                self.trouble = ""
                raise OutcomeUnknownError("no luck")
        return REPLIES.decode(ENCODER.encode(reply))


class Conversations(RuleBasedStateMachine):
    """Two savers, which know of each other only what they read, write to one thread."""

    @initialize()
    def begin(self) -> None:
        self.client = Direct(Shard())
        self.savers = [AsyncCheckpointSaver(self.client) for _ in range(2)]
        self.model: dict[str, dict[str, list[Any]]] = {}
        self.versions: dict[str, dict[str, Any]] = {}
        self.last: tuple[dict[str, list[Any]], dict[str, Any]] = (
            {"a": [], "b": []},
            {"a": "0.0", "b": "0.0"},
        )

    def _config(self, checkpoint_id: str | None) -> Any:
        return config_of("t", "", checkpoint_id)

    @rule(
        data=st.data(),
        which=st.integers(0, 1),
        read=st.booleans(),
        fork=st.integers(0, 9),
        trouble=st.sampled_from(["", "", "", "before", "after"]),
        told=st.booleans(),
    )
    def turn(
        self, data: st.DataObject, which: int, read: bool, fork: int, trouble: str, told: bool
    ) -> None:
        """A step of a graph, on the last checkpoint or an older one."""
        saver, ids = self.savers[which], sorted(self.model)
        parent = (ids[fork] if fork < len(ids) else ids[-1]) if ids else None
        values, versions = self.last  # still what the graph has when all was deleted meanwhile
        if parent:
            values, versions = self.model[parent], self.versions[parent]
        values, versions = copy.deepcopy(values), dict(versions)
        if read and parent:
            found = saver.get_tuple(self._config(parent))
            assert found is not None
            assert found.checkpoint["channel_values"] == values
            assert found.checkpoint["channel_versions"] == versions
            values = found.checkpoint["channel_values"]
        new: ChannelVersions = {}
        for channel in data.draw(st.sampled_from([("a",), ("b",), ("a", "b"), ()])):
            values[channel] = data.draw(changed(values[channel]))
            new[channel] = versions[channel] = saver.get_next_version(versions[channel], None)
        checkpoint = checkpoint_of(values)
        checkpoint["channel_versions"] = dict(versions)
        self.last = copy.deepcopy(values), dict(versions)
        self.client.trouble = trouble
        try:
            metadata: Any = {"run_id": str(which)}
            saver.put(self._config(parent), checkpoint, metadata, new if told else {})
        except RequestError:
            assert trouble
        self.client.trouble = ""
        if trouble != "before":
            self.model[checkpoint["id"]] = copy.deepcopy(values)
            self.versions[checkpoint["id"]] = dict(versions)

    @precondition(lambda self: len(self.model) > 1)
    @rule(which=st.integers(0, 1))
    def prune(self, which: int) -> None:
        self.savers[which].prune(["t"])
        self._keep({max(self.model)})

    @rule(which=st.integers(0, 1), run=st.integers(0, 1))
    def forget_a_run(self, which: int, run: int) -> None:
        command = ListCheckpoints(thread_id="t", facets={"run_id": str(run)})
        page = self.client.ask_sync(command)
        assert isinstance(page, CheckpointPage)
        self.savers[which].delete_for_runs([str(run)])
        self._keep(self.model.keys() - {row.checkpoint_id for row in page.rows})

    @rule(which=st.integers(0, 1))
    def delete(self, which: int) -> None:
        self.savers[which].delete_thread("t")
        self._keep(set())

    @rule()
    def replay(self) -> None:
        self.client.shard = Shard()
        for record in self.client.records:
            self.client.shard.apply(record)

    @rule(which=st.integers(0, 1))
    def copy(self, which: int) -> None:
        self.savers[which].copy_thread("t", "u")
        self._expect("u")
        self.savers[which].delete_thread("u")

    def _keep(self, ids: set[str]) -> None:
        """Nothing that the others had is left, and nothing that these have is gone."""
        removed = self.model.keys() - ids
        self.model = {i: self.model[i] for i in self.model if i in ids}
        self.versions = {i: self.versions[i] for i in self.versions if i in ids}
        branch = self.client.shard._threads.branch("t", "")
        if removed and branch is not None:
            named = {p for entry in branch.entries.values() for p in entry.versions.items()}
            assert branch.blobs.keys() <= named

    def _expect(self, thread: str) -> None:
        found = [*AsyncCheckpointSaver(self.client).list(config_of(thread))]
        assert {f.checkpoint["id"]: f.checkpoint["channel_values"] for f in found} == self.model
        assert {
            f.checkpoint["id"]: f.checkpoint["channel_versions"] for f in found
        } == self.versions

    @invariant()
    def all_is_there(self) -> None:
        self._expect("t")


@pytest.mark.parametrize("examples", amounts(15, 60))
def test_conversations_are_found_as_they_were_put(examples: int) -> None:
    profile = settings(
        max_examples=examples,
        stateful_step_count=30,
        deadline=None,
        suppress_health_check=[*HealthCheck],
    )
    run_state_machine_as_test(Conversations, settings=profile)
