"""What a follower asks its leader, and what it is answered. Both are actors of one shard."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta, Struct

Position: TypeAlias = Annotated[int, Meta(ge=0, le=2**62)]


class Follow(Struct, tag=1, array_like=True, frozen=True):
    """The entries of the log from a position on; what is before it, the follower has.

    Answered at once when there are any, otherwise when there are, or after a moment with none.

    Attributes:
        term: Term in which it follows.
        position: LSN after the last entry in its journal.
    """

    term: int
    position: Position


class CopySet(Struct, tag=2, array_like=True, frozen=True):
    """A piece of the leader's compacted set, for a follower that begins with nothing.

    Attributes:
        term: Term in which it follows.
        offset: Bytes that it has. From 0 on, the newest set is copied.
    """

    term: int
    offset: Position


PeerQuestion: TypeAlias = Follow | CopySet


class Entries(Struct, tag=1, array_like=True, frozen=True):
    """Entries of the log, one after the other.

    Attributes:
        first: LSN of the first of them.
        payloads: The entries.
    """

    first: Position
    payloads: list[bytes]


class SetPiece(Struct, tag=2, array_like=True, frozen=True):
    """Some bytes of the set's file.

    Attributes:
        name: Of the file; empty when the leader has no set.
        size: Of the file, in bytes.
        data: What is at the offset that was asked for.
    """

    name: Annotated[str, Meta(max_length=64, pattern=r"^([0-9a-f]{16}\.set)?$")]
    size: Position
    data: bytes


class StartOver(Struct, tag=3, array_like=True, frozen=True):
    """The log does not reach back that far: the follower has to begin with nothing."""


PeerAnswer: TypeAlias = Entries | SetPiece | StartOver

encode_peer = msgspec.msgpack.Encoder().encode
decode_question: msgspec.msgpack.Decoder[PeerQuestion] = msgspec.msgpack.Decoder(PeerQuestion)
decode_answer: msgspec.msgpack.Decoder[PeerAnswer] = msgspec.msgpack.Decoder(PeerAnswer)
