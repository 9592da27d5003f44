"""The rendezvous: how the ranks of a job step find the cluster that the first one opens.

    <folder>/                     0700, this user's, on a file system that all nodes see
        <step>-<number>.json      0600: how to attach, or why there is nothing to attach to

The number counts the clusters that one program opens, one after the other: all ranks run the same
program. The first rank removes the file when it closes the cluster; where ranks have not come by
then, the file tells them that they are late.

A process that the first rank starts inherits its variables, and so do several workers of one rank.
So the file names the process that is the first rank; others that take themselves for it attach.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import time
from pathlib import Path
from typing import Final

import msgspec

from flowgentic_actors.actors.process_record import is_alive, started_at
from flowgentic_actors.cluster.client.host_client import describe
from flowgentic_actors.cluster.opener.host_connection import HostConnection
from flowgentic_actors.cluster.persistence.cluster_folders import root_folder, root_locked
from flowgentic_actors.cluster.protocol.handle import Descriptor
from flowgentic_actors.cluster.protocol.host import AttachRank, AwaitRanks, RanksReply
from flowgentic_actors.environment import StepRank, machine
from flowgentic_actors.errors import ClusterOpenError, FlowgenticError, UntrustedPathError
from flowgentic_actors.secret import Secret, concealed, revealed
from flowgentic_actors.storage.private_files import (
    make_folders,
    read_private,
    trusted_path,
    write_private,
)

_FOLDER: Final = ".flowgentic"
_POLL: Final = 0.1
_PATIENCE: Final = 10.0
_WAIT: Final = 5.0
_ANSWER: Final = 3.0  # seconds for a cluster on another machine to answer
_TOLD: Final = 60.0  # seconds between two lines about waiting
_ALONE: Final = 2.0  # seconds from the opening in which some other rank has to have come
_OLD: Final = 31 * 86_400.0  # seconds after which a note is removed

_numbers = itertools.count()

logger = logging.getLogger("flowgentic_actors")


class FirstRank(msgspec.Struct, frozen=True, kw_only=True):
    """The rank whose process opens the cluster.

    Attributes:
        machine: As `environment.machine` names it.
        pid: Of the process.
        started: When it was started, in the kernel's ticks.
    """

    machine: str
    pid: int
    started: int

    @property
    def has_ended(self) -> bool:
        """Whether that process ran on this machine and has ended; False for another machine's."""
        return self.machine == machine() and not is_alive(self.pid, self.started)


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """The note that the first rank publishes for the others.

    Attributes:
        first: Who that is.
        descriptor: How to attach; None when that is not possible.
        local: Whether the first rank has a memory of its own now, as each of them may have.
        error: Why.
        closed: When it closed the cluster, seconds since the Unix epoch; 0 while it is not.
    """

    first: FirstRank
    descriptor: Descriptor | None = None
    local: bool = False
    error: str = ""
    closed: float = 0.0

    @property
    def is_pending(self) -> bool:
        """Whether the cluster is still being opened."""
        return not (self.descriptor or self.local or self.error or self.closed)


