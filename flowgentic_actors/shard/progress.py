"""Replication and migration status of a shard's actor, passed on by its supervisor.

Counters are for readers of the status; decisions are made by what is typed here.
"""

from __future__ import annotations

import msgspec
from msgspec import Raw, Struct


class ReplicationStatus(Struct, array_like=True, frozen=True):
    """The status of one replica of a shard.

    Attributes:
        term: Term in which it leads or follows, 0 for none yet.
        leads: Whether it answers clients.
        caught_up: Whether it leads and its follower has had everything once in this term.
        sent_back: Whether the follower had to start over after that.
        unanswered: Times in a row that a follower has not reached its leader.
    """

    term: int = 0
    leads: bool = False
    caught_up: bool = False
    sent_back: bool = False
    unanswered: int = 0


class MigrationStatus(Struct, array_like=True, frozen=True):
    """The status of a shard's current or last migration as the target.

    Attributes:
        move: Number of the attempt.
        steps: Grows for as long as it gets on.
        near: Whether almost all is there, so that the other shard may hold the slots.
        done: Whether all is there, and stored.
        failed: Whether it has ended otherwise.
    """

    move: int
    steps: int = 0
    near: bool = False
    done: bool = False
    failed: bool = False


class Progress(Struct, array_like=True, frozen=True):
    """The report of a shard's actor, beside its counters.

    Attributes:
        replication: None for a shard that has one copy.
        migration: None if it has taken over nothing.
    """

    replication: ReplicationStatus | None = None
    migration: MigrationStatus | None = None


_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(Progress | None)


def encode_progress(progress: Progress) -> Raw:
    """Encode a report for the supervisor."""
    return Raw(_encode(progress))


def decode_progress(report: Raw) -> Progress:
    """Decode a report; an empty one for an actor that has not reported yet.

    Raises:
        msgspec.DecodeError: If it is not of a shard's actor.
    """
    return _decoder.decode(report) or Progress()
