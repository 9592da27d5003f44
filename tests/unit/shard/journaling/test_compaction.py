"""Compaction: what is alive stays, what is dead goes, and a crash at any point changes nothing."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from flowgentic_actors.acknowledgement import AckName
from flowgentic_actors.actors.actor import Call
from flowgentic_actors.engine import Shard
from flowgentic_actors.engine.commands import (
    Command,
    DeleteItem,
    DeleteThread,
    DropRuns,
    ListCheckpoints,
    PruneThread,
    PutCheckpoint,
    PutItem,
    PutWrites,
    SearchItems,
)
from flowgentic_actors.engine.model import Write
from flowgentic_actors.errors import JournalDamagedError
from flowgentic_actors.shard.actor import ShardActor
from flowgentic_actors.shard.journaling.compaction import compact
from flowgentic_actors.shard.journaling.compactor import Compactor
from flowgentic_actors.shard.journaling.entries import (
    LogEntry,
    SessionTable,
    decode_entry,
    encode_entry,
)
from flowgentic_actors.shard.journaling.sessions import Sessions
from flowgentic_actors.storage.journal import Journal
from flowgentic_actors.storage.worker import Worker
from flowgentic_actors.testing.disk import Crash, SimulatedDisk
from tests.support.actor_settings import actor_settings
from tests.support.counter import PATIENCE

FOLDER = Path("/shard")
SESSION = b"s" * 16


def some_commands(rng: random.Random, count: int) -> list[Command]:
    """Puts that overwrite each other, deletions, threads: much of it dead soon."""
    made: list[Command] = []
    for number in range(count):
        key, thread = f"k{rng.randrange(6)}", f"t{rng.randrange(3)}"
        blob = ("msgpack", msgspec.msgpack.encode({"n": number}) + bytes(rng.randrange(60)))
        choices: list[Command] = [
            PutItem(("n", "s"), key, blob),
            PutItem(("n", "s"), key, blob),
            DeleteItem(("n", "s"), key),
            PutCheckpoint(
                thread, "", f"{number:04}", None, blob, blob, {}, {"c": number}, {"c": blob}
            ),
            PutWrites(thread, "", f"{number:04}", "task", "", (Write(0, "c", blob),)),
            # values that their checkpoint leaves to the next one
            PutCheckpoint(
                thread,
                "",
                f"{number:04}",
                None,
                blob,
                blob,
                {"run_id": f"r{number % 3}"},
                {"c": number, "shared": number // 12},
                {"c": blob, **({"shared": blob} if number % 12 < 3 else {})},
            ),
            PruneThread(thread, rng.randrange(1, 4)),
            DropRuns(thread, (f"r{rng.randrange(3)}",)),
            *([DeleteThread(thread)] if rng.random() < 0.3 else []),
        ]
        made.append(rng.choice(choices))
    return made


class Reader:
    """A shard and its sessions as recovery finds them."""

    def __init__(self, disk: SimulatedDisk) -> None:
        self.shard, self.sessions = Shard(), Sessions()
        self.journal = Journal(disk, FOLDER, durable=False, segment_bytes=500)
        for _, payload, compacted in self.journal.replay():
            entry = decode_entry(payload)
            if isinstance(entry, SessionTable):
                self.sessions.restore(entry.sessions)
                continue
            self.shard.apply(entry.record)
            if not compacted:
                self.sessions.remember(
                    entry.session, entry.seq, entry.low, entry.reply, entry.time_us
                )

    def write(self, seq: int, command: Command) -> None:
        """Do what the actor does with a write."""
        applied = self.shard.execute(command, seq)
        reply = f"reply {seq}".encode()
        low = max(0, seq - 3)
        self.sessions.remember(SESSION, seq, low, reply, seq)
        if applied.record is not None:
            self.journal.append(
                [encode_entry(LogEntry(SESSION, seq, low, seq, reply, applied.record))]
            )

    def everything(self) -> list[object]:
        """All that can be asked."""
        return [
            self.shard.execute(ListCheckpoints(), 0).reply,
            self.shard.execute(SearchItems((), b"", 1000, 0), 0).reply,
            self.shard.size(),
        ]


def run(disk: SimulatedDisk, commands: list[Command]) -> list[list[object]]:
    """Write and compact until the disk crashes; what the shard was after each step."""
    seen: list[list[object]] = []
    with contextlib.suppress(Crash):
        live = Reader(disk)
        seen.append(live.everything())
        for seq, command in enumerate(commands):
            live.write(seq, command)
            seen.append(live.everything())
            if seq % 7 == 6:
                path = compact(disk, FOLDER, live.journal.sealed_to)
                if path is not None:
                    live.journal.remove(live.journal.adopt(live.journal.check(path)))
        live.journal.close()
    return seen


COMMANDS = some_commands(random.Random(5), 45)


def operations() -> int:
    disk = SimulatedDisk()
    run(disk, COMMANDS)
    return disk.operations


def test_a_crash_at_any_operation_of_journal_and_compaction_loses_nothing() -> None:
    expected = run(SimulatedDisk(), COMMANDS)
    for crash_at in range(operations()):
        disk = SimulatedDisk(crash_at)
        seen = run(disk, COMMANDS)
        found = Reader(disk.after_process_death()).everything()
        # what was acknowledged, or that and the one write that was under way
        assert found in expected[max(0, len(seen) - 1) : len(seen) + 1], crash_at


def test_compaction_wins_back_the_space_of_what_is_dead() -> None:
    disk = SimulatedDisk()
    live = Reader(disk)
    for seq in range(300):
        live.write(seq, PutItem(("n",), "the same key", ("msgpack", bytes(100))))
    before = live.journal.size
    path = compact(disk, FOLDER, live.journal.sealed_to)
    assert path is not None
    live.journal.remove(live.journal.adopt(live.journal.check(path)))
    assert live.journal.size < before / 10
    live.write(300, PutItem(("n",), "the same key", ("msgpack", bytes(100))))
    assert Reader(disk.after_process_death()).everything() == live.everything()


def test_replies_travel_with_compaction() -> None:
    disk = SimulatedDisk()
    live = Reader(disk)
    for seq in range(100):
        live.write(seq, PutItem(("n",), f"k{seq % 2}", ("msgpack", bytes(50))))
    assert compact(disk, FOLDER, live.journal.sealed_to) is not None
    again = Reader(disk.after_process_death()).sessions
    assert [again.recall(SESSION, seq) for seq in (97, 98, 99)] == [
        b"reply 97",
        b"reply 98",
        b"reply 99",
    ]


def test_a_damaged_set_falls_back_to_the_one_before() -> None:
    disk = SimulatedDisk()
    expected = run(disk, COMMANDS)[-1]
    sets = sorted(path for path in disk._files if path.suffix == ".set")
    assert len(sets) == 2
    for byte in range(0, len(disk._files[sets[-1]].data), 37):
        damaged = disk.after_process_death()
        damaged.flip(sets[-1], byte, byte % 8)
        assert Reader(damaged).everything() == expected


def test_without_any_whole_set_the_missing_log_is_told() -> None:
    disk = SimulatedDisk()
    run(disk, COMMANDS)
    for path in [path for path in disk._files if path.suffix == ".set"]:
        disk.flip(path, 20, 0)
    with pytest.raises(JournalDamagedError, match="is missing"):
        Reader(disk)


# ---------------------------------------------------------------------- the actor


def call(seq: int, command: Command) -> Call:
    return Call(SESSION, seq, max(0, seq - 3), msgspec.Raw(msgspec.msgpack.encode(command)))


async def drive(actor: ShardActor, commands: list[Command], first: int = 0) -> None:
    for seq, command in enumerate(commands, first):
        await answered(actor, call(seq, command))
        waiting = actor.commit()
        if waiting is not None:
            await waiting


async def answered(actor: ShardActor, asked: Call) -> object:
    answer = actor.handle(asked)
    return await answer if isinstance(answer, asyncio.Future) else answer  # it waits for room


async def contents(actor: ShardActor) -> list[object]:
    return [
        await answered(actor, call(0, ListCheckpoints())),
        await answered(actor, call(0, SearchItems((), b"", 1000, 0))),
    ]


def test_a_compaction_for_which_there_is_no_thread_does_not_end_the_journals_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    journal: Any = SimpleNamespace(sealed_to=5, compacted_to=0)
    worker, ran = Worker("journal"), threading.Event()
    worker.start()
    compactor = Compactor(journal, FOLDER, worker, lambda function: function())

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    compactor.start()
    worker.put(ran.set)
    assert ran.wait(PATIENCE)
    assert not compactor.running
    assert not compactor.ready  # but a while later
    worker.close(PATIENCE)


def test_a_compaction_that_begins_before_the_thread_of_the_last_has_ended_is_carried_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    journal: Any = SimpleNamespace(sealed_to=5, compacted_to=0, adopt=lambda _: [])
    journal.remove = lambda _: None
    worker, done = Worker("journal"), threading.Event()

    def call(finish: Callable[[], None]) -> None:
        finish()
        if compactor.done == 1:
            compactor.start()
            time.sleep(0.2)  # the thread of the first one is still there
        else:
            done.set()

    compactor = Compactor(journal, FOLDER, worker, call)
    monkeypatch.setattr(compactor, "_compact", lambda _: object())
    compactor.start()
    assert done.wait(PATIENCE)
    assert compactor.done == 2
    worker.close(PATIENCE)


@pytest.mark.anyio
@pytest.mark.parametrize("ack", ["node", "disk"])
async def test_an_actor_compacts_while_it_serves_and_finds_everything_again(
    tmp_path: Path, ack: AckName
) -> None:
    loop = asyncio.get_running_loop()
    commands = some_commands(random.Random(7), 400)

    def make() -> ShardActor:
        return ShardActor(str(tmp_path), actor_settings(ack, segment_bytes=2000))

    actor = await loop.run_in_executor(None, make)
    await drive(actor, commands)
    first = len(commands)
    async with asyncio.timeout(60):
        while actor.stats()["compactions"] < 3:  # from the second on, sets and segments go
            await drive(actor, [PutItem(("n", "s"), "k0", ("msgpack", bytes(500)))], first)
            first += 1
            await asyncio.sleep(0.02)
    expected = await contents(actor)
    assert actor.stats()["journal_bytes"] < 200_000
    await loop.run_in_executor(None, actor.close)
    actor = await loop.run_in_executor(None, make)
    assert await contents(actor) == expected
    await loop.run_in_executor(None, actor.close)
