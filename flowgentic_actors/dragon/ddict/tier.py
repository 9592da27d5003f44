"""A DDict on this node as a memory tier: fast while it works, and no request waits when it fails.

A DDict is several processes and a lock between them that no kernel cleans up: one that was killed
or stopped at the wrong moment hangs all others, past every timeout that Dragon was given. So:

- All calls of a DDict run on one daemon thread, which is left behind when a call does not return.
- How long a call takes is watched from the event loop. One that takes too long, or that fails in
  any way but "full" or "not there", ends this *generation* of the DDict: its processes are killed,
  its memory is released, all that was asked of it fails, and a new and empty one is made.
- Nothing here waits on the loop. Every future is settled, within a deadline, whatever happens.

Values are kept as they are, without pickle. The pool gives out powers of two: a value of just over
one takes the next. `chunk` sizes that are exactly a power of two waste nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from flowgentic_actors.dragon.ddict.generation import Generation, Work, settle
from flowgentic_actors.environment import inside_dragon
from flowgentic_actors.errors import TierBusyError, TierError, TierFullError, TierLostError
from flowgentic_actors.event_kinds import EventKind

FULL: Final = 0.875
"""Part of a pool that is used; from nine tenths on the DDict itself refuses."""

SMALLEST_POOL: Final = 4 << 20
MOST_WAITING: Final = 256
"""Calls that wait for the DDict's thread before further ones are refused."""
MOST_FAILED: Final = 4
"""DDicts in a row that did not come up before none is tried again: each may leave a thread behind,
and a Dragon runtime that makes none so often is broken itself."""
_CREATE_TIMEOUT = 30.0
_FIRST_BACKOFF, _LONGEST_BACKOFF = 0.1, 30.0
_GOOD_LIFE = 30.0  # seconds after which a loss is not held against the next generation

logger = logging.getLogger(__name__)


def why_no_ddict() -> str | None:
    """Why this process cannot have a DDict, or None when it can."""
    if not sys.platform.startswith("linux"):
        return "a DDict is only used where /proc tells which processes are its own: on Linux"
    if not inside_dragon():
        return "this process does not run in a Dragon runtime"
    return None


