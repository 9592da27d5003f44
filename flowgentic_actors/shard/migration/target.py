"""The target of a slot migration: pulls the entries of the slots, and stores them."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from msgspec import Raw

from flowgentic_actors.errors import (
    FlowgenticError,
    InvalidRequestError,
    ProtocolError,
    RequestError,
)
from flowgentic_actors.shard.journaling.entries import LogEntry, decode_entry
from flowgentic_actors.shard.migration.host import MigrationHost
from flowgentic_actors.shard.migration.ownership import PullOrder
from flowgentic_actors.shard.migration.source import PIECE
from flowgentic_actors.shard.peer_protocol import PullSlots, SlotEntries, decode_answer, encode_peer
from flowgentic_actors.wire.addresses import Address
from flowgentic_actors.wire.async_connection import AsyncConnection

NEAR: Final = 256 << 10
"""Bytes of the other's journal that are left to be looked through when a move is near its end."""

_IDLE: Final = 0.02  # seconds between two questions when there was nothing new
_STEP: Final = 2.0  # of a longer rest
_PAUSE: Final = 0.2  # after a question that was not answered
_PATIENCE: Final = 5.0
_WHOLE: Final = 10.0  # for the second copy to have everything, at the end

logger = logging.getLogger(__name__)


class MigrationTarget:
    """One attempt to take slots over from a source.

    Args:
        pull: What to take.
        host: The shard that stores it, and is told when `near`, `done` or `failed` has changed.
    """

    def __init__(self, pull: PullOrder, host: MigrationHost) -> None:
        self.move = pull.move
        self._pull = pull
        self._host = host
        context = host.context
        most = context.max_message_bytes + PIECE  # the largest entry, and what was before it
        assert pull.source is not None
        self._connection = AsyncConnection(
            pull.source,
            context.secret,
            "the shard that has the slots",
            most,
            "peer",
            name=pull.name,
        )
        self.position = 0
        """LSN in the other's journal up to which all is known here."""
        self.steps = 0
        """Grows for as long as this attempt gets on, be it slowly because it shall."""
        self.near = False
        """Whether there is so little left that the other one can hold the slots for the rest."""
        self.done = False
        """Whether all that there is of the slots is stored here, as safe as any write."""
        self.failed = ""
        """Why this attempt has no use any more."""

    def set_source(self, source: Address) -> None:
        """Note that the source is at another address."""
        self._connection.move(source)

    async def run(self) -> None:
        """Take everything over; returns when that is done, or impossible."""
        try:
            await self._take()
            end = self._host.position  # what is written from now on is others' business
            async with asyncio.timeout(_WHOLE):
                while self._host.position - self._host.lag < end:  # noqa: ASYNC110 - another actor changes it
                    await asyncio.sleep(_IDLE)
        except TimeoutError:
            self.failed = "the second copy does not get what was taken over"
        except FlowgenticError as error:
            self.failed = str(error)
        else:
            self.done = True
        finally:
            await self._connection.close()
        self._host.context.report()

    async def _take(self) -> None:
        log_from = 0
        while True:
            given = await self._ask(PullSlots(self.move, self._pull.slots, self.position, log_from))
            for payload in given.payloads:
                entry = decode_entry(payload)
                assert isinstance(entry, LogEntry)
                await self._host.keep_moved(entry.record, entry.time_us)
            if given.payloads:
                await self._host.stored()
            self.position, log_from = given.position, given.log_from
            self.steps += 1
            if given.last:
                return
            if not self.near and self.position >= log_from and given.left <= NEAR:
                self.near = True
                self._host.context.report()
            pause = sum(map(len, given.payloads)) / self._pull.rate
            await self._rest(pause if given.left else max(pause, _IDLE))

    async def _rest(self, seconds: float) -> None:
        while seconds > 0:
            await asyncio.sleep(min(seconds, _STEP))
            seconds -= _STEP
            self.steps += 1

    async def _ask(self, question: PullSlots) -> SlotEntries:
        """Repeat a request until it is answered.

        Raises:
            InvalidRequestError: If it is that all has to begin anew.
        """
        body = encode_peer(question)
        while True:
            try:
                answer = await self._connection.request(body, _PATIENCE, _decode)
            except InvalidRequestError:
                raise
            except RequestError as error:
                logger.info("%s", error)
                await asyncio.sleep(_PAUSE)
                continue
            if not isinstance(answer, SlotEntries):
                raise ProtocolError(f"{type(answer).__name__} is no answer to Give")
            return answer


def _decode(reply: Raw) -> object:
    return decode_answer.decode(reply)
