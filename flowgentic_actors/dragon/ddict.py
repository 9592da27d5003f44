"""A DDict on this node as a memory tier: fast while it works, and nobody waits when it does not.

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
import os
import queue
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from flowgentic_actors.dragon.ddict_processes import (
    empty,
    end_ddict,
    end_leftovers,
    make_folder,
    open_pools,
    open_processes,
    started_at,
    wake,
)
from flowgentic_actors.dragon.fixes import with_fixes
from flowgentic_actors.dragon.fixes.sitecustomize import OWNER_VARIABLE
from flowgentic_actors.environment import inside_dragon
from flowgentic_actors.errors import TierBusyError, TierError, TierFullError, TierLostError
from flowgentic_actors.event_kinds import EventKind

logger = logging.getLogger(__name__)

FULL: Final = 0.875
"""Part of a pool that is used; from nine tenths on the DDict itself refuses."""

SMALLEST_POOL: Final = 4 << 20
MOST_WAITING: Final = 256
"""Calls that wait for the DDict's thread before further ones are refused."""
MOST_FAILED: Final = 4
"""DDicts in a row that did not come up before none is tried again: each may leave a thread behind,
and a Dragon runtime that makes none so often is broken itself."""

_TICKS = 4  # looks at the call under way within one timeout
_GRACE = 0.25  # seconds that the call under way has to end by itself
_CREATE_TIMEOUT = 30.0
_FIRST_BACKOFF, _LONGEST_BACKOFF = 0.1, 30.0
_GOOD_LIFE = 30.0  # seconds after which a loss is not held against the next generation

_Work = Callable[["_Dict"], Any]


def why_no_ddict() -> str | None:
    """Why this process cannot have a DDict, or None when it can."""
    if not sys.platform.startswith("linux"):
        return "a DDict is only used where /proc tells which processes are its own: on Linux"
    if not inside_dragon():
        return "this process does not run in a Dragon runtime"
    return None


class DDictShard:
    """One DDict on this node. Everything here is for the event loop's thread, and returns at once.

    Futures fail with a `TierError` and nothing else. Nobody has to look at a future: errors that
    nobody fetches are not logged.

    Args:
        total_bytes: Size of its pools together; about seven eighths of it can be used.
        managers: Processes that keep the values, each with an equal part of the pool.
        folder: Private folder for its files; other shards need others. May not exist yet.
        on_event: Called on the loop with `DDICT_READY`, `DDICT_LOST` or, once, with
            `DDICT_GIVEN_UP`, and a detail.
        timeout: Seconds that one call on the DDict may take before it counts as wedged.
        create_timeout: Seconds that making it may take.
    """

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
        self._current: _Generation | None = None
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
            "ddict_bytes": current.pool.used if current else 0,
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
        self._current = _Generation(
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

    def _is_ready(self, generation: _Generation, seconds: float) -> None:
        if generation is self._current:
            self._on_event(EventKind.DDICT_READY, f"made in {seconds:.1f} s")

    def _is_broken(self, generation: _Generation, reason: str, timed_out: bool) -> None:
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

    def _ask(self, work: _Work) -> asyncio.Future[Any]:
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


class _Generation:
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
        on_ready: Callable[[_Generation, float], None],
        on_broken: Callable[[_Generation, str, bool], None],
    ) -> None:
        self._total_bytes = total_bytes
        self._managers = managers
        self._parent = parent
        self._timeout = timeout
        self._create_timeout = create_timeout
        self._on_ready = on_ready
        self._on_broken = on_broken
        self._loop = asyncio.get_running_loop()
        self._todo: queue.SimpleQueue[tuple[asyncio.Future[Any], _Work] | None] = (
            queue.SimpleQueue()
        )
        self._lock = threading.Lock()
        self._folder: Path | None = None
        self._pidfds: list[int] = []
        self._pools: list[int] = []
        self._given_up = threading.Event()
        self._ending = False
        self._step = 0  # calls that were begun or ended; odd while one is under way
        self._seen = (-1, 0)  # the step at the last look, and for how many looks it has been that
        self._ticker: asyncio.TimerHandle | None = None
        self._ready_at: float | None = None
        self.waiting: set[asyncio.Future[Any]] = set()
        self.pool = _Dict(managers, pool_limit)
        self.is_ready = False

    def start(self) -> None:
        """Begin to make it."""
        self._step = 1
        self._tick(self._create_timeout / _TICKS)
        threading.Thread(target=self._run, name="flowgentic:ddict", daemon=True).start()

    def ask(self, work: _Work) -> asyncio.Future[Any]:
        """Queue a call."""
        future: asyncio.Future[Any] = self._loop.create_future()
        self.waiting.add(future)
        future.add_done_callback(self._forget)
        self._todo.put((future, work))
        if self._ticker is None and not self._ending:
            self._seen = (-1, 0)
            self._tick(self._timeout / _TICKS)
        return future

    async def end(self, timeout: float) -> bool:
        """Take no more calls and let the thread destroy it; returns whether it did, in time."""
        self._ending = True
        self._disarm()
        self._refuse("the cluster is closing")
        destroyed = self.ask(_Dict.destroy)
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
        # Looks are counted, not seconds: after this process was stopped for a while, a call has
        # the chance to end before it is found to be late.
        self._ticker = None
        step, looks = self._step, self._seen[1]
        if step % 2 == 0 and not self.waiting:
            return
        self._seen = (step, looks + 1 if step == self._seen[0] else 0)
        if step % 2 and self._seen[1] >= _TICKS:
            what = "answer" if self.is_ready else "come up"
            self._on_broken(self, f"it did not {what} within {interval * _TICKS:g} s", True)
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
                continue  # nobody waits any more
            self._step += 1
            try:
                result = work(self.pool)
            except TierError as error:
                self._tell(_fail, future, type(error), str(error))
            except Exception as error:  # noqa: BLE001 - it is broken, in whatever way
                self._tell(self._broke, _describe(error))
                break
            else:
                self._tell(_settle, future, result)
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
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
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


