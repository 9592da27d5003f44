"""Queries to other nodes for their actors' counters, sent in replies to heartbeats."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Final

import anyio

HEARING: Final = 0.7
"""Seconds that a node waits for its actors' answers: less than the host waits for the node's."""


class NodeStatsQueries:
    """Numbers the queries to nodes, and waits for their answers.

    Args:
        on_question: Called when there is a new question: heartbeats that wait have to be answered.

    Attributes:
        number: Of the last question.
        heard_at: When the last heartbeat of each node came, seconds since the Unix epoch.
    """

    def __init__(self, on_question: Callable[[], None]) -> None:
        self.number = 0
        self.heard_at: dict[str, float] = {}
        self._on_question = on_question
        self._answered: dict[str, int] = {}
        self._news = asyncio.Event()

    def heard(self, node: str, answered: int) -> None:
        """Note the number of the last query that a node has answered, from its heartbeat."""
        self.heard_at[node] = time.time()
        if answered > self._answered.get(node, 0):
            self._answered[node] = answered
            self._news.set()
            self._news = asyncio.Event()

    async def ask(self, nodes: Iterable[str], timeout: float) -> None:
        """Query nodes, and wait for their answers for at most `timeout` seconds."""
        self.number += 1
        number = self.number
        self._on_question()
        with anyio.move_on_after(timeout):
            while any(self._answered.get(node, 0) < number for node in nodes):
                await self._news.wait()
