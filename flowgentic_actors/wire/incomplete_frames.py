"""Incomplete frames: bounds the bytes that a server holds of them on all connections.

Beyond the bound one connection at a time may finish its frame; the bytes of the others stay in
their sockets, which slows their senders. Who sends nothing on then, is ended.
"""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

STALLED: Final = 5.0
"""Seconds without a byte of a frame that was begun, after which its connection may be ended."""


class Sender(Protocol):
    """A connection with an incomplete frame."""

    active_at: float

    @property
    def reading(self) -> bool:
        """Whether it is not paused."""

    def pause(self) -> None:
        """Pause reading."""

    def resume(self) -> None:
        """Undo `pause`."""

    def stalled(self, seconds: float) -> None:
        """Close a connection that stalled in a frame while others wait for memory."""


class IncompleteFrames:
    """Counts the bytes of incomplete frames on the connections of a server.

    Args:
        most: Bytes that all may hold; one connection may go on beyond them.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: dict[Sender, int] = {}  # in the order in which their frames began
        self._paused: set[Sender] = set()
        self._timer: asyncio.TimerHandle | None = None
        self.bytes = 0

    def holds(self, sender: Sender, size: int) -> None:
        """Note the held bytes of a connection, at least one."""
        self.bytes += size - self._held.get(sender, 0)
        self._held[sender] = size
        if self.bytes > self._most:
            self._end_stalled()
            if self.bytes > self._most and sender is not self._next():
                self._paused.add(sender)
                sender.pause()
            if self._paused and self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(STALLED, self._look)

    def forget(self, sender: Sender) -> None:
        """Remove a connection whose frame is complete, or that is closed."""
        self.bytes -= self._held.pop(sender, 0)
        self._paused.discard(sender)
        while self._paused and (self.bytes <= self._most or self._next() is None):
            self._resume_one()

    def _next(self) -> Sender | None:
        """The connection whose frame is to be finished first, None when all are paused."""
        return next((sender for sender in self._held if sender not in self._paused), None)

    def _resume_one(self) -> None:
        sender = next(sender for sender in self._held if sender in self._paused)
        self._paused.remove(sender)
        sender.resume()

    def _end_stalled(self) -> None:
        now = asyncio.get_running_loop().time()
        for sender in list(self._held):
            silence = now - sender.active_at
            if sender.reading and silence >= STALLED:
                self.forget(sender)
                sender.stalled(silence)

    def _look(self) -> None:
        self._timer = None
        self._end_stalled()
        if self._paused:
            self._timer = asyncio.get_running_loop().call_later(STALLED, self._look)
