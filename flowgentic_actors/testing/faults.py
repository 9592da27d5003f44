"""Faults, and seeded plans of them.

A `FaultPlan` makes a list of faults that its seed decides. Each fault knows how to begin at a
cluster, which a `Site` describes, and how to end what it began: a stopped process is continued, a
full disk is freed.
"""

from __future__ import annotations

import asyncio
import errno
import os
import random
import signal
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from flowgentic_actors.actors.daemon_threads import on_daemon_thread
from flowgentic_actors.dragon.ddict_sizing import tier_folder
from flowgentic_actors.memory import MemoryCluster
from flowgentic_actors.shard.journaling.compaction import MODULE as COMPACTION
from flowgentic_actors.testing.links import Cut, FaultyLink

LARGEST_FILLED: Final = 2 << 30
"""Bytes of a file system beyond which `FillDisk` leaves it alone: it is not the test's own."""

_POLL = 0.02
_VICTIM_WAIT = 20.0
_COMPACTION_WAIT = 5.0
_FILE_WAIT = 30.0

End: TypeAlias = Callable[[], Awaitable[None]]
"""Ends what a fault began."""


class SkippedError(Exception):
    """A fault was skipped: there was nothing to apply it to."""


@dataclass(kw_only=True)
class Site:
    """The cluster that faults happen to.

    Attributes:
        memory: The cluster, opened.
        links: The relay before each shard's actor, none if it is used without.
        small_disk: A folder on the small file system that the cluster is on, None without one.
    """

    memory: MemoryCluster
    links: Sequence[FaultyLink] = ()
    small_disk: Path | None = None

    async def actor(self, shard: int) -> int:
        """The pid of a shard's running actor, waiting for it to run.

        Raises:
            SkippedError: If it does not.
        """
        deadline = asyncio.get_running_loop().time() + _VICTIM_WAIT
        while asyncio.get_running_loop().time() < deadline:
            for actor in (await self.memory.status()).actors:  # none, while a host comes up
                if actor.shard == shard and actor.pid is not None:
                    return actor.pid
            await asyncio.sleep(_POLL)
        raise SkippedError(f"the actor of shard {shard} does not run")

    def link(self, shard: int) -> FaultyLink:
        """The relay before a shard's actor.

        Raises:
            SkippedError: If there is none.
        """
        if not self.links:
            raise SkippedError("the cluster is used without relays")
        return self.links[shard]


@dataclass(frozen=True, kw_only=True)
class Fault(ABC):
    """A fault that is injected into a cluster.

    Attributes:
        shard: The shard concerned; one at random where all are.
        pause: Seconds to wait before.
        seconds: How long it lasts.
    """

    shard: int = 0
    pause: float = 0.0
    seconds: float = 0.0

    @abstractmethod
    async def begin(self, site: Site) -> End | None:
        """Inject the fault.

        Returns:
            What ends it, None if it needs no end.

        Raises:
            SkippedError: If there is nothing for it to happen to.
        """


class KillActor(Fault):
    """SIGKILL to an actor."""

    async def begin(self, site: Site) -> None:
        """See `Fault.begin`."""
        _Process(await site.actor(self.shard)).end(signal.SIGKILL)


class StopActor(Fault):
    """SIGSTOP to an actor, SIGCONT later."""

    async def begin(self, site: Site) -> End:
        """See `Fault.begin`."""
        return _stop(await site.actor(self.shard))


class KillHost(Fault):
    """SIGKILL to the host."""

    async def begin(self, site: Site) -> None:
        """See `Fault.begin`."""
        _Process((await site.memory.status()).host_pid).end(signal.SIGKILL)


class StopHost(Fault):
    """SIGSTOP to the host, SIGCONT later."""

    async def begin(self, site: Site) -> End:
        """See `Fault.begin`."""
        return _stop((await site.memory.status()).host_pid)


