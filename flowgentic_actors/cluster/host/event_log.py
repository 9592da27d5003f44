"""The cluster's event log, kept in a file so that the next host continues its numbers."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections import deque
from pathlib import Path
from typing import Final

import msgspec

from flowgentic_actors.cluster.loop_condition import LoopCondition
from flowgentic_actors.cluster.protocol.status import ClusterEvent
from flowgentic_actors.event_kinds import EventKind
from flowgentic_actors.storage.private_files import open_private, read_private, write_private

HISTORY_FILE: Final = "events.jsonl"

_KEPT = 10_000

logger = logging.getLogger(__name__)


class EventLog:
    """The numbered events of a cluster, over all its hosts.

    Args:
        folder: The cluster's folder; what earlier hosts noted there is read first. Blocks.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / HISTORY_FILE
        self._events: deque[ClusterEvent] = deque(maxlen=_KEPT)
        noted = read_private(path) if path.exists() else b""
        lines = noted.splitlines()
        for line in lines:
            with contextlib.suppress(msgspec.DecodeError):  # a line that was cut by a kill
                self._events.append(msgspec.json.decode(line, type=ClusterEvent))
        if len(lines) > _KEPT:
            with contextlib.suppress(OSError):  # as below
                write_private(path, b"".join(msgspec.json.encode(e) + b"\n" for e in self._events))
        self._fd = open_private(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        if noted and not noted.endswith(b"\n"):
            with contextlib.suppress(OSError):
                os.write(self._fd, b"\n")
        self.next_number = self._events[-1].number + 1 if self._events else 0
        self._news = LoopCondition()

    def add(self, kind: EventKind, actor: str, detail: str) -> None:
        """Add an event: to the file first, then for readers.

        A line to a node-local file, a few times in an actor's life: done on the event loop.
        """
        logger.info("%s %s %s", kind, actor, detail)
        event = ClusterEvent(
            number=self.next_number, time=time.time(), kind=kind, actor=actor, detail=detail
        )
        with contextlib.suppress(OSError):  # the disk is full, say: that is no reason to end
            os.write(self._fd, msgspec.json.encode(event) + b"\n")
        self._events.append(event)
        self.next_number += 1
        self._news.notify()

    def since(self, start: int) -> tuple[ClusterEvent, ...]:
        """The kept events from a number on."""
        return tuple(event for event in self._events if event.number >= start)

    async def wait_since(self, start: int, seconds: float) -> tuple[ClusterEvent, ...]:
        """The events from a number on, after a wait of a bounded time for the first of them."""
        await self._news.wait_for(lambda: start < self.next_number, seconds)
        return self.since(start)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)
