"""Requests between actors: of followers to leaders, of migration targets to sources."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta, Raw, Struct

from flowgentic_actors.errors import InvalidRequestError

LogPosition: TypeAlias = Annotated[int, Meta(ge=0, le=2**62)]


class Follow(Struct, tag=1, array_like=True, frozen=True):
    """Request for log entries from a position on; it confirms those before.

    Answered at once when there are any, otherwise when there are, or after a moment with none.

    Attributes:
        term: Term in which it follows.
        position: LSN after the last entry in its journal.
    """

    term: int
    position: LogPosition


class GetSnapshotChunk(Struct, tag=2, array_like=True, frozen=True):
    """Request for a piece of the leader's compacted set, for a follower without a copy.

    Attributes:
        term: Term in which it follows.
        offset: Bytes that it has. From 0 on, the newest set is copied.
    """

    term: int
    offset: LogPosition


class PullSlots(Struct, tag=3, array_like=True, frozen=True):
    """Request for journal entries about slots, from a position on.

    Attributes:
        move: Number of the attempt to take them over.
        slots: The slots, packed.
        position: LSN up to which all is known; 0 to begin.
        log_from: As it was answered; before that position, only what is stored still is of
            interest.
    """

    move: LogPosition
    slots: Annotated[bytes, Meta(max_length=512)]
    position: LogPosition
    log_from: LogPosition


FollowerRequest: TypeAlias = Follow | GetSnapshotChunk

PeerRequest: TypeAlias = FollowerRequest | PullSlots


class LogEntries(Struct, tag=1, array_like=True, frozen=True):
    """Consecutive entries of the log.

    Attributes:
        first: LSN of the first of them.
        payloads: The entries.
    """

    first: LogPosition
    payloads: list[bytes]


class SnapshotChunk(Struct, tag=2, array_like=True, frozen=True):
    """Some bytes of the compacted set's file.

    Attributes:
        name: Of the file; empty when the leader has no set.
        size: Of the file, in bytes.
        data: What is at the offset that was asked for.
    """

    name: Annotated[str, Meta(max_length=64, pattern=r"^([0-9a-f]{16}\.set)?$")]
    size: LogPosition
    data: bytes


class ResyncRequired(Struct, tag=3, array_like=True, frozen=True):
    """The log does not reach back that far: the follower has to discard its copy."""


class SlotEntries(Struct, tag=4, array_like=True, frozen=True):
    """One page of journal entries for the requested slots.

    Attributes:
        position: LSN to go on from.
        log_from: LSN from which on everything is told, deletions too.
        payloads: Entries.
        left: Bytes of journal after the position.
        last: Whether nothing more will come: the slots are held, and this was all.
    """

    position: LogPosition
    log_from: LogPosition
    payloads: list[bytes]
    left: LogPosition
    last: bool = False


PeerAnswer: TypeAlias = LogEntries | SnapshotChunk | ResyncRequired | SlotEntries

encode_peer = msgspec.msgpack.Encoder().encode
_questions: msgspec.msgpack.Decoder[PeerRequest] = msgspec.msgpack.Decoder(PeerRequest)
decode_answer: msgspec.msgpack.Decoder[PeerAnswer] = msgspec.msgpack.Decoder(PeerAnswer)


def decode_peer_request(body: Raw) -> PeerRequest:
    """Decode a peer's request.

    Raises:
        InvalidRequestError: If it is no question.
    """
    try:
        return _questions.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequestError(f"not a question of a peer: {error}") from error
