"""The follower of a replicated shard: pulls the leader's entries."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from msgspec import Raw

from flowgentic_actors.actors.actor import ActorContext
from flowgentic_actors.actors.daemon_threads import on_daemon_thread
from flowgentic_actors.errors import ProtocolError, RequestError
from flowgentic_actors.shard.actor import ShardActor
from flowgentic_actors.shard.journaling.waiting_calls import RoomWanted
from flowgentic_actors.shard.peer_protocol import (
    Follow,
    GetSnapshotChunk,
    LogEntries,
    PeerAnswer,
    PeerRequest,
    ResyncRequired,
    SnapshotChunk,
    decode_answer,
    encode_peer,
)
from flowgentic_actors.shard.replication.leader import PIECE
from flowgentic_actors.storage.private_files import (
    make_folders,
    open_private,
    overwrite,
    read_private,
    write_private,
)
from flowgentic_actors.wire.addresses import Address
from flowgentic_actors.wire.async_connection import AsyncConnection

T = TypeVar("T")

TERM_FILE: Final = "term"
"""Holds the term whose copy the folder is; without it, nothing there is of any use."""

_PATIENCE: Final = 5.0  # for an answer; the leader answers within a second
_PAUSE: Final = 0.2  # after a question that was not answered
_FILE_TIMEOUT: Final = 60.0
_RECOVERY: Final = 7 * 86_400.0

logger = logging.getLogger(__name__)


class ReplicationFollower:
    """Follows one leader for one term, until it is cancelled.

    Args:
        folder: The copy's folder.
        make: Makes the shard on what is in the folder. Blocks.
        term: Number of the term.
        leader: Where the leader is.
        context: Of the copy's actor, whose name is the leader's as well.
    """

    def __init__(
        self,
        folder: Path,
        *,
        make: Callable[[], ShardActor],
        term: int,
        leader: Address,
        context: ActorContext,
    ) -> None:
        self._folder = folder
        self._make = make
        self._term = term
        most = context.max_message_bytes + PIECE  # the largest entry, and what was before it
        self._connection = AsyncConnection(
            leader, context.secret, "the leader", most, "peer", name=context.name
        )
        self.core: ShardActor | None = None
        """The shard, as soon as there is one."""
        self.took_at = 0.0
        """When it took entries last, on the monotonic clock."""
        self._asks_since: float | None = None  # in vain

    @property
    def unanswered(self) -> float:
        """Seconds without an answer of the leader, 0 when the last request was answered."""
        since = self._asks_since
        return 0.0 if since is None else time.monotonic() - since

    @property
    def complete(self) -> bool:
        """Whether the copy is complete, for some moment at least."""
        return self.core is not None

    def set_leader(self, leader: Address) -> None:
        """Note that the leader is at another address."""
        self._connection.move(leader)

    async def run(self) -> None:
        """Follow the leader until cancelled, or until an error.

        Raises:
            JournalError: If the copy cannot be kept here.
        """
        try:
            if await on_daemon_thread(_FILE_TIMEOUT, read_term, self._folder) == self._term:
                await self._open(self._make)
            while True:
                core = self.core or await self._begin()
                answer = await self._ask(Follow(self._term, core.position))
                if isinstance(answer, ResyncRequired):
                    logger.warning("the leader's log does not reach back to %d", core.position)
                    self.core = None
                    await on_daemon_thread(_FILE_TIMEOUT, core.close)
                elif isinstance(answer, LogEntries):
                    if answer.payloads:
                        await self._take(core, answer)
                        self.took_at = time.monotonic()
                else:
                    raise ProtocolError(f"{type(answer).__name__} is no answer to Follow")
        finally:
            await self._connection.close()

    @staticmethod
    async def _take(core: ShardActor, entries: LogEntries) -> None:
        while True:
            try:
                return core.follow(entries.first, entries.payloads)
            except RoomWanted as wanted:
                await core.room.make(wanted)

    async def _begin(self) -> ShardActor:
        """Copy the leader's compacted set, and open the shard on it."""
        await on_daemon_thread(_FILE_TIMEOUT, empty_folder, self._folder)
        offset, size = 0, 1
        name = ""
        while offset < size:
            piece = await self._ask(GetSnapshotChunk(self._term, offset))
            if not isinstance(piece, SnapshotChunk):
                raise ProtocolError(f"{type(piece).__name__} is no answer to GetSnapshotChunk")
            if not piece.name:
                break
            if offset and piece.name != name:  # a compaction that was under way has ended
                await on_daemon_thread(_FILE_TIMEOUT, empty_folder, self._folder)
                offset = 0
                continue
            name, size = piece.name, piece.size
            await on_daemon_thread(
                _FILE_TIMEOUT, _write_piece, self._folder / f"{name}.copy", offset, piece.data
            )
            offset += len(piece.data)
        return await self._open(lambda: self._finish(name))

    async def _open(self, make: Callable[[], ShardActor]) -> ShardActor:
        """Open the shard; if cancelled meanwhile, the next task closes it.

        A thread cannot be interrupted, and must not work in this folder beside its successor.
        """
        making = asyncio.ensure_future(on_daemon_thread(_RECOVERY, make))
        try:
            await asyncio.shield(making)
        finally:
            self.core = await making
        return self.core

    def _finish(self, name: str) -> ShardActor:
        if name:
            (self._folder / f"{name}.copy").rename(self._folder / name)
        core = self._make()
        write_term(self._folder, self._term)
        return core

    async def _ask(self, question: PeerRequest) -> PeerAnswer:
        """Repeat a request until it is answered."""
        body = encode_peer(question)
        while True:
            try:
                answer = await self._connection.request(body, _PATIENCE, _decode)
            except RequestError as error:
                self._asks_since = self._asks_since or time.monotonic() - _PATIENCE
                logger.info("%s", error)
                await asyncio.sleep(_PAUSE)
            else:
                self._asks_since = None
                return answer


def _decode(reply: Raw) -> PeerAnswer:
    return decode_answer.decode(reply)


def read_term(folder: Path) -> int | None:
    """Read the term of the copy in a folder, None when there is none. Blocks."""
    try:
        return int(read_private(folder / TERM_FILE))
    except (FileNotFoundError, ValueError):
        return None


def write_term(folder: Path, term: int) -> None:
    """Write the term of the copy in a folder. Blocks."""
    overwrite(folder / TERM_FILE, str(term).encode())


def empty_folder(folder: Path) -> None:
    """Remove an obsolete copy. Blocks.

    The term goes first: what is interrupted here is not taken for a copy.
    """
    (folder / TERM_FILE).unlink(missing_ok=True)
    if folder.exists():
        shutil.rmtree(folder)
    make_folders(folder)
    write_private(folder / INCOMPLETE, b"")


INCOMPLETE: Final = "incomplete"
"""Is there while a copy is being made."""


def is_incomplete(folder: Path) -> bool:
    """Whether a copy in a folder was begun and never completed. Blocks."""
    return (folder / INCOMPLETE).exists() and read_term(folder) is None


def _write_piece(path: Path, offset: int, data: bytes) -> None:
    with os.fdopen(open_private(path, os.O_WRONLY | os.O_CREAT), "wb") as file:
        file.truncate(offset)
        file.seek(offset)
        file.write(data)
