"""Where the ranks of one job step find the cluster that the first of them opens.

    <folder>/                     0700, this user's, on a file system that all nodes see
        <step>-<number>.json      0600: how to attach, or why there is nothing to attach to

The number counts the clusters that one program opens, one after the other: all ranks run the same
program. The first rank removes the file when it closes the cluster.
"""

from __future__ import annotations

import itertools
import logging
import os
import stat
import time
from pathlib import Path
from typing import Final

import msgspec

from flowgentic_actors.cluster.handle import Descriptor
from flowgentic_actors.cluster.hostlink import HostLink
from flowgentic_actors.cluster.protocol import AwaitRanks, Enter, RanksReply
from flowgentic_actors.environment import StepRank
from flowgentic_actors.errors import ClusterOpenError, FlowgenticError
from flowgentic_actors.storage.private import write_private

_FOLDER: Final = ".flowgentic"
_POLL: Final = 0.1
_PATIENCE: Final = 10.0
_WAIT: Final = 5.0
_TOLD: Final = 60.0  # seconds between two lines about waiting

_numbers = itertools.count()

logger = logging.getLogger("flowgentic_actors")


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """What the first rank tells the others.

    Attributes:
        descriptor: How to attach; None when that is not possible.
        local: Whether the first rank has a memory of its own now, as each of them may have.
        error: Why.
    """

    descriptor: Descriptor | None = None
    local: bool = False
    error: str = ""


class Rendezvous:
    """The place of one cluster of one step.

    Args:
        rank: This process's rank.
        folder: A folder that all nodes see; None for the usual one.
    """

    def __init__(self, rank: StepRank, folder: Path | None) -> None:
        self.rank = rank
        self._folder = folder or Path.home() / _FOLDER
        self._file = self._folder / f"{rank.step}-{next(_numbers)}.json"
        self._link: HostLink | None = None

    # ------------------------------------------------------------------ the first rank

    def begin(self) -> None:
        """Remove what an earlier run of the step left. Blocks.

        Raises:
            ClusterOpenError: If the folder cannot be used.
        """
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = self._folder.stat()
            if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o022:
                raise ClusterOpenError(
                    f"{self._folder} must belong to this user, and nobody else may write there: it "
                    "tells the ranks of this step where the memory is (setting: rendezvous)"
                )
            self._file.unlink(missing_ok=True)
        except OSError as error:
            raise ClusterOpenError(
                f"cannot use {self._folder}, where the ranks of this step meet: {error}. Set "
                "rendezvous= to a folder that all nodes of the job see"
            ) from error

    def announce(self, note: Note) -> None:
        """Tell the others. Blocks."""
        write_private(self._file, msgspec.json.encode(note))

    def await_others(self, descriptor: Descriptor, unseen: float, longest: float) -> None:
        """Wait until the other ranks have closed their clusters. Blocks.

        Args:
            descriptor: Of this cluster.
            unseen: Seconds for which to wait for a rank that has not been there yet.
            longest: Seconds in all.
        """
        begun = told = time.monotonic()
        try:
            link = HostLink(
                descriptor.address, descriptor.secret, descriptor.max_message_bytes, "client"
            )
        except (OSError, FlowgenticError):  # the host is gone: there is nothing to wait for
            return
        try:
            while time.monotonic() - begun < longest:
                answer = link.ask(AwaitRanks(self.rank.size, _WAIT), _WAIT + _PATIENCE)
                ranks = msgspec.msgpack.decode(answer, type=RanksReply)
                late = ranks.missing and time.monotonic() - begun < unseen
                if not ranks.present and not late:
                    return
                if time.monotonic() - told > _TOLD:
                    told = time.monotonic()
                    there = ", ".join(map(str, ranks.present + ranks.missing))
                    logger.info("the memory stays open for the ranks %s of this step", there)
        except (OSError, TimeoutError, FlowgenticError) as error:
            logger.warning("cannot wait for the other ranks of this step: %s", error)
        finally:
            link.close()

    def remove(self) -> None:
        """There is nothing to find any more. Blocks."""
        self._file.unlink(missing_ok=True)

    # ------------------------------------------------------------------ the others

    def find(self, timeout: float) -> Note:
        """Wait for what the first rank tells. Blocks.

        Raises:
            ClusterOpenError: If it tells nothing in time, or that it failed.
        """
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            try:
                found = self._file.stat()
                data = self._file.read_bytes()
            except OSError:  # not there yet, or not seen from here yet
                time.sleep(_POLL)
                continue
            if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
                raise ClusterOpenError(f"{self._file} is not private to this user: not trusted")
            note = msgspec.json.decode(data, type=Note)
            if note.descriptor is None and not note.local:
                raise ClusterOpenError(f"rank 0 of this step could not open it: {note.error}")
            return note
        raise ClusterOpenError(
            f"rank 0 of this step ({self.rank.step}) opened no cluster within {timeout:g} s "
            f"(setting: open_timeout): rank {self.rank.rank} found no {self._file}. All ranks must "
            "open their clusters in the same order, and see that folder (setting: rendezvous)"
        )

    def enter(self, descriptor: Descriptor) -> None:
        """Be there, until `leave`. Blocks.

        Raises:
            OSError, FlowgenticError: If the host cannot be reached.
        """
        self._link = HostLink(
            descriptor.address, descriptor.secret, descriptor.max_message_bytes, "client"
        )
        self._link.ask(Enter(self.rank.rank), _PATIENCE)

    def leave(self) -> None:
        """Be there no longer."""
        if self._link is not None:
            self._link.close()
            self._link = None