class DDictShard:
    """One DDict on this node. Everything here is for the event loop's thread, and returns at once.

    Futures fail with a `TierError` and nothing else. A future may be dropped: an error that is
    not fetched is not logged.

    Args:
        total_bytes: Size of its pools together; about seven eighths of it can be used.
        managers: Processes that keep the values, each with an equal part of the pool.
        folder: Private folder for its files; other shards need others. May not exist yet.
        on_event: Called on the loop with `DDICT_READY`, `DDICT_LOST` or, once, with
            `DDICT_GIVEN_UP`, and a detail.
        timeout: Seconds that one call on the DDict may take before it counts as wedged.
        create_timeout: Seconds that making it may take.
    """

    name = "ddict"

    def __init__(
        self,
        *,
        total_bytes: int,
        managers: int,
        folder: Path,
        on_event: Callable[[EventKind, str], None],
        timeout: float = 5.0,
        create_timeout: float = _CREATE_TIMEOUT,
    ) -> None:
        if total_bytes < managers * SMALLEST_POOL:
            raise TierError(
                f"{total_bytes} bytes are too little for {managers} managers of a DDict: give each "
                f"at least {SMALLEST_POOL}"
            )
        self._total_bytes = total_bytes
        self._managers = managers
        self._folder = folder
        self._on_event = on_event
        self._timeout = timeout
        self._create_timeout = create_timeout
        self._current: Generation | None = None
        self._closed = False
        self._cleaned: asyncio.Future[None] | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._backoff = 0.0
        self._failed = 0  # generations in a row that were never ready
        self._calls = 0
        self._lost = 0
        self._timeouts = 0
        self._full = 0
        self._busy = 0
        self.generation = 0
        """Number of the DDict in use or being made; each one begins empty."""

    @property
    def ready(self) -> bool:
        """Whether calls are taken."""
        return self._current is not None and self._current.is_ready

    @property
    def used(self) -> int:
        """Bytes of values that it holds, as `capacity` counts them."""
        return self._current.pool.used if self._current else 0

    @property
    def capacity(self) -> int:
        """Bytes of values, each rounded up to a power of two, that fit at most."""
        return self._managers * self._pool_limit

    @property
    def _pool_limit(self) -> int:
        return int(self._total_bytes // self._managers * FULL)

    def start(self) -> None:
        """Begin to make the DDict; `EventKind.DDICT_READY` tells when it is there."""
        if self._current is None and not self._closed:
            self._begin()

    def put(self, key: int, data: bytes) -> asyncio.Future[None]:
        """Keep a value, in place of the one that the key had.

        The future fails with `TierFullError` where there is no room; the key's old value is kept.
        """
        return self._ask(lambda pool: pool.put(key, data))

    def get(self, key: int) -> asyncio.Future[bytes | None]:
        """Fetch a value; None when there is none."""
        return self._ask(lambda pool: pool.get(key))

    def delete(self, keys: Iterable[int]) -> asyncio.Future[None]:
        """Free the room of values; keys that are not there are fine.

        As slow as fetching them (a DDict hands out what it deletes): overwriting a key that is not
        needed any more is cheaper.
        """
        doomed = list(keys)
        return self._ask(lambda pool: pool.delete(doomed))

    def stats(self) -> dict[str, int]:
        """Counters; callable from any thread."""
        current = self._current
        return {
            "ddict_ready": int(self.ready),
            "ddict_generation": self.generation,
            "ddict_calls": self._calls,
            "ddict_lost": self._lost,
            "ddict_timeouts": self._timeouts,
            "ddict_full": self._full,
            "ddict_busy": self._busy,
            "ddict_waiting": len(current.waiting) if current else 0,
            "ddict_bytes": self.used,
            "ddict_capacity": self.capacity,
        }

    async def end(self, timeout: float = 3.0) -> bool:
        """Have Dragon end the DDict, also one that is being made still; `close` follows.

        Killing its processes, as `close` does, may bring down a runtime that others use.

        Returns:
            Whether Dragon did, in time.
        """
        self._close()
        return self._current is None or await self._current.end(timeout)

    def close(self) -> None:
        """Begin to end what is left of the DDict, by force and without waiting for it.

        `wait_closed` does wait. Where this process ends before that is done, the DDict's processes
        see to the rest.
        """
        self._close()
        current, self._current = self._current, None
        if current is not None:
            current.give_up("the cluster is closing")
            self._cleaned = _on_thread(current.clean)

    async def wait_closed(self, timeout: float = 5.0) -> bool:
        """After `close`: wait until processes, shared memory and folder are gone.

        Returns:
            Whether they are, in time.
        """
        if self._cleaned is None:
            return True
        done, _ = await asyncio.wait([self._cleaned], timeout=timeout)
        return bool(done)

    # ------------------------------------------------------------------ generations

    def _close(self) -> None:
        self._closed = True
        if self._retry is not None:
            self._retry.cancel()

    def _begin(self) -> None:
        self._retry = None
        self.generation += 1
        self._current = Generation(
            total_bytes=self._total_bytes,
            managers=self._managers,
            pool_limit=self._pool_limit,
            parent=self._folder,
            timeout=self._timeout,
            create_timeout=self._create_timeout,
            on_ready=self._is_ready,
            on_broken=self._is_broken,
        )
        self._current.start()

    def _is_ready(self, generation: Generation, seconds: float) -> None:
        if generation is self._current:
            self._on_event(EventKind.DDICT_READY, f"made in {seconds:.1f} s")

    def _is_broken(self, generation: Generation, reason: str, timed_out: bool) -> None:
        if generation is not self._current:
            return
        self._current = None
        self._lost += 1
        self._timeouts += timed_out
        good = generation.lived() >= _GOOD_LIFE
        self._failed = 0 if generation.lived() else self._failed + 1
        self._backoff = (
            _FIRST_BACKOFF
            if good or not self._backoff
            else min(2 * self._backoff, _LONGEST_BACKOFF)
        )
        generation.give_up(reason)
        self._cleaned = _on_thread(generation.clean)
        self._cleaned.add_done_callback(self._is_clean)
        self._on_event(EventKind.DDICT_LOST, reason)
        if self._failed == MOST_FAILED:
            self._on_event(EventKind.DDICT_GIVEN_UP, f"{MOST_FAILED} in a row did not come up")

    def _is_clean(self, _: asyncio.Future[None]) -> None:
        if not self._closed and self._failed < MOST_FAILED:
            loop = asyncio.get_running_loop()
            self._retry = loop.call_later(self._backoff, self._begin)

    # ------------------------------------------------------------------ calls

    def _ask(self, work: Work) -> asyncio.Future[Any]:
        current = self._current
        if current is None or not current.is_ready:
            return _failed(TierLostError("there is no DDict now: it is being made, or closed"))
        if len(current.waiting) >= MOST_WAITING:
            self._busy += 1
            return _failed(TierBusyError(f"{MOST_WAITING} calls wait for the DDict already"))
        self._calls += 1
        future = current.ask(work)
        future.add_done_callback(self._count)
        return future

    def _count(self, future: asyncio.Future[Any]) -> None:
        if not future.cancelled() and isinstance(future.exception(), TierFullError):
            self._full += 1


def _failed(error: TierError) -> asyncio.Future[Any]:
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    future.set_exception(error)
    future.exception()
    return future


def _on_thread(work: Callable[[], None]) -> asyncio.Future[None]:
    """Run blocking work on a daemon thread of its own."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def run() -> None:
        try:
            work()
        except Exception:
            logger.exception("cleaning up after a DDict failed")
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, done, None)

    threading.Thread(target=run, name="flowgentic:ddict-end", daemon=True).start()
    return done
