"""A shard without a journal, in the process that uses it: its content ends with the process."""

from __future__ import annotations

import threading

import msgspec

from flowgentic_actors.engine.commands import WRITES, Command
from flowgentic_actors.engine.records import Record
from flowgentic_actors.engine.replies import Reply
from flowgentic_actors.engine.shard import DONE
from flowgentic_actors.engine.values import NOWHERE
from flowgentic_actors.shard.clock import Clock
from flowgentic_actors.shard.settings import ShardSettings
from flowgentic_actors.shard.sweeper import Sweeper


class VolatileShard:
    """A shard without a journal; callable from any thread, blocks only while a command runs.

    Args:
        settings: How much it keeps.
    """

    def __init__(self, settings: ShardSettings) -> None:
        self._mutex = threading.Lock()
        self._clock = Clock()
        self._shard = settings.make_shard()
        self._ceilings = settings.quotas if settings.quotas.any else None
        limited = settings.quotas.any or settings.keep_last is not None or settings.thread_ttl
        self._writes = {} if limited else self._shard.writes
        self._reads = self._shard.reads
        # The operation under way. A signal handler may raise at any instruction: the next call
        # finds the interrupted operation here, and completes it first.
        self._begun: Command | Record | None = None
        self._sweeper = Sweeper(self._sweep, settings.sweep_seconds)

    def ask(self, command: Command) -> Reply:
        """Carry out a command.

        Raises:
            InvalidRequestError: If it cannot be carried out as it stands.
            MemoryFullError: If there is no room for it.
        """
        with self._mutex:
            if self._begun is not None:
                self._complete()
            kind = type(command)
            if kind in self._writes:
                takes, carry_out = self._writes[kind]
                if takes(command):
                    self._begun = command
                    carry_out(command, NOWHERE, self._clock.tick())
                    self._begun = None
                    return DONE
            elif kind in self._reads and (found := self._reads[kind](command)) is not None:
                return found
            shard, now_us = self._shard, self._clock.tick()
            if not isinstance(command, WRITES):
                self._begun = command
                reply = shard.execute(command, now_us).reply
                self._begun = None
                return reply
            reply, record = shard.decide(command, now_us)
            if record is not None:
                if self._ceilings is not None:
                    self._ceilings.check(shard, record)
                self._begun = record
                shard.apply(record)
                trimmed = shard.decide_trim(record)
                if trimmed is not None:
                    shard.apply(trimmed)
                if shard.any_expires:
                    self._sweeper.start()
                self._begun = None
            return reply

    def stats(self) -> dict[str, int]:
        """Counters of what the shard holds."""
        with self._mutex:
            if self._begun is not None:
                self._complete()
            return msgspec.structs.asdict(self._shard.size())

    def close(self) -> None:
        """Stop the sweeper."""
        self._sweeper.close()

    def after_fork(self) -> None:
        """Make the shard usable in a forked child, to be asked for its state."""
        self._mutex = threading.Lock()  # another thread may have held the old one

    def _complete(self) -> None:
        begun = self._begun
        if begun is not None:
            self._shard.redo(begun, self._clock.tick())
            trimmed = self._shard.decide_trim(begun)
            if trimmed is not None:
                self._shard.apply(trimmed)
            if self._shard.any_expires:
                self._sweeper.start()
            self._begun = None

    def _sweep(self) -> None:
        more = True
        while more:
            with self._mutex:  # others get their turn in between
                if self._begun is not None:
                    self._complete()
                record = self._shard.decide_expire(self._clock.tick())
                more = record is not None
                if record is not None:
                    self._begun = record
                    self._shard.apply(record)
                    self._begun = None
