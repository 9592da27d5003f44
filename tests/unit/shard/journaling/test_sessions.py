"""Sessions: a write is done once, and is remembered for as long as somebody may ask again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from flowgentic_actors.actors.actor import Call
from flowgentic_actors.engine.commands import Command, GetItem, PutItem, SearchItems
from flowgentic_actors.engine.replies import Done, ItemReply, Reply
from flowgentic_actors.errors import (
    InvalidRequestError,
    JournalDamagedError,
    RejectedError,
    StorageError,
)
from flowgentic_actors.shard.actor import ShardActor
from flowgentic_actors.shard.journaling import sessions as memory
from flowgentic_actors.shard.journaling.sessions import KEEP_US, Sessions
from flowgentic_actors.storage.disk import RealDisk
from flowgentic_actors.storage.journal import Journal

_replies: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)

A, B = b"a" * 16, b"b" * 16


def test_a_write_that_was_done_is_answered_from_memory() -> None:
    sessions = Sessions()
    assert sessions.recall(A, 0) is None
    sessions.remember(A, 0, 0, b"reply", 0)
    assert sessions.recall(A, 0) == b"reply"
    assert sessions.recall(A, 1) is None
    assert sessions.recall(B, 0) is None  # numbers are each session's own


def test_what_is_below_the_low_watermark_is_forgotten_and_refused() -> None:
    sessions = Sessions()
    for seq in range(5):
        sessions.remember(A, seq, 0, b"%d" % seq, 0)
    sessions.remember(A, 5, 3, b"5", 0)
    assert [sessions.recall(A, seq) for seq in (3, 4, 5)] == [b"3", b"4", b"5"]
    for seq in (0, 1, 2):
        with pytest.raises(InvalidRequestError, match="was finished before"):
            sessions.recall(A, seq)
    assert len(sessions._sessions[A].replies) == 3


def test_the_low_watermark_never_goes_back() -> None:
    """A request may be sent again with an older watermark than one that came in between."""
    sessions = Sessions()
    sessions.remember(A, 9, 9, b"9", 0)
    sessions.remember(A, 10, 4, b"10", 0)
    with pytest.raises(InvalidRequestError):
        sessions.recall(A, 8)
    assert sessions.recall(A, 9) == b"9"


def test_a_session_that_wrote_nothing_for_a_day_is_forgotten() -> None:
    sessions = Sessions()
    sessions.remember(A, 0, 0, b"a", 0)
    sessions.remember(B, 0, 0, b"b", KEEP_US - 1)
    assert sessions.recall(A, 0) == b"a"
    sessions.remember(b"another session.", 0, 0, b"c", KEEP_US)
    assert sessions.recall(A, 0) is None
    assert sessions.recall(B, 0) == b"b"
    assert len(sessions) == 2


def test_a_session_in_use_is_kept_however_old_it_is() -> None:
    sessions = Sessions()
    for hour in range(100):
        sessions.remember(A, hour, 0, b"%d" % hour, hour * 3600 * 1_000_000)
    assert sessions.recall(A, 0) == b"0"


def test_the_number_of_sessions_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MOST_SESSIONS", 10)
    sessions = Sessions()
    names = [bytes([n]) * 16 for n in range(20)]
    for name in names:
        sessions.remember(name, 0, 0, b"", 0)
        sessions.remember(names[0], 1, 0, b"", 0)  # stays, as it is used
    assert len(sessions) == 10
    assert sessions.recall(names[0], 1) == b""
    assert sessions.recall(names[1], 0) is None
    assert sessions.recall(names[-1], 0) == b""


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), max_size=60))
def test_a_client_that_keeps_the_rules_is_never_refused_and_nothing_happens_twice(
    steps: list[tuple[int, int]],
) -> None:
    """Requests are sent, sent again and finished in any order."""
    sessions = Sessions()
    done: dict[int, int] = {}  # how often
    unfinished: list[int] = []
    following = 0

    def send(seq: int) -> None:
        if sessions.recall(A, seq) is None:
            done[seq] = done.get(seq, 0) + 1
            sessions.remember(A, seq, min(unfinished), b"%d" % seq, 0)
        assert sessions.recall(A, seq) == b"%d" % seq

    for action, which in steps:
        if action == 0 or not unfinished:
            unfinished.append(following)
            send(following)
            following += 1
        elif action == 1:
            send(unfinished[which % len(unfinished)])
        else:
            del unfinished[which % len(unfinished)]
    assert set(done.values()) <= {1}


# ---------------------------------------------------------------------- in the memory actor


@contextmanager
def actor_in(folder: Path) -> Iterator[ShardActor]:
    """One incarnation of a memory actor."""
    actor = ShardActor(str(folder))
    try:
        yield actor
    finally:
        actor.close()


def put(value: bytes) -> PutItem:
    return PutItem(("a",), "k", ("msgpack", value))


def call(actor: ShardActor, seq: int, command: Command, low: int = 0) -> Reply:
    body = Raw(msgspec.msgpack.encode(command))
    reply = actor.handle(Call(A, seq, low, body))
    assert isinstance(reply, bytes)
    return _replies.decode(reply)


def value(actor: ShardActor) -> bytes | None:
    reply = call(actor, 1_000_000, GetItem(("a",), "k"))
    assert isinstance(reply, ItemReply)
    return reply.row.value[1] if reply.row else None


def test_a_write_sent_again_is_done_once_by_any_incarnation(tmp_path: Path) -> None:
    with actor_in(tmp_path) as actor:
        first = call(actor, 0, put(b"old"))
        call(actor, 1, put(b"new"))
        actor.commit()
        assert call(actor, 0, put(b"old")) == first
        assert value(actor) == b"new"
    with actor_in(tmp_path) as actor:  # the next one knows from the journal
        assert call(actor, 0, put(b"old")) == first
        assert value(actor) == b"new"
        call(actor, 2, put(b"newest"), low=2)
        with pytest.raises(InvalidRequestError):
            call(actor, 1, put(b"new"))
        assert value(actor) == b"newest"


def test_the_replies_of_a_session_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "MOST_REPLIES", 10)
    with actor_in(tmp_path) as actor:
        for seq in range(1, 11):  # while request 0 is open
            call(actor, seq, put(b"%d" % seq))
        with pytest.raises(RejectedError, match="request 0 is open"):
            call(actor, 11, put(b"refused"))
        assert call(actor, 10, put(b"10")) == Done()  # what was answered is answered again
        assert value(actor) == b"10"
        assert isinstance(
            actor.handle(Call(B, 0, 0, Raw(msgspec.msgpack.encode(put(b"B"))))), bytes
        )
        call(actor, 12, put(b"later"), low=2)  # request 0 is finished, and so is one of the others
        assert value(actor) == b"later"


def test_what_was_not_committed_is_not_there_later(tmp_path: Path) -> None:
    with actor_in(tmp_path) as actor:
        call(actor, 0, put(b"committed"))
        actor.commit()
        call(actor, 1, put(b"not"))
    with actor_in(tmp_path) as actor:
        assert value(actor) == b"committed"
        assert call(actor, 1, put(b"now")) == Done()  # its caller had no answer and asks again
        assert value(actor) == b"now"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc0",
        b"\x91\x63",
        b"\x94\x06\x91\xa1\xff\xa1k\x92\xa1t\xc4\x01x",  # a label that is not UTF-8
        b"\x95\x06\x91\xa1a\xa1k\x92\xa1t\xc4\x01x" + b"\x91" * 100_000,  # nested too deeply
        msgspec.msgpack.encode(SearchItems((), b"\x81\xa1\xff\x01", 10, 0)),  # such a filter
        msgspec.msgpack.encode(SearchItems((), b"\x81\xa1f" + b"\x91" * 5000 + b"\x01", 10, 0)),
    ],
)
def test_what_is_no_command_is_refused_and_breaks_nothing(tmp_path: Path, body: bytes) -> None:
    with actor_in(tmp_path) as actor:
        call(actor, 0, put(b"here"))
        with pytest.raises(InvalidRequestError):
            actor.handle(Call(A, 1, 0, Raw(body)))
        actor.commit()
        assert value(actor) == b"here"


def test_a_damaged_journal_is_refused_each_time_and_left_as_it_is(tmp_path: Path) -> None:
    """A supervisor tries again: what the first attempt refuses, the second must not find gone."""
    actor = ShardActor(str(tmp_path))
    call(actor, 0, put(b"old"))
    call(actor, 1, put(b"new"))
    actor.commit()
    actor._journal._log.abandon()  # its process died here
    actor._lock.release()
    (file,) = tmp_path.glob("*.seg")
    damaged = bytearray(file.read_bytes())
    damaged[damaged.index(b"old")] ^= 1
    file.write_bytes(damaged)
    for _ in range(3):
        with pytest.raises(JournalDamagedError):
            ShardActor(str(tmp_path))
    assert file.read_bytes() == damaged


def test_a_journal_of_something_else_is_refused(tmp_path: Path) -> None:
    journal = Journal(RealDisk(), tmp_path, durable=False)
    list(journal.replay())
    journal.append([b"whole, and no entry of a shard"])
    journal.close()
    for _ in range(2):  # refusing does not leave it locked
        with pytest.raises(JournalDamagedError, match="another version"):
            ShardActor(str(tmp_path))


def test_what_is_refused_for_want_of_room_leaves_nothing_in_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise StorageError("no room")

    with actor_in(tmp_path) as actor:
        call(actor, 0, put(b"kept"))
        with monkeypatch.context() as patched:
            patched.setattr(actor._maintenance, "check_room", full)
            with pytest.raises(StorageError):
                call(actor, 1, put(b"refused"))
        call(actor, 2, put(b"later"))
        actor.commit()
    with actor_in(tmp_path) as actor:
        assert value(actor) == b"later"
        assert actor.stats()["replayed_writes"] == 2