class Rendezvous:
    """The rendezvous of one cluster in one job step.

    Args:
        rank: This process's rank.
        folder: A folder that all nodes see; None for the usual one.

    Attributes:
        is_first: Whether this process opens the cluster, and the others attach; after `begin`.
    """

    def __init__(self, rank: StepRank, folder: Path | None) -> None:
        self.rank = rank
        self._folder = folder or Path.home() / _FOLDER
        self._file = self._folder / f"{rank.step}-{next(_numbers)}.json"
        self._connection: HostConnection | None = None
        self._me = FirstRank(machine=machine(), pid=os.getpid(), started=started_at(os.getpid()))
        self._announced = 0.0
        self._missing: tuple[int, ...] = ()
        self.is_first = False

    # ------------------------------------------------------------------ the first rank

    def begin(self, scratch: Path | None) -> None:
        """Become the first rank, unless another running process is it. Blocks.

        What earlier runs left is replaced.

        Args:
            scratch: As in `MemoryConfig`: processes with the same rank are on one node.

        Raises:
            ClusterOpenError: If the folder cannot be used.
        """
        try:
            make_folders(self._folder)
            with root_locked(root_folder(scratch)):
                note = self._read()
                if note is None or note.closed or not self._is_there(note):
                    self._write(Note(first=self._me))
                    self.is_first = True
            self._remove_old()
        except UntrustedPathError as error:
            raise ClusterOpenError(f"{error} (setting: rendezvous)") from error
        except OSError as error:
            raise ClusterOpenError(
                f"cannot use {self._folder}, where the ranks of this step meet: {error}. Set "
                "rendezvous= to a folder that all nodes of the job see"
            ) from error

    @staticmethod
    def _is_there(note: Note) -> bool:
        """Whether the writer of a note may still be running."""
        if note.first.machine == machine():
            return not note.first.has_ended
        # A process has its rank from one on its own machine. An earlier run's first rank, which
        # may have been elsewhere, does not answer any more.
        return note.descriptor is not None and _answers(note.descriptor)

    def announce(
        self, descriptor: Descriptor | None, *, local: bool = False, error: str = ""
    ) -> None:
        """Publish a note for the other ranks; see `Note`. Blocks."""
        self._write(Note(first=self._me, descriptor=descriptor, local=local, error=error))
        self._announced = time.monotonic()

    def _write(self, note: Note) -> None:
        write_private(self._file, Secret(msgspec.json.encode(note, enc_hook=revealed)))

    def _read(self) -> Note | None:
        try:
            return msgspec.json.decode(
                read_private(self._file, secret=True), type=Note, dec_hook=concealed
            )
        except (FileNotFoundError, msgspec.DecodeError):  # none, or one of an older version
            return None

    def _remove_old(self) -> None:
        for file in self._folder.glob("*.json"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - file.stat().st_mtime > _OLD:
                    file.unlink()

    def await_others(self, descriptor: Descriptor, unseen: float, longest: float) -> None:
        """Wait until the other ranks have closed their clusters. Blocks.

        Args:
            descriptor: Of this cluster.
            unseen: Seconds for which to wait for a rank that has not been there yet, when others
                have.
            longest: Seconds in all.
        """
        begun = told = time.monotonic()
        try:
            link = HostConnection(
                descriptor.address, descriptor.secret, descriptor.max_message_bytes, "client"
            )
        except (OSError, FlowgenticError):  # the host is gone: there is nothing to wait for
            return
        try:
            wait = 0.0
            while time.monotonic() - begun < longest:
                answer = link.ask(AwaitRanks(self.rank.size, wait), wait + _PATIENCE)
                ranks = msgspec.msgpack.decode(answer, type=RanksReply)
                self._missing = ranks.missing
                until = begun + unseen
                if len(ranks.missing) == self.rank.size - 1:
                    # None has come: it may be that the first alone has a memory.
                    until = min(until, self._announced + _ALONE)
                wait = min(_WAIT, until - time.monotonic() if ranks.missing else _WAIT)
                if not ranks.present and (not ranks.missing or wait <= 0):
                    return
                wait = max(wait, _POLL)
                if time.monotonic() - told > _TOLD:
                    told = time.monotonic()
                    there = ", ".join(map(str, ranks.present + ranks.missing))
                    logger.info("the memory stays open for the ranks %s of this step", there)
        except (OSError, TimeoutError, FlowgenticError) as error:
            logger.warning("cannot wait for the other ranks of this step: %s", error)
        finally:
            link.close()

    def remove(self) -> None:
        """Remove the note, or mark it as closed for ranks that start later. Blocks."""
        note = self._read()
        if note is None or note.first != self._me:
            return
        if self._missing and note.descriptor is not None:
            self._write(Note(first=self._me, closed=time.time()))
        else:
            self._file.unlink(missing_ok=True)

    # ------------------------------------------------------------------ the others

    def find(self, timeout: float) -> Note:
        """Wait for the first rank's note. Blocks.

        Raises:
            ClusterOpenError: If it tells nothing in time, or that it failed.
        """
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            try:
                data = Secret(read_private(trusted_path(self._file), secret=True))
            except UntrustedPathError as error:
                raise ClusterOpenError(f"{error} (setting: rendezvous)") from error
            except OSError:  # not there yet, or not seen from here yet
                time.sleep(_POLL)
                continue
            note = msgspec.json.decode(data.reveal(), type=Note, dec_hook=concealed)
            if note.is_pending:
                if note.first.has_ended:
                    raise ClusterOpenError(
                        f"rank 0 of this step (pid {note.first.pid}) ended while it opened the "
                        "cluster"
                    )
                time.sleep(_POLL)
                continue
            if note.closed:
                when = time.strftime("%H:%M:%S", time.localtime(note.closed))
                raise ClusterOpenError(
                    f"rank 0 of this step closed its cluster at {when}, when rank "
                    f"{self.rank.rank} had not come yet: let rank 0 keep it open until the others "
                    "are there"
                )
            if note.descriptor is None and not note.local:
                raise ClusterOpenError(f"rank 0 of this step could not open it: {note.error}")
            return note
        raise ClusterOpenError(
            f"rank 0 of this step ({self.rank.step}) opened no cluster within {timeout:g} s "
            f"(setting: open_timeout): rank {self.rank.rank} found no {self._file}. All ranks must "
            "open their clusters in the same order, and see that folder (setting: rendezvous)"
        )

    def enter(self, descriptor: Descriptor) -> None:
        """Mark this rank as present until `leave`. Blocks.

        Raises:
            OSError, FlowgenticError: If the host cannot be reached.
        """
        self._connection = HostConnection(
            descriptor.address, descriptor.secret, descriptor.max_message_bytes, "client"
        )
        self._connection.ask(AttachRank(self.rank.rank), _PATIENCE)

    def leave(self) -> None:
        """Mark this rank as gone."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _answers(descriptor: Descriptor) -> bool:
    try:
        describe(descriptor, _ANSWER)
    except (FlowgenticError, OSError):
        return False
    return True