class _Dict:
    """The DDict itself, and what is in it: used by one thread."""

    def __init__(self, managers: int, pool_limit: int) -> None:
        self._managers = managers
        self._pool_limit = pool_limit
        self._clients: list[Any] = []
        self._whole: Any = None
        self._not_there: type[Exception] = KeyError
        self._is_full: type[Exception] = MemoryError
        self._room: dict[int, int] = {}
        self._used = [0] * managers

    @property
    def used(self) -> int:
        """Bytes of the pools that values take."""
        return sum(self._used)

    def make(self, total_bytes: int, folder: Path, timeout: float) -> None:
        """Make it, with its processes in a folder.

        The timeout is Dragon's, for each step of making it and every later call; it only decides
        when a thread that was left behind ends, if it does.
        """
        from dragon.data.ddict import ddict  # noqa: PLC0415 - slow, and optional
        from dragon.infrastructure.policy import Policy  # noqa: PLC0415
        from dragon.native.machine import current  # noqa: PLC0415

        here = Policy(placement=Policy.Placement.HOST_NAME, host_name=current().hostname)
        with _processes_in(ddict, folder):
            whole = ddict.DDict(
                self._managers,
                1,
                total_bytes,
                policy=here,
                orc_policy=here,
                name=folder.name,
                persist_path=str(folder),
                timeout=timeout,
            )
        self._not_there, self._is_full = ddict.DDictKeyError, ddict.DDictFullError
        self._whole = whole
        self._clients = [
            whole.manager(number).pickler(RawBytes, RawBytes) for number in range(self._managers)
        ]

    def put(self, key: int, data: bytes) -> None:
        number = key % self._managers
        room = _room(len(data))
        more = room - self._room.get(key, 0)
        if self._used[number] + more > self._pool_limit:
            raise TierFullError(
                f"no room for {len(data)} bytes: {self._used[number]} of {self._pool_limit} are "
                "in use"
            )
        # As if nothing of an old value were reused: that much the pool needs for a moment.
        try:
            self._clients[number][_pack(key)] = data
        except self._is_full as error:
            raise TierFullError(str(error).splitlines()[0]) from None
        self._room[key] = room
        self._used[number] += more

    def get(self, key: int) -> bytes | None:
        if key not in self._room:
            return None
        data: bytes = self._clients[key % self._managers][_pack(key)]
        return data

    def delete(self, keys: Sequence[int]) -> None:
        for key in keys:
            if key in self._room:
                number = key % self._managers
                self._clients[number].pop(_pack(key))
                self._used[number] -= self._room.pop(key)

    def destroy(self) -> None:
        """Have Dragon end its processes and release its memory."""
        self._whole.destroy()

    def forget(self) -> None:
        """Let go of the client."""
        self._clients.clear()
        self._whole = None


class RawBytes:
    """A DDict's pickler for bytes, which are left as they are."""

    @staticmethod
    def dumps(key: bytes) -> bytes:
        """A key, as it is."""
        return key

    @staticmethod
    def loads(key: bytes) -> bytes:
        """A key, as it was."""
        return key

    @staticmethod
    def dump(value: bytes, file: Any) -> None:
        """Write a value, as it is."""
        file.write(value)

    @staticmethod
    def load(file: Any) -> bytes:
        """Read a value, which may come in pieces."""
        parts = []
        with contextlib.suppress(EOFError):
            while part := file.read(0):
                parts.append(part)
        return bytes(parts[0]) if len(parts) == 1 else b"".join(parts)


@contextlib.contextmanager
def _processes_in(ddict: Any, folder: Path) -> Iterator[None]:
    """While a DDict is made, start its processes in a folder, bound to this process.

    A DDict has no setting for that, but starts its first process by a name in its module; the
    others get folder and environment from that one.
    """
    process = ddict.Process
    environ = {
        **with_fixes({"PYTHONPATH": os.environ.get("PYTHONPATH", "")}),
        OWNER_VARIABLE: f"{os.getpid()}:{started_at(os.getpid())}",
    }
    ddict.Process = partial(process, cwd=str(folder), env=environ)
    try:
        yield
    finally:
        ddict.Process = process


def _room(size: int) -> int:
    """What a value of that size takes in a pool."""
    return max(64, 1 << (size - 1).bit_length()) if size else 64


def _pack(key: int) -> bytes:
    return struct.pack("<q", key)


def _describe(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200] if lines else ''}"


def _settle(future: asyncio.Future[Any], result: object) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[Any], kind: type[TierError], text: str) -> None:
    # A new error: the one that was raised holds the frames of the thread, and they the DDict.
    if not future.done():
        future.set_exception(kind(text))
        future.exception()


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
            loop.call_soon_threadsafe(_settle, done, None)

    threading.Thread(target=run, name="flowgentic:ddict-end", daemon=True).start()
    return done
