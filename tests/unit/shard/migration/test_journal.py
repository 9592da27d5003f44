"""What is in the journals of shards between which slots move."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from flowgentic_actors.engine.commands import GetItem, PutItem
from flowgentic_actors.engine.replies import ItemReply
from flowgentic_actors.secret import revealed
from flowgentic_actors.shard.migration import source as source_module
from tests.support.counter import until
from tests.support.migrating_shards import begun_slowly, namespace_in, owned, raw, two
from tests.support.replicas import LIMIT, compacted

pytestmark = pytest.mark.anyio

_encode = msgspec.msgpack.Encoder(enc_hook=revealed).encode


async def test_the_source_forgets_what_it_gave_away_and_holds_less(place: Path) -> None:
    async with two(place) as both:
        await both.do_some(200)
        before = both.source.shard.size()
        await both.moved()
        await both.forgotten()
        after, taken = both.source.shard.size(), both.target.shard.size()
        assert after.items < before.items
        assert after.threads < before.threads
        assert after.blob_bytes < before.blob_bytes
        assert after.vector_bytes < before.vector_bytes
        model = both.model.shard.size()
        assert after.items + taken.items == model.items
        assert after.threads + taken.threads == model.threads
        assert after.blob_bytes + taken.blob_bytes == model.blob_bytes


async def test_the_log_stays_while_somebody_reads_on_in_it(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two(place) as both:
        started = asyncio.Event()
        monkeypatch.setattr(both.source.core._compactor, "start", started.set)
        monkeypatch.setattr(both.source.core._maintenance, "_look_after", 1)
        both.start_move()
        await both.near()
        namespace = namespace_in(owned(both, both.source) - set(both.slots))

        async def garbage() -> None:
            for number in range(40):
                blob = ("msgpack", _encode(number) + bytes(3000))
                await both.do(PutItem(namespace, "k", blob))

        await garbage()
        assert not started.is_set()
        both.hold()
        await both.done()
        both.commit()
        both.order()
        monkeypatch.setattr(both.source.core.migrator._source, "_until", 0.0)  # a while later
        await garbage()
        assert started.is_set()


async def test_a_compaction_that_had_begun_before_does_no_harm(place: Path) -> None:
    async with two(place, segment_bytes=4 << 10) as both:
        await both.do_some(300)
        both.start_move(rate=100_000)
        await until(lambda: both.target.take("position"))
        position = both.target.take("position")
        await compacted(both.source.core)
        assert position < both.source.core._journal.compacted_to
        await both.do_some(30)
        await both.finish()
        await both.check()


async def test_without_the_log_all_is_taken_anew(place: Path) -> None:
    async with two(place, segment_bytes=4 << 10) as both:
        await both.do_some(200)
        await begun_slowly(both)
        log_from = both.source.core.position
        while both.source.core._journal.sealed_to <= log_from:
            await both.do_some(10)
        await compacted(both.source.core)
        await until(lambda: both.target.take("failed"))
        assert not both.target.take("done")
        both.give_up()
        await both.forgotten()
        await both.moved()
        await both.check()


async def test_the_largest_item_moves_whatever_is_before_it(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_module, "PIECE", 64 << 10)
    async with two(place, segment_bytes=8 << 20) as both:
        namespace = namespace_in(set(both.slots))
        for number in range(20):
            await both.do(PutItem(namespace, f"small-{number}", ("", bytes(3000))))
        empty = len(_encode(PutItem(namespace, "largest", ("", b""))))
        await both.do(PutItem(namespace, "largest", ("", bytes(LIMIT - empty - 16))))
        await both.moved()
        reply = await raw(both.target, GetItem(namespace, "largest"))
        assert isinstance(reply, ItemReply)
        assert reply.row is not None
        assert len(reply.row.value[1]) == LIMIT - empty - 16