class KillCompactor(Fault):
    """SIGKILL to the process that compacts an actor's journal, as soon as there is one."""

    async def begin(self, site: Site) -> None:
        """See `Fault.begin`."""
        deadline = asyncio.get_running_loop().time() + _COMPACTION_WAIT
        while asyncio.get_running_loop().time() < deadline:
            actor = await site.actor(self.shard)
            pid = await on_daemon_thread(_FILE_WAIT, compactor_of, actor)
            if pid is not None:
                _Process(pid).end(signal.SIGKILL)
                return
            await asyncio.sleep(_POLL)
        raise SkippedError(f"no compaction of shard {self.shard} began")


@dataclass(frozen=True, kw_only=True)
class CutConnections(Fault):
    """Breaks an actor's connections.

    Attributes:
        how: See `Cut`; what is `late` or silent is so for `seconds`.
        after: Bytes that still get through.
    """

    how: Cut = "both"
    after: int = 0

    async def begin(self, site: Site) -> None:
        """See `Fault.begin`."""
        site.link(self.shard).cut(self.how, self.after, self.seconds)


@dataclass(frozen=True, kw_only=True)
class DelayConnections(Fault):
    """Makes everything to and from an actor arrive late.

    Attributes:
        delay: Most seconds by which a piece of the stream is late.
    """

    delay: float = 0.0

    async def begin(self, site: Site) -> End:
        """See `Fault.begin`."""
        link = site.link(self.shard)
        link.delay = self.delay

        async def end() -> None:
            link.delay = 0.0

        return end


class FillDisk(Fault):
    """Leaves no free space on the cluster's file system, which must be a small one of its own."""

    async def begin(self, site: Site) -> End:
        """See `Fault.begin`."""
        if site.small_disk is None:
            raise SkippedError("the cluster is not on a small file system of its own")
        ballast = site.small_disk / f"ballast-{os.getpid()}"

        async def end() -> None:
            await on_daemon_thread(_FILE_WAIT, ballast.unlink, missing_ok=True)

        try:
            await on_daemon_thread(_FILE_WAIT, _fill, ballast)
        except BaseException:
            await end()
            raise
        return end


@dataclass(frozen=True, kw_only=True)
class WedgeDDict(Fault):
    """Stops, or kills, the processes of a shard's DDict, which work below a folder of its own.

    Attributes:
        kill: Whether they are killed.
    """

    kill: bool = False

    async def begin(self, site: Site) -> End | None:
        """See `Fault.begin`."""
        folder = Path((await site.memory.status()).folder)
        below = tier_folder(folder, f"shard-{self.shard}")
        pids = await on_daemon_thread(_FILE_WAIT, _working_below, below)
        processes = [_Process(pid) for pid in pids]
        if not processes:
            raise SkippedError(f"no DDict of shard {self.shard} runs")
        if self.kill:
            for process in processes:
                process.end(signal.SIGKILL)
            return None
        for process in processes:
            process.send(signal.SIGSTOP)

        async def end() -> None:
            for process in processes:
                process.end(signal.SIGCONT)

        return end


# ---------------------------------------------------------------------- plans

_Make: TypeAlias = Callable[[random.Random, int, float], Fault]


def _cut(rng: random.Random, shard: int, pause: float) -> Fault:
    how: Cut = rng.choice(("both", "late", "half"))
    # A frame's head is 12 bytes: most cuts are somewhere in its payload, some in the head.
    after = int(rng.choice((1, 8, 60, 1000, 30_000)) * rng.random())
    seconds = rng.uniform(0.05, 1.5)
    return CutConnections(shard=shard, pause=pause, how=how, after=after, seconds=seconds)


