"""Long lists, a conversation's messages say: what is new is what is written, and all is there."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer

from flowgentic_actors import MemoryCluster
from flowgentic_actors.errors import ThreadConflictError
from tests.conftest import settings_of
from tests.support.faces import SaverFace, checkpoint_of, config_of, id_of, unique
from tests.support.long_lists import notes, recorded
from tests.support.shift_cipher import Shift

pytestmark = pytest.mark.anyio

FEW = pytest.mark.parametrize("mode", ["inline-journal", "subprocess"])


# ---------------------------------------------------------------------- what it costs


@pytest.mark.parametrize("mode", ["inline-journal"])  # others tell of it with the next heartbeat
async def test_a_journal_grows_by_what_is_new(mode: str) -> None:
    async with MemoryCluster(**settings_of(mode)) as memory:
        saver, config, value = memory.checkpointer, config_of("t"), notes(500)

        async def size() -> int:
            return sum(actor.journal_bytes for actor in (await memory.status()).actors)

        config = await saver.aput(config, checkpoint_of({"a": value}), {}, {"a": 1})
        before = await size()
        for number in range(10):
            value = [*value, *notes(1, 500 + number)]
            config = await saver.aput(config, checkpoint_of({"a": value}), {}, {"a": 1})
        assert before > 500_000
        assert await size() - before < 150_000


async def test_a_put_is_one_request(memory: MemoryCluster) -> None:
    saver, client = recorded(memory)
    config, value = config_of(unique()), notes(100)
    first = checkpoint_of({"a": value, "b": notes(40)})
    config = await saver.put(config, first)
    for number in range(4):
        value = [*value, *notes(1, 100 + number)]
        following = checkpoint_of({"a": value, "b": notes(40)})
        following["channel_versions"]["b"] = first["channel_versions"]["b"]
        news = {"a": following["channel_versions"]["a"]}
        config = await saver.put(config, following, new_versions=news)
        found = await saver.found(config)
        assert found.checkpoint == following
    assert len(client.sent) == 5
    assert client.sent[0] > 140_000
    assert max(client.sent[1:]) < 10_000


# ---------------------------------------------------------------------- savers


async def test_parts_are_seen_by_nobody(saver: SaverFace) -> None:
    thread = unique()
    checkpoint = checkpoint_of({"a": notes(100), "b": 1, "c": notes(20)})
    config = await saver.put(config_of(thread), checkpoint, {"note": "x"})

    assert (await saver.found(config)).checkpoint == checkpoint
    (listed,) = [found async for found in saver.each(config_of(thread), filter={"note": "x"})]
    assert listed.checkpoint == checkpoint
    (told,) = saver.saver.threads(prefix=thread)
    assert told.checkpoints == 1
    assert 100_000 < told.bytes < 150_000


@FEW
@pytest.mark.parametrize("version", [1, 1.5, "1"])
async def test_versions_of_any_type_come_back(
    memory: MemoryCluster, version: Any, face: str
) -> None:
    saver, thread = SaverFace(memory.checkpointer, blocking=face == "sync"), unique()
    checkpoint = checkpoint_of({"a": notes(30)})
    checkpoint["channel_versions"] = {"a": version}
    config = await saver.put(config_of(thread), checkpoint)
    found = await saver.found(config)
    assert found.checkpoint == checkpoint
    assert type(found.checkpoint["channel_versions"]["a"]) is type(version)
    again = checkpoint_of({"a": notes(30)})
    again["channel_versions"] = {"a": version}
    config = await saver.put(config, again, new_versions={})
    assert (await saver.found(config)).checkpoint == again


@FEW
async def test_a_list_that_did_not_change_is_kept_with_its_parts(memory: MemoryCluster) -> None:
    """Also by a saver that knows nothing of it, and when what came before is gone."""
    thread = unique()
    (knows, client), (other, late) = recorded(memory), recorded(memory)
    checkpoint = checkpoint_of({"a": notes(100)})
    config = await knows.put(config_of(thread), checkpoint)
    for saver in (knows, other, knows, other):
        following = checkpoint_of({"a": notes(100), "b": unique()})
        following["channel_versions"]["a"] = checkpoint["channel_versions"]["a"]
        news = {"b": following["channel_versions"]["b"]}
        config = await saver.put(config, following, new_versions=news)
        await memory.checkpointer.aprune([thread])
        assert (await knows.found(config)).checkpoint == following
    assert len(client.sent) == 3
    assert len(late.sent) == 3  # once it did not know
    assert sum(client.sent[1:]) < 4000


@FEW
async def test_what_is_pruned_takes_nothing_and_leaves_nothing(
    memory: MemoryCluster, face: str
) -> None:
    saver, thread = SaverFace(memory.checkpointer, blocking=face == "sync"), unique()
    config, value = config_of(thread), notes(50)
    forks = []
    for number in range(30):
        value = [*value, *notes(1, 50 + number)]
        config = await saver.put(config, checkpoint_of({"a": value}), {"run_id": f"run {number}"})
        if number in (3, 10):
            changed = [*value[:5], *notes(3, 1000), *value[9:]]
            forks.append(await saver.put(config, checkpoint_of({"a": changed}), {"run_id": "f"}))
    (before,) = saver.saver.threads(prefix=thread)

    await saver.delete_for_runs(["f", *(f"run {number}" for number in range(0, 28, 2))])
    async for found in saver.each(config_of(thread)):
        assert found.checkpoint["channel_values"]["a"][-1]["id"] == 50 + int(
            found.metadata["run_id"].split()[1]
        )
    await saver.prune([thread])

    assert (await saver.found(config_of(thread))).checkpoint["channel_values"]["a"] == value
    (after,) = saver.saver.threads(prefix=thread)
    assert after.checkpoints == 1
    assert after.bytes < 95_000 < before.bytes
    await saver.put(config, checkpoint_of({"a": 1}))
    await saver.prune([thread])
    (after,) = saver.saver.threads(prefix=thread)
    assert after.bytes < 1000


@FEW
async def test_the_last_checkpoints_have_their_lists(mode: str, face: str) -> None:
    async with MemoryCluster(**settings_of(mode), keep_last=2) as memory:
        saver = SaverFace(memory.checkpointer, blocking=face == "sync")
        config, value = config_of("t"), notes(60)
        for number in range(20):
            value = [*value[1:], *notes(1, 60 + number)]
            config = await saver.put(config, checkpoint_of({"a": value}))
        listed = [found async for found in saver.each(config_of("t"))]
        assert [found.checkpoint["channel_values"]["a"][-1]["id"] for found in listed] == [79, 78]
        assert all(len(found.checkpoint["channel_values"]["a"]) == 60 for found in listed)
        (told,) = saver.saver.threads()
        assert told.bytes < 160_000


@FEW
async def test_a_thread_that_was_deleted_is_written_anew(memory: MemoryCluster, face: str) -> None:
    saver, client = recorded(memory, face)
    thread, value = unique(), notes(100)
    checkpoint = checkpoint_of({"a": value, "b": notes(30)})
    config = await saver.put(config_of(thread), checkpoint)
    await SaverFace(memory.checkpointer, blocking=face == "sync").delete_thread(thread)
    following = checkpoint_of({"a": [*value, 1], "b": notes(30)})
    following["channel_versions"]["b"] = checkpoint["channel_versions"]["b"]
    news = {"a": following["channel_versions"]["a"]}

    config = await saver.put(config, following, new_versions=news)

    assert (await saver.found(config)).checkpoint == following
    assert len(client.sent) == 3  # it had to be sent again, whole


@FEW
async def test_a_put_that_failed_is_not_counted_on(memory: MemoryCluster, face: str) -> None:
    saver, client = recorded(memory, face)
    value = notes(50)
    config = await saver.put(config_of(unique()), checkpoint_of({"a": value}))
    value = [*value, *notes(20, 50)]
    client.fails = True
    with pytest.raises(ConnectionError):
        await saver.put(config, checkpoint_of({"a": value}))
    client.fails = False
    value = [*value, *notes(1, 70)]
    config = await saver.put(config, checkpoint_of({"a": value}))
    assert (await saver.found(config)).checkpoint["channel_values"]["a"] == value
    assert len(client.sent) == 2


@FEW
async def test_puts_may_overlap_and_be_cancelled(memory: MemoryCluster) -> None:
    saver, value = memory.checkpointer, notes(50)
    config = await saver.aput(config_of(unique()), checkpoint_of({"a": value}), {}, {"a": 1})
    made = [
        checkpoint_of({"a": [*value[:number], *notes(number, 100), *value]}) for number in range(20)
    ]
    puts = [asyncio.ensure_future(saver.aput(config, c, {}, {"a": 1})) for c in made]
    await asyncio.sleep(0)
    for put in puts[::3]:
        put.cancel()
    done = await asyncio.gather(*puts, return_exceptions=True)
    for checkpoint, stored in zip(made, done, strict=True):
        if not isinstance(stored, BaseException):
            found = await saver.aget_tuple(stored)
            assert found is not None
            assert found.checkpoint == checkpoint
    last = checkpoint_of({"a": made[0]["channel_values"]["a"]})
    found = await saver.aget_tuple(await saver.aput(config, last, {}, {"a": 1}))
    assert found is not None
    assert found.checkpoint == last


@FEW
async def test_what_is_changed_in_place_is_stored(memory: MemoryCluster, face: str) -> None:
    saver, client = recorded(memory, face)
    value = notes(200)
    first = await saver.put(config_of(unique()), checkpoint_of({"a": value}))
    value[7]["text"] = "another"
    second = await saver.put(first, checkpoint_of({"a": value}))
    assert (await saver.found(second)).checkpoint["channel_values"]["a"][7]["text"] == "another"
    assert (await saver.found(first)).checkpoint["channel_values"]["a"] == notes(200)
    assert client.sent[1] < 80_000 < client.sent[0] / 2


class Salted(Shift):
    """One that gives other bytes each time, as ciphers in earnest do."""

    def encrypt(self, plaintext: bytes) -> tuple[str, bytes]:
        name, data = super().encrypt(plaintext)
        return name, os.urandom(16) + data

    def decrypt(self, ciphername: str, ciphertext: bytes) -> bytes:
        return super().decrypt(ciphername, ciphertext[16:])


@FEW
async def test_encrypted_lists_are_right(memory: MemoryCluster, face: str) -> None:
    saver, client = recorded(memory, face)
    plain, config = saver.saver.serde, config_of(unique())
    value = notes(50)
    for cipher in (None, Shift(), Shift(), None, Salted(), Salted(), None):
        saver.saver.serde = EncryptedSerializer(cipher, plain) if cipher else plain
        value = [*value, *notes(1, len(value))]
        config = await saver.put(config, checkpoint_of({"a": value}))
        assert (await saver.found(config)).checkpoint["channel_values"]["a"] == value
    # What is encrypted anew each time is sent whole; otherwise the second put sends what is new,
    # and so does the last one, on what the fourth one sent.
    assert [size > 50_000 for size in client.sent] == [True, True, False, True, True, True, False]
    await saver.delete_thread(config["configurable"]["thread_id"])  # others could not read it


@FEW
async def test_a_list_that_delta_channels_go_on_from_is_whole(
    memory: MemoryCluster, face: str
) -> None:
    saver, thread = SaverFace(memory.checkpointer, blocking=face == "sync"), unique()
    seed = notes(100)
    values = {"a": seed, "b": notes(20), "c": "s"}
    config = await saver.put(config_of(thread), checkpoint_of(values))
    configs = [config]
    for step in range(3):
        await saver.put_writes(config, [("a", [step]), ("c", step)], f"t{step}")
        since = {"counters_since_delta_snapshot": {"a": (step + 1, step + 1)}}
        config = await saver.put(config, checkpoint_of({"other": step}), since)
        configs.append(config)
    for _ in range(2):
        found = await saver.channel_history(config, ["a", "b", "c", "d"])
        assert found["a"]["seed"] == seed
        assert [value for _, _, value in found["a"]["writes"]] == [[0], [1], [2]]
        assert found["b"] == {"writes": [], "seed": notes(20)}
        assert found["c"]["seed"] == "s"
        assert found["d"] == {"writes": []}
        await saver.prune([thread])
    assert len(await saver.ids(config_of(thread))) == 4


@FEW
async def test_a_channel_whose_name_is_like_a_parts_keeps_its_value(
    memory: MemoryCluster, face: str
) -> None:
    saver, config = SaverFace(memory.checkpointer, blocking=face == "sync"), config_of(unique())
    for name in ("\0", "\0x"):
        for values in ({"a": notes(50)}, {"a": notes(51), name: notes(50)}, {name: 1}):
            checkpoint = checkpoint_of(values)
            config = await saver.put(config, checkpoint)
            assert (await saver.found(config)).checkpoint == checkpoint
        first, second = checkpoint_of({"a": notes(50)}), checkpoint_of({"a": notes(50), name: 1})
        second["channel_versions"]["a"] = first["channel_versions"]["a"]
        config = await saver.put(config, first)
        news = {name: second["channel_versions"][name]}
        config = await saver.put(config, second, new_versions=news)
        assert (await saver.found(config)).checkpoint == second


@FEW
async def test_conflicts_are_detected_with_long_lists(mode: str) -> None:
    async with MemoryCluster(**settings_of(mode), detect_conflicts=True) as memory:
        saver = memory.checkpointer
        config = await saver.aput(config_of("t"), checkpoint_of({"a": notes(50)}), {}, {"a": 1})
        ours = await saver.aput(config, checkpoint_of({"a": notes(51)}), {}, {"a": 1})
        with pytest.raises(ThreadConflictError):
            await saver.aput(config, checkpoint_of({"a": notes(90)}), {}, {"a": 1})
        ours = await saver.aput(ours, checkpoint_of({"a": notes(91)}), {}, {"a": 1})
        found = await saver.aget_tuple(config_of("t"))
        assert found is not None
        assert found.checkpoint["id"] == id_of(ours)
        assert found.checkpoint["channel_values"]["a"] == notes(91)
