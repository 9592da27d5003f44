"""The messages of the protocol. Bodies of requests and replies are opaque here."""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeAlias

from msgspec import Meta, Raw, Struct

from flowgentic_actors.event_kinds import EventKind

MAX_MESSAGES = 65_536
"""Most messages in one frame."""

MAX_TEXT = 65_536
"""Most characters in the text of an error."""

NO_BODY: Final = Raw(b"")
"""In the place of a body that follows its message in a chunk of its own."""

NIL: Final = Raw(b"\xc0")
"""In the place of an encoded value that is not there."""

Counter: TypeAlias = Annotated[int, Meta(ge=0, le=2**62)]
Name: TypeAlias = Annotated[str, Meta(max_length=256)]
Role: TypeAlias = Literal["client", "owner", "link", "peer"]


class Hello(Struct, tag=1, array_like=True, frozen=True):
    """The first message of the dialling side.

    Attributes:
        role: `client` sends requests; `owner` keeps a host alive; `link` is an actor's control
            connection to its supervisor; `peer` is another actor.
        session: 16 random bytes that name the sender; with a sequence number they name a request.
        pid: The sender's process.
    """

    role: Role
    session: Annotated[bytes, Meta(min_length=16, max_length=16)]
    pid: Counter


class Request(Struct, tag=2, array_like=True, frozen=True, gc=False):
    """A request.

    Attributes:
        seq: Sequence number within the session.
        oldest_pending: Lowest sequence number that the session still waits for; replies below it
            may be forgotten.
        timeout_ms: Time left until the caller gives up.
        body: What is asked, encoded.
    """

    seq: Counter
    oldest_pending: Counter
    timeout_ms: Counter
    body: Raw


class Cancel(Struct, tag=3, array_like=True, frozen=True):
    """Cancellation: the caller gave up; the request need not be carried out any more."""

    seq: Counter


class Started(Struct, tag=4, array_like=True, frozen=True):
    """Report of an actor's process that it has started; it asks for admission."""

    name: Name
    epoch: Counter
    node: Name


class Ready(Struct, tag=5, array_like=True, frozen=True):
    """Report that the actor serves.

    Attributes:
        seconds: That it took.
        port: TCP port where it serves other nodes too, 0 for none.
    """

    seconds: float
    port: Annotated[int, Meta(ge=0, le=65_535)] = 0


class Pong(Struct, tag=6, array_like=True, frozen=True):
    """The answer to a ping, given by a thread of its own even while the actor is busy.

    Attributes:
        busy: Seconds for which the actor has been in its current batch, 0 when it is idle.
        stats: The actor's counters.
        report: What only those understand who know what kind of actor it is.
    """

    number: Counter
    busy: float
    stats: Annotated[dict[Name, int], Meta(max_length=256)]
    report: Raw = NIL


class Stopped(Struct, tag=7, array_like=True, frozen=True):
    """Report that the actor has finished all accepted requests and closed its files."""

    stats: Annotated[dict[Name, int], Meta(max_length=256)]


class Fatal(Struct, tag=8, array_like=True, frozen=True):
    """Report that the actor cannot start or continue, with the reason."""

    reason: Annotated[str, Meta(max_length=MAX_TEXT)]


class ActorEvent(Struct, tag=9, array_like=True, frozen=True):
    """An event of an actor, for its supervisor's event log."""

    kind: EventKind
    detail: Annotated[str, Meta(max_length=MAX_TEXT)]


ToServer: TypeAlias = (
    Hello | Request | Cancel | Started | Ready | Pong | Stopped | Fatal | ActorEvent
)


class Welcome(Struct, tag=1, array_like=True, frozen=True):
    """The first message of the accepting side."""

    name: Name
    epoch: Counter
    pid: Counter


class Reply(Struct, tag=2, array_like=True, frozen=True, gc=False):
    """The answer to a request."""

    seq: Counter
    body: Raw


FailureKind: TypeAlias = Literal[
    "invalid",
    "expired",
    "storage",
    "full",
    "replica",
    "moved",
    "unknown",
    "internal",
    "closing",
    "failed",
]


class Failure(Struct, tag=3, array_like=True, frozen=True):
    """The refusal of a request: nothing happened; for the kind `unknown`, it may have."""

    seq: Counter
    kind: FailureKind
    text: Annotated[str, Meta(max_length=MAX_TEXT)]


class Admit(Struct, tag=4, array_like=True, frozen=True):
    """Admission: the supervisor lets a started actor open its files and serve."""


class Ping(Struct, tag=5, array_like=True, frozen=True):
    """The supervisor's ping, answered by `Pong`."""

    number: Counter


class Drain(Struct, tag=6, array_like=True, frozen=True):
    """Order to stop intake, finish all accepted requests, close, and end.

    Attributes:
        reason: Why, for those who ask too late.
    """

    reason: Annotated[str, Meta(max_length=MAX_TEXT)] = ""


class Lease(Struct, tag=7, array_like=True, frozen=True):
    """A lease: the actor may answer until its end, and afterwards only with another one.

    Attributes:
        until: On this node's monotonic clock, seconds.
    """

    until: float


class Deliver(Struct, tag=8, array_like=True, frozen=True):
    """A message of the supervisor that only the actor itself decodes."""

    body: Raw


ToClient: TypeAlias = Welcome | Reply | Failure | Admit | Ping | Drain | Lease | Deliver


def sendable(text: str) -> str:
    """An error's text for a message: not too long, and without lone surrogates."""
    return text[: MAX_TEXT // 8].encode("utf-8", "backslashreplace").decode()