ACTIONS: Final[dict[str, _Make]] = {
    "kill": lambda _, shard, pause: KillActor(shard=shard, pause=pause),
    "stop": lambda rng, shard, pause: StopActor(
        shard=shard, pause=pause, seconds=rng.choice((0.2, 1.0, 4.0)) * rng.uniform(0.5, 1.5)
    ),
    "cut": _cut,
    "delay": lambda rng, shard, pause: DelayConnections(
        shard=shard, pause=pause, seconds=rng.uniform(0.2, 1.5), delay=rng.choice((0.01, 0.3))
    ),
    "kill-compactor": lambda _, shard, pause: KillCompactor(shard=shard, pause=pause),
    "stop-host": lambda rng, shard, pause: StopHost(
        shard=shard, pause=pause, seconds=rng.uniform(0.2, 3.0)
    ),
    "kill-host": lambda _, shard, pause: KillHost(shard=shard, pause=pause),
    "fill-disk": lambda rng, shard, pause: FillDisk(
        shard=shard, pause=pause, seconds=rng.uniform(3.0, 10.0)
    ),
    "wedge-ddict": lambda rng, shard, pause: WedgeDDict(
        shard=shard, pause=pause, seconds=rng.uniform(1.0, 10.0), kill=rng.random() < 0.5
    ),
}
"""How each kind of fault is drawn, by the name it has on the command line."""


@dataclass(frozen=True, kw_only=True)
class FaultPlan:
    """The plan of faults; deterministic for the same seed.

    Attributes:
        actions: Names from `ACTIONS` to choose from.
        count: Faults in all.
        seed: Decides them.
        shards: Shards of the cluster.
        pause: Mean seconds between the end of one and the next.
    """

    actions: Sequence[str]
    count: int
    seed: int = 0
    shards: int = 1
    pause: float = 0.5

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.actions) - set(ACTIONS)):
            raise ValueError(
                f"no fault is named {', '.join(unknown)}; there are {', '.join(ACTIONS)}"
            )

    def __iter__(self) -> Iterator[Fault]:
        rng = random.Random(self.seed)  # noqa: S311 - repeatable, not secret
        for _ in range(self.count):
            pause = self.pause * rng.uniform(0.5, 1.5)
            yield ACTIONS[rng.choice(self.actions)](rng, rng.randrange(self.shards), pause)


# ---------------------------------------------------------------------- processes and disks


class _Process:
    """A process that is signalled by pidfd, never another one with a reused pid."""

    def __init__(self, pid: int) -> None:
        try:
            self._fd = os.pidfd_open(pid)
        except ProcessLookupError as error:
            raise SkippedError(f"process {pid} is gone") from error

    def send(self, number: signal.Signals) -> None:
        """Send a signal, unless the process is gone."""
        try:
            signal.pidfd_send_signal(self._fd, number)
        except ProcessLookupError:
            return

    def end(self, number: signal.Signals) -> None:
        """Send the last signal, and release the pidfd."""
        self.send(number)
        os.close(self._fd)


def _stop(pid: int) -> End:
    process = _Process(pid)
    process.send(signal.SIGSTOP)

    async def end() -> None:
        process.end(signal.SIGCONT)

    return end


def compactor_of(actor: int) -> int | None:
    """Find the process that compacts an actor's journal, if there is one."""
    try:
        for task in Path(f"/proc/{actor}/task").iterdir():
            for pid in (task / "children").read_text().split():
                if COMPACTION.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return int(pid)
    except OSError:
        return None  # the actor, a thread of it or the compaction has just ended
    return None


def _fill(ballast: Path) -> None:
    space = os.statvfs(ballast.parent)
    if space.f_blocks * space.f_frsize > LARGEST_FILLED:
        raise SkippedError(
            f"{ballast.parent} is larger than {LARGEST_FILLED >> 20} MiB: not filled"
        )
    block = bytes(1 << 20)
    with ballast.open("wb", buffering=0) as file:
        while block:
            try:
                file.write(block)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                block = block[: len(block) // 2]  # down to the last byte


def _working_below(folder: Path) -> list[int]:
    """The processes that work below a folder, where a DDict's stay."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if not entry.name.isdigit():
                continue
            works = (entry / "cwd").readlink()
        except OSError:
            continue  # it has ended, or is another user's
        if works.is_relative_to(folder):
            found.append(int(entry.name))
    return found
