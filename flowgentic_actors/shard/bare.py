"""A shard without a journal, in the process that uses it: its memory ends with the process."""

from __future__ import annotations

import threading

import msgspec

from flowgentic_actors.engine.commands import WRITES, Command
from flowgentic_actors.engine.replies import Reply
from flowgentic_actors.shard.clock import Clock
from flowgentic_actors.shard.settings import ShardSettings
from flowgentic_actors.shard.sweeper import Sweeper


class BareShard:
    """Called from any thread, and blocking for no longer than the command takes.

    Args:
        settings: How much it keeps.
    """

    def __init__(self, settings: ShardSettings) -> None:
        self._mutex = threading.Lock()
        self._clock = Clock()
        self._shard = settings.make_shard()
        self._ceilings = settings.ceilings if settings.ceilings.any else None
        self._sweeper = Sweeper(self._sweep, settings.sweep_seconds)

    def ask(self, command: Command) -> Reply:
        """Carry out a command.

        Raises:
            InvalidRequestError: If it cannot be carried out as it stands.
            MemoryFullError: If there is no room for it.
        """
        with self._mutex:
            shard, now_us = self._shard, self._clock.tick()
            if not isinstance(command, WRITES):
                return shard.apply(command, now_us).reply
            reply, record = shard.plan(command, now_us)
            if record is not None:
                if self._ceilings is not None:
                    self._ceilings.check(shard, record)
                shard.replay(record)
                trimmed = shard.plan_trim(record)
                if trimmed is not None:
                    shard.replay(trimmed)
                if shard.any_expires:
                    self._sweeper.start()
            return reply

    def stats(self) -> dict[str, int]:
        """What the shard holds."""
        with self._mutex:
            return msgspec.structs.asdict(self._shard.size())

    def close(self) -> None:
        """End what goes on beside the calls."""
        self._sweeper.close()

    def after_fork(self) -> None:
        """Be usable in a forked child, for whoever asks for its state there."""
        self._mutex = threading.Lock()  # another thread may have held the old one

    def _sweep(self) -> None:
        more = True
        while more:
            with self._mutex:  # others get their turn in between
                record = self._shard.plan_expire(self._clock.tick())
                more = record is not None
                if record is not None:
                    self._shard.replay(record)
