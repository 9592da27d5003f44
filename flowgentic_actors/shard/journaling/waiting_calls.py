"""Queue of commands that wait until the journal's thread has allocated a segment."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Generic, NamedTuple, TypeVar

from flowgentic_actors.actors.actor import Call, Postponed
from flowgentic_actors.errors import StorageError
from flowgentic_actors.storage.journal import Journal
from flowgentic_actors.storage.worker import Worker

R = TypeVar("R")
W = TypeVar("W")


class RoomWanted(StorageError):  # noqa: N818 - no failure: most wait for it
    """A write does not fit into the allocated segments; nothing has changed.

    Args:
        size: Bytes that wait to be appended.
        urgent: Whether they win space back.
    """

    def __init__(self, size: int, *, urgent: bool) -> None:
        super().__init__("the journal's next segment is being allocated: try again")
        self.size = size
        self.urgent = urgent


class WaitingLine(Generic[W]):
    """The queue of commands that wait for room, oldest first; called by the journal's owner.

    A command that comes while others wait has to join as well, to keep the order.

    Args:
        journal: The journal.
        worker: The journal's thread.
        carry_out: Carries out one that waits, and answers it whatever becomes of it; raises
            `RoomWanted` when there is still no room.
        refuse: Answers one that there is no room for.
        call: Calls a function as the journal's owner, from another thread. Default: on the event
            loop of the caller.
    """

    def __init__(
        self,
        journal: Journal,
        worker: Worker,
        *,
        carry_out: Callable[[W], None],
        refuse: Callable[[W, OSError], None],
        call: Callable[[Callable[[], None]], object] | None = None,
    ) -> None:
        self._journal = journal
        self._worker = worker
        self._carry_out = carry_out
        self._refuse = refuse
        self._call = call
        self._asked = False  # whether the thread will go on with those that wait
        self.waiting: deque[W] = deque()
        """All that wait."""

    def join(self, waiting: W, wanted: RoomWanted | None) -> None:
        """Append a call to the queue.

        Args:
            waiting: What waits.
            wanted: The room that it needs; None for what needs none that is known.
        """
        self.waiting.append(waiting)
        if wanted is not None or not self._asked:  # the one before may have been interrupted here
            self._ask(wanted)

    def _ask(self, wanted: RoomWanted | None) -> None:
        call = self._call or asyncio.get_running_loop().call_soon_threadsafe

        def job() -> None:
            error: OSError | None = None
            if wanted is not None:
                error = self._journal.make_room(wanted.size, urgent=wanted.urgent)
            with contextlib.suppress(RuntimeError):  # the loop is closed: the actor has ended
                call(partial(self._go_on, error))

        self._worker.put(job)
        self._asked = True

    def _go_on(self, error: OSError | None) -> None:
        """Carry out waiting calls, up to the first that needs more room.

        Args:
            error: Why there is no room for the first; None when there is.
        """
        self._asked = False
        while self.waiting:
            try:
                self._carry_out(self.waiting[0])
            except RoomWanted as wanted:
                if error is None:
                    self._ask(wanted)
                    return
                self._refuse(self.waiting[0], error)
            error = None
            self.waiting.popleft()


class _WaitingCall(NamedTuple):
    call: Call
    future: asyncio.Future[bytes]


class WaitingCalls:
    """The waiting calls of an actor, on its event loop.

    Args:
        journal: The journal.
        worker: The journal's thread.
        handle: Carries out a call: the actor's own `handle`, which lets none wait that is served.
        refusal: Makes the error of what there is no room for.
    """

    def __init__(
        self,
        journal: Journal,
        worker: Worker,
        *,
        handle: Callable[[Call], bytes | asyncio.Future[bytes] | Postponed],
        refusal: Callable[[OSError], StorageError],
    ) -> None:
        self._journal = journal
        self._worker = worker
        self._handle = handle
        self._refusal = refusal
        self._line: WaitingLine[_WaitingCall] = WaitingLine(
            journal,
            worker,
            carry_out=self._carry_out,
            refuse=lambda waiting, error: _fail(waiting.future, refusal(error)),
        )
        self.waiting = self._line.waiting
        """All that wait."""
        self.serving = False
        """Whether one that waited is carried out right now."""

    def wait(self, call: Call, wanted: RoomWanted | None) -> asyncio.Future[bytes]:
        """Append a call to the queue; see `WaitingLine.join`."""
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._line.join(_WaitingCall(call, future), wanted)
        return future

    async def make(self, wanted: RoomWanted) -> None:
        """Wait for room that is needed by something else than calls.

        Raises:
            StorageError: If there is none.
        """
        error = await self._worker.submit(
            self._journal.make_room, wanted.size, urgent=wanted.urgent
        )
        if error is not None:
            raise self._refusal(error)

    def close(self) -> None:
        """Cancel all waiting calls."""
        while self.waiting:
            self.waiting.popleft().future.cancel()

    def _carry_out(self, waiting: _WaitingCall) -> None:
        self.serving = True
        try:
            answer = self._handle(waiting.call)
        except RoomWanted:
            raise
        except Exception as error:  # noqa: BLE001 - raised where the answer is expected
            _fail(waiting.future, error)
            return
        finally:
            self.serving = False
        if isinstance(answer, Postponed):
            _fail(waiting.future, answer.otherwise)  # a write waits for one reason only
        elif isinstance(answer, bytes):
            if not waiting.future.done():
                waiting.future.set_result(answer)
        else:
            answer.add_done_callback(partial(hand_on, waiting.future))


def _fail(future: asyncio.Future[bytes], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)


def hand_on(future: asyncio.Future[R], answer: asyncio.Future[R]) -> None:
    """Settle a future as another one was, unless it is settled already."""
    if future.done():
        return
    if answer.cancelled():
        future.cancel()
    elif (error := answer.exception()) is not None:
        future.set_exception(error)
    else:
        future.set_result(answer.result())
