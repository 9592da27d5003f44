"""A shard without a journal, in the process that uses it: its content ends with the process."""

from __future__ import annotations

import threading

import msgspec

from flowgentic_actors.engine.commands import WRITES, Command
from flowgentic_actors.engine.records import RECORDS, Record
from flowgentic_actors.engine.replies import Reply
from flowgentic_actors.engine.shard import DONE
from flowgentic_actors.engine.values import NOWHERE
from flowgentic_actors.shard.clock import Clock
from flowgentic_actors.shard.journaling.entries import LogEntry
from flowgentic_actors.shard.settings import ShardSettings
from flowgentic_actors.shard.sweeper import Sweeper
from flowgentic_actors.shard.writer import ShardWriter


class VolatileShard:
    """A shard without a journal; callable from any thread, blocks only while a command runs.

    Args:
        settings: How much it keeps.
    """

    def __init__(self, settings: ShardSettings) -> None:
        self._mutex = threading.Lock()
        self._clock = Clock()
        self._shard = settings.make_shard()
        self._writer = ShardWriter(self._shard, settings, self._keep)
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
            now_us = self._clock.tick()
            if isinstance(command, WRITES):
                reply = self._writer.execute(command, now_us)
                if self._shard.any_expires:
                    self._sweeper.start()
            else:
                self._begun = command
                reply = self._writer.query(command, now_us)
            self._begun = None
            return reply

    def stats(self) -> dict[str, int]:
        """Counters of what the shard holds."""
        with self._mutex:
            self._complete()
            return msgspec.structs.asdict(self._shard.size())

    def close(self) -> None:
        """Stop the sweeper."""
        self._sweeper.close()

    def after_fork(self) -> None:
        """Make the shard usable in a forked child, to be asked for its state."""
        self._mutex = threading.Lock()  # another thread may have held the old one

    def _keep(self, entry: LogEntry, *, urgent: bool) -> None:  # noqa: ARG002 - there is always room
        if self._begun is None or not isinstance(self._begun, RECORDS):
            self._begun = entry.record  # otherwise this is a part of what is under way
        self._shard.apply(entry.record)

    def _complete(self) -> None:
        """Complete an interrupted operation."""
        if self._begun is not None:
            self._writer.redo(self._begun, self._clock.tick())
            if self._shard.any_expires:
                self._sweeper.start()
            self._begun = None

    def _sweep(self) -> None:
        more = True
        while more:
            with self._mutex:  # others get their turn in between
                self._complete()
                more = self._writer.expire(self._clock.tick())
                self._begun = None
