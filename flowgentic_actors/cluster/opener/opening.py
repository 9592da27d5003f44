"""The opening of a cluster for one program: its own, or one that another program opened."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, TypeAlias, TypeVar

from flowgentic_actors.actors.daemon_threads import on_daemon_thread, run_blocking
from flowgentic_actors.cluster.client.attaching import KeptTarget, find_cluster
from flowgentic_actors.cluster.client.cluster_watch import Watched, watched_file
from flowgentic_actors.cluster.client.host_client import describe
from flowgentic_actors.cluster.client.inline import InlineClient
from flowgentic_actors.cluster.client.local_memory import LocalMemory
from flowgentic_actors.cluster.client.opening_log import count_and_tell, tell_new
from flowgentic_actors.cluster.client.remote import RemoteClient
from flowgentic_actors.cluster.job_end import (
    WALLTIME_UNKNOWN,
    refuse_stale,
    watch_stop_file,
    watch_walltime,
)
from flowgentic_actors.cluster.opener.host_watchdog import one_line
from flowgentic_actors.cluster.opener.owner import Owner
from flowgentic_actors.cluster.opener.rendezvous import Rendezvous
from flowgentic_actors.cluster.opener.signals import on_sigterm, on_stop_signal
from flowgentic_actors.cluster.platforms import platform_named
from flowgentic_actors.cluster.protocol.handle import ClusterHandle, Descriptor
from flowgentic_actors.cluster.protocol.host import Description
from flowgentic_actors.config import MemoryConfig
from flowgentic_actors.environment import inside_dragon, processors, scheduler_job, step_rank
from flowgentic_actors.errors import (
    ClusterError,
    ClusterNotFoundError,
    ClusterOpenError,
    DragonUnavailableError,
    FlowgenticError,
    RequestError,
    UntrustedPathError,
)
from flowgentic_actors.event_kinds import EventKind
from flowgentic_actors.foreign import is_foreign

logger = logging.getLogger("flowgentic_actors")

T = TypeVar("T")

Client: TypeAlias = InlineClient | RemoteClient

_MARGIN: Final = 30.0  # for killing and cleaning up beyond a deadline of their own

_said: set[str] = set()


class Opening:
    """Opens a cluster, or attaches to one, and closes what it has opened.

    Args:
        config: The configuration.
        attaches: Whether it attaches to a cluster that another program opened.
        target: What it attaches to, as `attaching.kept` made it.

    Attributes:
        config: The configuration; once attached, completed by that of the cluster's opener.
        client: The client of the cluster, None until it is open.
        handle: The handle of the cluster, None without one.
        closed: Whether it was open, and is closed.
    """

    def __init__(
        self, config: MemoryConfig, *, attaches: bool = False, target: KeptTarget = None
    ) -> None:
        self.config = config
        self.client: Client | None = None
        self.handle: ClusterHandle | None = None
        self.closed = False
        self._attaches = attaches
        self._target = target
        self._owner: Owner | None = None
        self._rendezvous: Rendezvous | None = None
        self._unwatch = threading.Event()

    async def open(self) -> None:
        """Open the cluster, or attach to it; what a failed opening has opened is closed again.

        Raises:
            FlowgenticError: If that failed.
        """
        timeout = self.config.open_timeout + _MARGIN
        try:
            await self._open(timeout)
        except BaseException as error:
            if self.client is not None:
                await self.close(failed=True)
            if not isinstance(error, OSError) or is_foreign(error):
                raise
            if isinstance(error, UntrustedPathError):
                raise ClusterOpenError(str(error)) from error
            # Such as a folder without permission, or on a file system that does not answer.
            raise ClusterOpenError(
                f"the cluster cannot be opened: {type(error).__name__}: "
                f"{str(error) or f'not done after {timeout:g} s'}. Its folders: "
                f"{self.config.folders}"
            ) from error

    async def close(self, *, failed: bool) -> None:
        """Close what is open; a second time does nothing.

        Args:
            failed: Whether the program ends with an error: other ranks are not waited for then.
        """
        if self.closed:
            return  # when the interpreter ended, and what holds it is cleared only now
        try:
            await self._leave_step(failed=failed)
        finally:
            await self._close()

    async def _open(self, timeout: float) -> None:
        if self._attaches:
            self.client = await _open_or_close(self._attach, _close_blocking, timeout)
            return
        inside_job = inside_dragon() or scheduler_job() is not None
        reason: str | None = ""
        if self.config.wants_processes(inside_job=inside_job):
            reason = await self._open_in_step(timeout)
        if self.client is None:
            stop_file = await on_daemon_thread(timeout, refuse_stale, self.config.stop_file)
            self.client = await self._open_local(timeout)
            if reason:
                self._fall_back(reason, self.client)
            self._watch_for_the_end(self.client, stop_file)

    async def _close(self) -> None:
        owner = self._owner  # kept until it is closed: this may be interrupted, and begun again
        self._unwatch.set()
        try:
            if self.client is not None:
                await self.client.close()
                self._forget_signals(self.client)
        finally:
            if owner is not None:
                timeout = self.config.close_timeout + _MARGIN
                try:
                    began = time.monotonic()
                    trouble = await on_daemon_thread(timeout, owner.close)
                    took = time.monotonic() - began
                finally:
                    self._forget_signals(owner)
                if on_sigterm.received:  # all of them are closed first, then the signal ends us
                    await on_daemon_thread(timeout, on_sigterm.done.wait, timeout)
                    await asyncio.sleep(_MARGIN)
                if trouble:
                    logger.warning(
                        "cluster %s did not end in order: %s. Closing took %.1f s, of which an "
                        "orderly end may take %g s (setting: close_timeout); what was left of it "
                        "was killed",
                        owner.handle.name,
                        trouble,
                        took,
                        self.config.close_timeout,
                    )
            self._owner = None
            self.closed = self.client is not None

    # ------------------------------------------------------------------ the ranks of a step

    async def _open_in_step(self, timeout: float) -> str | None:
        """Open a distributed cluster, or attach to the one that the first rank of the step opens.

        Returns:
            Why it has to be a local one, None when it need not be.
        """
        rank = step_rank()
        if rank is None:
            return await self._open_distributed(timeout)
        place = await on_daemon_thread(timeout, Rendezvous, rank, self.config.rendezvous)
        self._rendezvous = place
        if rank.rank == 0:
            await on_daemon_thread(timeout, place.begin, self.config.scratch)
        if not place.is_first:
            found = await _open_or_close(
                partial(self._attach_in_step, place), partial(_leave_blocking, place), timeout
            )
            if isinstance(found, str):
                return found
            self.client = found
            return None
        try:
            reason = await self._open_distributed(timeout)
        except BaseException as error:
            self._rendezvous = None  # what is announced stays, for ranks that come later
            told = f"{type(error).__name__}: {error}"
            try:
                await on_daemon_thread(timeout, place.announce, None, error=told)
            except OSError as untold:
                error.add_note(f"The other ranks of this step were not told: {untold}")
            raise
        descriptor, local = self._owner.descriptor if self._owner else None, self._owner is None
        await on_daemon_thread(timeout, place.announce, descriptor, local=local, error=reason or "")
        return reason

    def _attach_in_step(self, place: Rendezvous) -> RemoteClient | str:
        """The client of the first rank's cluster, or the reason for a local one."""
        note = place.find(self.config.open_timeout)
        descriptor = note.descriptor
        if descriptor is None:
            reason = f"rank 0 of this step: {note.error}"
            if not self.config.may_fall_back:
                raise ClusterOpenError(f"there is no cluster to attach to. {reason}")
            return reason
        try:
            description = describe(descriptor, self.config.request_timeout)
            self._complete_config(description)
            place.enter(descriptor)
            return self._remote(descriptor, description, watched_file(descriptor))
        except BaseException as error:
            place.leave()
            # One that answers, and has another index, is not silent.
            if isinstance(error, ClusterOpenError) or not isinstance(
                error, FlowgenticError | OSError
            ):
                raise
            raise ClusterNotFoundError(
                f"the cluster {descriptor.name!r} that rank 0 of this step opened does not answer: "
                f"{error}"
            ) from error

    async def _leave_step(self, *, failed: bool) -> None:
        """Let the first rank close the cluster; as the first, wait until the others have."""
        place, self._rendezvous = self._rendezvous, None
        if place is None:
            return
        config, descriptor = self.config, self._owner.descriptor if self._owner else None
        longest = config.ranks_timeout
        if not place.is_first:
            place.leave()
            return
        if descriptor is not None and not failed:
            await on_daemon_thread(
                longest + _MARGIN, place.await_others, descriptor, config.open_timeout, longest
            )
        await on_daemon_thread(_MARGIN, place.remove)

    # ------------------------------------------------------------------ local and distributed

    async def _open_local(self, timeout: float) -> InlineClient:
        config = self.config
        name = config.name or f"local-{os.getpid()}"
        if config.persist_path is None:
            if config.acknowledged.durable:
                raise ClusterOpenError(
                    f"ack={config.ack!r} promises to survive the loss of power, and a local "
                    "cluster without persist_path has no journal: set persist_path=, or "
                    "mode='distributed'"
                )
            return InlineClient(config, name)
        memory = await on_daemon_thread(timeout, LocalMemory, config, config.persist_path, name)
        try:
            await _open_or_close(memory.open, lambda _: memory.close(), timeout)
        except BaseException:
            memory.stop_opening()
            raise
        return InlineClient(config, name, memory)

    async def _open_distributed(self, timeout: float) -> str | None:
        """Open a distributed cluster, or return the reason for a local one."""
        platform = platform_named(self.config.spawner)
        reason = await on_daemon_thread(timeout, platform.why_not)
        if reason is None:
            await on_daemon_thread(timeout, processors)  # it reads files; the client asks again
            owner = Owner(self.config, platform)
            try:
                description = await _open_or_close(owner.open, lambda _: owner.close(), timeout)
            except ClusterError as error:
                falls_back = platform.falls_back and self.config.may_fall_back
                if owner.host_log:
                    level = logging.INFO if falls_back else logging.ERROR
                    logger.log(level, "the log of its host ends with:\n%s", owner.host_log)
                if not (falls_back and isinstance(error, ClusterOpenError)):
                    raise
                return str(error)
            assert owner.descriptor is not None
            self._owner, self.handle = owner, owner.handle
            try:
                self.client = client = self._remote(owner.descriptor, description)
                on_sigterm.add(owner, partial(self._end_by_signal, owner, client))
                self._heed_warnings(owner)
                if description.found:
                    await count_and_tell(client, description.memory, description.found)
                elif self.config.persist_path is not None:
                    tell_new(description.memory)
            except BaseException:
                await self._close()
                raise
            return None
        if not self.config.may_fall_back:
            raise DragonUnavailableError(f"Dragon not available: {reason}")
        return reason

    @staticmethod
    def _end_by_signal(owner: Owner, client: RemoteClient) -> None:
        try:
            owner.close()
        finally:
            client.end("signal SIGTERM")

    def _heed_warnings(self, owner: Owner) -> None:
        warning = self.config.stop_signal
        if warning is not None:
            on_stop_signal[warning].add(owner, lambda: owner.end(f"signal {warning}"))

    @staticmethod
    def _forget_signals(key: object) -> None:
        for actions in (on_sigterm, *on_stop_signal.values()):
            actions.remove(key)

    def _watch_for_the_end(self, client: InlineClient, stop_file: Path | None) -> None:
        """Watch the job's end for a local cluster, as a host does for a distributed one."""
        config = self.config
        # Without a journal nothing is left to close, and the kernel's own action ends a program at
        # once, but not the first of a PID namespace, as in a container.
        if config.persist_path is not None or os.getpid() == 1:
            on_sigterm.add(client, lambda: client.close_now("signal SIGTERM"))
        warning = config.stop_signal
        if warning is not None:
            on_stop_signal[warning].add(client, lambda: client.end(f"signal {warning}"))
        if stop_file is not None:
            watch_stop_file(stop_file, self._unwatch, client.end)
        if config.walltime_margin is not None:
            watch_walltime(
                config.walltime_margin,
                self._unwatch,
                client.end,
                lambda: client.event(EventKind.WALLTIME_UNKNOWN, WALLTIME_UNKNOWN),
            )

    def _fall_back(self, reason: str, client: InlineClient) -> None:
        if missing := self.config.without_effect_locally:
            reason += f". Without effect in this process: {', '.join(missing)}"
        client.event(EventKind.FALLBACK_TO_LOCAL, reason)
        if reason not in _said:
            _said.add(reason)
            logger.warning(
                "Dragon not available - using local fallback: the memory is in this process and "
                "ends with it. Reason: %s (all of it: event fallback_to_local; to fail instead: "
                "fallback_to_local=False)",
                one_line(reason),
            )

    def _attach(self) -> RemoteClient:
        descriptor, watched, self.handle = find_cluster(self._target, self.config.scratch)
        try:
            description = describe(descriptor, self.config.request_timeout)
        except RequestError as error:
            raise ClusterNotFoundError(
                f"the cluster {descriptor.name!r} does not answer: {error}"
            ) from error
        self._complete_config(description)
        return self._remote(descriptor, description, watched)

    def _complete_config(self, description: Description) -> None:
        """Complete the configuration with the settings of the cluster's opener."""
        if description.shared is not None:
            self.config = description.shared.completed(self.config)

    def _remote(
        self, descriptor: Descriptor, description: Description, watched: Watched | None = None
    ) -> RemoteClient:
        config = self.config
        return RemoteClient(
            descriptor,
            description,
            config.request_timeout,
            config.connection_pool,
            watched,
            logs=self._owner is None,
            allowed_types=config.allowed_types,
            stay_awake=config.stay_awake,
        )


async def _open_or_close(
    open_it: Callable[[], T], close_it: Callable[[T], object], timeout: float
) -> T:
    """Open on a thread; if this task is cancelled meanwhile, the thread closes it again."""
    lock, abandoned = threading.Lock(), False
    opened: list[T] = []

    def open_or_close() -> T:
        result = open_it()
        with lock:
            opened.append(result)
            keep = not abandoned
        if not keep:
            close_it(result)
        return result

    try:
        return await on_daemon_thread(timeout, open_or_close)
    except BaseException as error:
        with lock:
            abandoned = True
            late = [*opened]
        for result in late:  # opened in the very moment in which this task was cancelled
            threading.Thread(target=close_it, args=(result,), daemon=True).start()
        if isinstance(error, TimeoutError) and not is_foreign(error):
            raise ClusterOpenError(
                f"opening the cluster hangs: not done after {timeout:g} s"
            ) from error
        raise


def _close_blocking(client: RemoteClient) -> None:
    run_blocking(client.close)


def _leave_blocking(place: Rendezvous, found: RemoteClient | str) -> None:
    place.leave()
    if not isinstance(found, str):
        _close_blocking(found)
