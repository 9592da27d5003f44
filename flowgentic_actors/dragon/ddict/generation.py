"""One DDict, from the thread that makes it to the end of its processes; see `tier`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flowgentic_actors.dragon.ddict.client import DDictClient
from flowgentic_actors.dragon.ddict_processes import (
    empty,
    end_ddict,
    end_leftovers,
    make_folder,
    open_pools,
    open_processes,
    wake,
)
from flowgentic_actors.errors import TierError, TierLostError
from flowgentic_actors.silence import SilenceCounter

_TICKS = 4  # looks at the call under way within one timeout
_GRACE = 0.25  # seconds that the call under way has to end by itself

Work = Callable[["DDictClient"], Any]

logger = logging.getLogger(__name__)


class Generation:
    """One DDict, from the thread that makes it to the end of its processes."""

    def __init__(
        self,
        *,
        total_bytes: int,
        managers: int,
        pool_limit: int,
        parent: Path,
        timeout: float,
        create_timeout: float,
        on_ready: Callable[[Generation, float], None],
        on_broken: Callable[[Generation, str, bool], None],
    ) -> None:
        self._total_bytes = total_bytes
        self._managers = managers
        self._parent = parent
        self._timeout = timeout
        self._create_timeout = create_timeout
        self._on_ready = on_ready
        self._on_broken = on_broken
        self._loop = asyncio.get_running_loop()
        self._todo: queue.SimpleQueue[tuple[asyncio.Future[Any], Work] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._folder: Path | None = None
        self._pidfds: list[int] = []
        self._pools: list[int] = []
        self._given_up = threading.Event()
        self._ending = False
        self._step = 0  # calls that were begun or ended; odd while one is under way
        self._seen = -1  # the step at the last look
        self._silence = SilenceCounter()  # of the call under way
        self._ticker: asyncio.TimerHandle | None = None
        self._ready_at: float | None = None
        self.waiting: set[asyncio.Future[Any]] = set()
        self.pool = DDictClient(managers, pool_limit)
        self.is_ready = False

    def start(self) -> None:
        """Begin to create the DDict."""
        self._step = 1
        self._tick(self._create_timeout / _TICKS)
        threading.Thread(target=self._run, name="flowgentic:ddict", daemon=True).start()

    def ask(self, work: Work) -> asyncio.Future[Any]:
        """Queue a call."""
        future: asyncio.Future[Any] = self._loop.create_future()
        self.waiting.add(future)
        future.add_done_callback(self._forget)
        self._todo.put((future, work))
        if self._ticker is None and not self._ending:
            self._seen = -1
            self._tick(self._timeout / _TICKS)
        return future

    async def end(self, timeout: float) -> bool:
        """Take no more calls and let the thread destroy it; returns whether it did, in time."""
        self._ending = True
        self._disarm()
        self._refuse("the cluster is closing")
        destroyed = self.ask(DDictClient.destroy)
        self._todo.put(None)
        await asyncio.wait([destroyed], timeout=timeout)
        return destroyed.done() and destroyed.exception() is None

    def lived(self) -> float:
        """Seconds since it was ready."""
        return 0.0 if self._ready_at is None else time.monotonic() - self._ready_at

    def give_up(self, reason: str) -> None:
        """Fail what was asked, and leave the thread behind."""
        self._given_up.set()
        self._disarm()
        self._todo.put(None)
        self._refuse(reason)

    def _disarm(self) -> None:
        """Take no more calls, and do not look at how it is any more."""
        self.is_ready = False
        if self._ticker is not None:
            self._ticker.cancel()
            self._ticker = None
        with self._lock:
            if self._ready_at is not None:
                for pidfd in self._pidfds:
                    self._loop.remove_reader(pidfd)

    def _refuse(self, reason: str) -> None:
        for future in list(self.waiting):
            _fail(future, TierLostError, f"the DDict was given up: {reason}")

    def clean(self) -> None:
        """End its processes and memory, and remove its files. Blocks."""
        # A process that is killed in the middle of a call may take more with it than itself.
        with self._lock:
            wake(self._pidfds)
        end = time.monotonic() + _GRACE
        while self._step % 2 and time.monotonic() < end:
            time.sleep(_GRACE / 50)
        with self._lock:
            pidfds, self._pidfds = self._pidfds, []
            pools, self._pools = self._pools, []
            folder = self._folder
        for pidfd in pidfds:
            os.close(pidfd)
        try:
            if folder is not None and not end_ddict(folder):
                logger.error("the processes of the DDict in %s do not end", folder)
            empty(pools)
        finally:
            for pool in pools:
                os.close(pool)

    def _forget(self, future: asyncio.Future[Any]) -> None:
        self.waiting.discard(future)

    # ------------------------------------------------------------------ the watch, on the loop

    def _tick(self, interval: float) -> None:
        self._ticker = self._loop.call_later(interval, self._look, interval)

    def _look(self, interval: float) -> None:
        self._ticker = None
        step, timeout = self._step, interval * _TICKS
        if step % 2 == 0 and not self.waiting:
            return
        if step != self._seen:
            self._seen = step
            self._silence.heard()
        elif self._silence.tick(interval) >= timeout and step % 2:
            what = "answer" if self.is_ready else "come up"
            self._on_broken(self, f"it did not {what} within {timeout:g} s", True)
            return
        self._tick(interval)

    # ------------------------------------------------------------------ the thread

    def _run(self) -> None:
        # The DDict's client is known to this frame only: it is let go of here or never, since
        # that, too, is a call on Dragon.
        began = time.monotonic()
        try:
            self._make()
        except Exception as error:  # noqa: BLE001 - Dragon's errors have no common root
            self._tell(self._broke, _describe(error))
        else:
            self._step += 1
            self._tell(self._made, time.monotonic() - began)
            self._serve()
        with contextlib.suppress(Exception):
            self.pool.forget()

    def _serve(self) -> None:
        while (item := self._todo.get()) is not None:
            future, work = item
            if self._given_up.is_set():
                break
            if future.done():
                continue  # its caller was cancelled
            self._step += 1
            try:
                result = work(self.pool)
            except TierError as error:
                self._tell(_fail, future, type(error), str(error))
            except Exception as error:  # noqa: BLE001 - it is broken, in whatever way
                self._tell(self._broke, _describe(error))
                break
            else:
                self._tell(settle, future, result)
                del result
            self._step += 1

    def _make(self) -> None:
        end_leftovers(self._parent)
        with self._lock:
            if self._given_up.is_set():
                return
            self._folder = folder = make_folder(self._parent)
        self.pool.make(self._total_bytes, folder, self._create_timeout / 2)
        pidfds, pools = open_processes(folder), open_pools(folder.name)
        with self._lock:
            self._pidfds, self._pools = pidfds, pools
            if self._given_up.is_set():
                return
        if len(pidfds) < 2 + self._managers:
            raise TierError(
                f"{len(pidfds)} processes of the DDict are known, {2 + self._managers} expected: "
                "this version of dragonhpc starts them in another way"
            )

    def _tell(self, what: Callable[..., None], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed, and its callers with it
            self._loop.call_soon_threadsafe(what, *arguments)

    # ------------------------------------------------------------------ told by the thread

    def _made(self, seconds: float) -> None:
        if not (self._given_up.is_set() or self._ending):
            self.is_ready = True
            self._ready_at = time.monotonic()
            for pidfd in self._pidfds:
                self._loop.add_reader(pidfd, self._process_ended)
            if self._ticker is not None:
                self._ticker.cancel()
                self._ticker = None
            self._on_ready(self, seconds)

    def _process_ended(self) -> None:
        self._broke("one of its processes ended")

    def _broke(self, reason: str) -> None:
        if not self._given_up.is_set():
            self._on_broken(self, reason, False)


def _describe(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200] if lines else ''}"


def settle(future: asyncio.Future[Any], result: object) -> None:
    """Give a future its result, unless it is done."""
    if not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[Any], kind: type[TierError], text: str) -> None:
    # A new error: the one that was raised holds the frames of the thread, and they the DDict.
    if not future.done():
        future.set_exception(kind(text))
        future.exception()
