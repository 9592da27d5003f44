"""What state machines that compare a shard with a model share.

Every command is also given to a twin that only ever saw the records, each one twice and through
msgpack, and that has room for hardly any value in memory: it has to answer like the shard itself.
"""

from __future__ import annotations

import msgspec
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant
from msgspec.structs import replace

from flowgentic_actors.engine import Shard
from flowgentic_actors.engine.commands import Command, SearchItems
from flowgentic_actors.engine.records import Record
from flowgentic_actors.engine.replies import Done, ItemPage, Reply
from flowgentic_actors.engine.shard import ShardSize
from flowgentic_actors.errors import ColdValuesError

PROFILE = settings(
    stateful_step_count=25,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

_encoder = msgspec.msgpack.Encoder()
_records: msgspec.msgpack.Decoder[Record] = msgspec.msgpack.Decoder(Record)


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
