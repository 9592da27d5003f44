"""The runtime of an actor on an event loop: socket, mailbox, handle, commit, reply."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from functools import partial
from itertools import chain
from typing import Final, TypeAlias

from flowgentic_actors.actors.actor import SLOW, Actor, Postponed, Status
from flowgentic_actors.actors.mailbox import Envelope, Mailbox
from flowgentic_actors.actors.postponed_requests import PostponedRequests
from flowgentic_actors.errors import (
    FlowgenticError,
    InvalidRequestError,
    MemoryFullError,
    OutcomeUnknownError,
    ProtocolError,
    RejectedError,
    ReplicaUnavailableError,
    SlotsMovedError,
)
from flowgentic_actors.wire.awake import LoopAwake
from flowgentic_actors.wire.messages import (
    Cancel,
    Failure,
    FailureKind,
    Request,
    ToServer,
    sendable,
)
from flowgentic_actors.wire.server import Server
from flowgentic_actors.wire.server_connection import Connection

logger = logging.getLogger(__name__)

_Answers: TypeAlias = list[tuple[Envelope, bytes | Failure]]

BATCH = 512
"""Most requests handled between two commits."""

BATCH_BYTES = 8 << 20
"""No further request is handled before the next commit once the replies have as many bytes."""

FOLLOWS = 0.001
"""Requests follow one another if they are answered within this time: the next one is awaited
without sleeping."""

BATCH_SECONDS = 0.01
"""No further request is handled before the next commit after this time: the first ones wait."""

_STORAGE: Final[FailureKind] = "storage"
_KINDS: Final[tuple[tuple[type[RejectedError], FailureKind], ...]] = (
    (InvalidRequestError, "invalid"),
    (MemoryFullError, "full"),
    (ReplicaUnavailableError, "replica"),
    (SlotsMovedError, "moved"),
)


class ActorRuntime:
    """Serves one actor until it is told to drain or breaks.

    Args:
        actor: The actor.
        mailbox: Its queue.
        on_broken: Told why the actor cannot go on, after the callers concerned.
        max_reply: Largest reply that callers take, bytes.
        lease: Until when it may answer, on the monotonic clock. Default: for ever.
        stay_awake: Seconds for which it does not sleep between requests that follow one another.
    """

    def __init__(
        self,
        actor: Actor,
        mailbox: Mailbox,
        on_broken: Callable[[str], None],
        max_reply: int,
        lease: float = math.inf,
        *,
        stay_awake: float = 0.0,
    ) -> None:
        self._actor = actor
        self._mailbox = mailbox
        self._on_broken = on_broken
        self._max_reply = max_reply
        self._scheduled = False
        self._woken = False  # and no batch since
        self._interrupted = False  # whether the batch ended before all were handled
        self._aside: dict[Connection, list[Envelope]] = {}  # for peers that do not read
        self._postponed = PostponedRequests(mailbox, self._schedule, self._refuse_due)
        self._closing = False
        self._closing_text = ""
        self._fenced = False
        self._lease = lease
        self._held: _Answers = []  # while it may not answer
        self._broken = False
        self._closed = False
        self._waiting = 0  # batches whose commit is under way
        self._later = 0  # requests that their actor answers later
        self._ready: list[tuple[Envelope, asyncio.Future[bytes]]] = []  # and by now has
        self._idle = asyncio.Event()
        self._idle.set()
        self._busy_since: float | None = None
        self._awake = LoopAwake(stay_awake)
        self._answered_at = -math.inf
        self._requests = 0
        self._rejected = 0

    # ------------------------------------------------------------------ for the supervisor

    def busy(self) -> float:
        """Seconds spent in the batch under way, 0 when idle; callable from any thread."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    def stats(self) -> dict[str, int]:
        """Counters of kernel and actor; callable from any thread."""
        return {
            "requests": self._requests,
            "rejected": self._rejected,
            "mailbox_requests": len(self._mailbox),
            "mailbox_bytes": self._mailbox.bytes,
            "mailbox_most_requests": self._mailbox.most_requests,
            "mailbox_most_bytes": self._mailbox.most_bytes,
            **self._actor.stats(),
        }

    def status(self) -> Status:
        """The status for the supervisor; callable from any thread."""
        return Status(self.busy(), self.stats(), self._actor.report())

    async def drain(self, server: Server, reason: str = "") -> None:
        """Stop intake, finish what was accepted, close the connections and the actor.

        Args:
            server: Where its requests come from.
            reason: Why, for those who ask too late.
        """
        self._closing = True
        self._closing_text = f"the cluster is closing{reason and f': {reason}'}"
        server.stop_listening()
        for envelope in chain(*self._aside.values(), self._postponed.clear()):
            self._refuse_late(envelope.connection, envelope.seq)
        self._aside.clear()
        await self._idle.wait()
        await server.close()
        await self._actor.drained()
        self._closed = True
        self._actor.close()

    def fence(self, *, fenced: bool) -> None:
        """Begin or end fencing: requests wait, and nothing is handled or answered."""
        self._fenced = fenced
        if not fenced:
            self._send_held()
            self._schedule()

    def extend(self, lease: float) -> None:
        """Extend the lease, on the monotonic clock, and send held replies."""
        self._lease = lease
        if self._held:
            self._send_held()
        if len(self._mailbox) or self._ready or self._woken or self._postponed.waiting:
            self._schedule()

    def _send_held(self) -> None:
        held, self._held = self._held, []
        self._send(held)

    # ------------------------------------------------------------------ the server's handler

    def connected(self, connection: Connection) -> None:
        """Accept connections of clients and of other actors."""
        if connection.role == "client":
            if not self._actor.takes_clients:
                raise ProtocolError("it takes no clients now")
        elif connection.role != "peer":
            raise ProtocolError(f"an actor serves clients, not a {connection.role}")
        connection.on_clear = partial(self._go_on_with, connection)

    def received(self, connection: Connection, messages: list[ToServer]) -> None:
        """Handle requests at once if none wait before them; otherwise, queue them."""
        if connection.role == "peer":
            _answer_peer(self._actor, connection, messages)
            return
        session, now = connection.session, time.monotonic()
        arrived: list[Envelope] = []
        for message in messages:
            if isinstance(message, Request):
                if self._closing:
                    self._refuse_late(connection, message.seq)
                    continue
                deadline = now + message.timeout_ms / 1000
                arrived.append(
                    Envelope(
                        session,
                        message.seq,
                        message.oldest_pending,
                        message.body,
                        connection,
                        deadline,
                    )
                )
            elif isinstance(message, Cancel):
                self._put_in_line(arrived)
                arrived = []
                self._mailbox.cancel(connection, message.seq)
                self._postponed.cancel(connection, message.seq)
            else:
                raise ProtocolError(f"{type(message).__name__} is not a message for an actor")
        if self._scheduled or self._busy_since is not None or len(self._mailbox) or self._fenced:
            self._put_in_line(arrived)
        elif now >= self._lease:
            self._put_in_line(arrived)  # and nothing is stored either, where others may be by now
        elif self._postponed.waiting:
            self._put_in_line(arrived)  # behind those that came before
        elif arrived and not (self._broken or self._closed):
            # Through the mailbox each would wait for another turn of the event loop.
            self._idle.clear()
            self._run(arrived)

    def _put_in_line(self, arrived: list[Envelope]) -> None:
        for envelope in arrived:
            self._mailbox.put(envelope)
        if arrived:
            self._idle.clear()
            self._schedule()

    def disconnected(self, connection: Connection) -> None:
        """Forget a connection, and its requests that were not begun."""
        self._mailbox.forget(connection)
        self._postponed.forget(connection)
        self._aside.pop(connection, None)  # its caller asks again if it still wants to know
        self._rest()

    # ------------------------------------------------------------------ batches

    def wake(self) -> None:
        """Schedule a commit, even without requests."""
        self._woken = True
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            loop = asyncio.get_running_loop()
            if self._interrupted:  # what came in meanwhile is taken in first: it may have a turn
                loop.call_soon(loop.call_soon, self._run_batch)
            else:
                loop.call_soon(self._run_batch)

    def _run_batch(self) -> None:
        self._scheduled = False
        if not (self._broken or self._fenced or self._closed or time.monotonic() >= self._lease):
            if self._postponed.waiting:
                self._postponed.put_back()
                self._idle.clear()
            self._run(self._mailbox.take(BATCH))

    def _run(self, batch: list[Envelope]) -> None:
        """Handle requests, commit and reply, until ended."""
        self._busy_since = time.monotonic()
        self._woken = False
        replies = self._take_ready() if self._ready else []
        self._handle(batch, replies)
        try:
            waiting = self._actor.commit()
        except FlowgenticError as error:
            self._not_committed(replies, error)
        except Exception as error:  # noqa: BLE001 - a defect of whatever kind
            self._commit_broke(error)
        else:
            if waiting is None:
                self._send(replies)
            else:
                self._waiting += 1
                waiting.add_done_callback(partial(self._committed, replies))
        self._busy_since = None
        if len(self._mailbox):
            self._schedule()
        else:
            self._rest()
        self._interrupted = False

    def _rest(self) -> None:
        if not (len(self._mailbox) or self._waiting or self._later):
            self._idle.set()

    def _committed(self, replies: _Answers, waiting: asyncio.Future[None]) -> None:
        """Send the replies that waited for an asynchronous commit."""
        self._waiting -= 1
        error = None if waiting.cancelled() else waiting.exception()
        if waiting.cancelled():
            pass  # the actor closes; its callers ask the next incarnation
        elif error is None:
            self._send(replies)
        elif isinstance(error, OutcomeUnknownError):
            text = sendable(str(error))
            self._send(
                [
                    (
                        each,
                        reply if isinstance(reply, Failure) else Failure(each.seq, "unknown", text),
                    )
                    for each, reply in replies
                ]
            )
        elif isinstance(error, FlowgenticError):
            self._not_committed(replies, error)
        else:
            self._commit_broke(error)
        self._rest()

    def _send(self, replies: _Answers) -> None:
        now = time.monotonic()
        if self._fenced or now >= self._lease:
            self._held.extend(replies)
            return
        for envelope, reply in replies:
            if isinstance(reply, bytes):
                envelope.connection.reply(envelope.seq, reply)
            else:
                envelope.connection.send(reply)
        for connection in {envelope.connection for envelope, _ in replies}:
            connection.flush()
        if now - self._answered_at < FOLLOWS:
            self._awake.stay()
        self._answered_at = now

    def _not_committed(self, replies: _Answers, error: FlowgenticError) -> None:
        logger.error("a batch could not be committed: %s", error)
        text = sendable(str(error))
        self._rejected += len(replies)
        self._send([(envelope, Failure(envelope.seq, "storage", text)) for envelope, _ in replies])
        self._break(str(error))

    def _commit_broke(self, error: BaseException) -> None:
        # A defect: what became of the batch is not known, so it is left unanswered, and the
        # callers ask the next incarnation, which has read what is stored.
        logger.error("a commit broke the actor", exc_info=error)
        self._break(_describe(error))

    def _handle(self, batch: list[Envelope], replies: _Answers) -> None:
        """Have the actor handle a batch, as far as its limits allow."""
        clock, handle = time.monotonic, self._actor.handle
        now = clock()
        end = now + BATCH_SECONDS
        size = 0
        for index, envelope in enumerate(batch):
            if self._broken:
                break  # unanswered on purpose: the next incarnation gets them again
            if size >= BATCH_BYTES or index >= BATCH or (now >= end and replies):
                self._mailbox.put_back(batch[index:], batch[index - 1].connection)
                self._interrupted = True
                break
            if envelope.connection.clogged:
                self._set_aside(envelope)
                continue
            if envelope.deadline <= now:
                text = "its deadline passed while it waited in the mailbox"
                replies.append((envelope, Failure(envelope.seq, "expired", text)))
                continue
            self._requests += 1
            try:
                reply = handle(envelope)
            except Exception as error:  # noqa: BLE001 - told apart there
                replies.append((envelope, self._failure(envelope, error)))
                now = clock()
                continue
            before, now = now, clock()
            if now - before >= SLOW:
                self._actor.was_slow(envelope, now - before)
            if isinstance(reply, bytes):
                size += len(reply)
                replies.append((envelope, self._checked(envelope, reply)))
            elif isinstance(reply, Postponed):
                self._postpone(envelope, reply)
            else:
                self._later += 1
                reply.add_done_callback(partial(self._answered_later, envelope))

    def _set_aside(self, envelope: Envelope) -> None:
        """Defer a request whose answer would only fill this process's memory."""
        if self._closing:
            self._refuse_late(envelope.connection, envelope.seq)
        else:
            self._aside.setdefault(envelope.connection, []).append(envelope)

    def _postpone(self, envelope: Envelope, postponed: Postponed) -> None:
        if self._closing:
            self._refuse_late(envelope.connection, envelope.seq)
        else:
            self._postponed.add(envelope, postponed)

    def _refuse_due(self, envelope: Envelope, error: RejectedError) -> None:
        self._send([(envelope, self._failure(envelope, error))])

    def _go_on_with(self, connection: Connection) -> None:
        if connection in self._aside:
            self._mailbox.put_back(self._aside.pop(connection))
            self._idle.clear()
            self._schedule()

    def _answered_later(self, envelope: Envelope, result: asyncio.Future[bytes]) -> None:
        """Add a reply that was made later to the next batch and its commit."""
        self._ready.append((envelope, result))
        self._schedule()

    def _take_ready(self) -> _Answers:
        ready, self._ready = self._ready, []
        self._later -= len(ready)
        replies: _Answers = []
        for envelope, result in ready:
            if result.cancelled():
                continue  # the actor closes, and tells the caller so
            error = result.exception()
            if isinstance(error, Exception):
                replies.append((envelope, self._failure(envelope, error)))
            else:
                replies.append((envelope, self._checked(envelope, result.result())))
        return replies

    def _failure(self, envelope: Envelope, error: Exception) -> Failure:
        if isinstance(error, RejectedError):
            self._rejected += 1
            kind = next((kind for type_, kind in _KINDS if isinstance(error, type_)), _STORAGE)
            return Failure(envelope.seq, kind, sendable(str(error)))
        # Let it crash: the state may be half changed, so it is rebuilt from what is stored.
        logger.error("a request broke the actor", exc_info=error)
        self._break(_describe(error))
        return Failure(envelope.seq, "internal", _describe(error))

    def _checked(self, envelope: Envelope, reply: bytes) -> bytes | Failure:
        if len(reply) <= self._max_reply:
            return reply
        # The caller would end the connection instead of reading it, and ask again.
        self._rejected += 1
        text = f"the answer has {len(reply)} bytes, the limit is {self._max_reply}"
        return Failure(envelope.seq, "invalid", f"{text} (setting: max_message_bytes)")

    def _refuse_late(self, connection: Connection, seq: int) -> None:
        self._refuse(connection, seq, "closing", self._closing_text)

    def _refuse(self, connection: Connection, seq: int, kind: FailureKind, text: str) -> None:
        self._rejected += 1
        connection.send(Failure(seq, kind, text))

    def _break(self, reason: str) -> None:
        if not self._broken:
            self._broken = True
            self._idle.set()
            asyncio.get_running_loop().call_soon(self._on_broken, reason)


def _answer_peer(actor: Actor, connection: Connection, messages: list[ToServer]) -> None:
    def answer(seq: int, reply: bytes) -> None:
        connection.reply(seq, reply)
        connection.flush()

    for message in messages:
        if not isinstance(message, Request):
            continue  # a `Cancel`: what a peer asks is answered within its own time
        try:
            actor.on_peer_request(message.body, partial(answer, message.seq))
        except RejectedError as error:
            connection.send(Failure(message.seq, "invalid", sendable(str(error))))


def _describe(error: BaseException) -> str:
    return sendable(f"{type(error).__name__}: {error}")
