"""The journal of a shard: a compacted set, and the log from there on.

Recovery reads the newest whole set and the segments after it. Two sets are kept, with the segments
since the older one, so a set that is damaged costs nothing but time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from flowgentic_actors.errors import JournalDamagedError, JournalError
from flowgentic_actors.storage.disk import Disk
from flowgentic_actors.storage.log import SEGMENT_BYTES, Segment, SegmentLog, SyncPlan
from flowgentic_actors.storage.sets import CompactedSet, open_newest, open_set, set_names

EXIT_JOURNAL: Final = 74
"""Exit code of a process that could neither write its journal nor take the attempt back."""


class Needless(NamedTuple):
    """What a journal does not need any more: sets named below a name, and segments."""

    sets_before: str
    segments: tuple[Segment, ...]


class Journal:
    """One shard's journal. Its folder must be locked by whoever opens it.

    Call `replay` to its end before the first `append`.

    Args:
        disk: File operations.
        folder: The shard's folder.
        durable: Whether callers `sync` what they write.
        segment_bytes: Size of a segment.
    """

    def __init__(
        self, disk: Disk, folder: Path, *, durable: bool, segment_bytes: int = SEGMENT_BYTES
    ) -> None:
        self._disk = disk
        self._folder = folder
        self._log = SegmentLog(disk, folder, durable=durable, segment_bytes=segment_bytes)
        self._set: CompactedSet | None = None

    @property
    def size(self) -> int:
        """Bytes of entries in the newest set and the log after it."""
        compacted = self._set.bytes if self._set else 0
        return compacted + self._log.bytes_from(self.compacted_to)

    @property
    def compacted_to(self) -> int:
        """LSN up to which the newest set replaces the log."""
        return self._set.end if self._set else 0

    @property
    def sealed_to(self) -> int:
        """LSN up to which the log is sealed, and can be compacted."""
        sealed = self._log.sealed()
        return sealed[-1].end if sealed else 0

    def replay(self) -> Iterator[tuple[bytes, bool]]:
        """Yield every entry's payload in order, and whether it is from the compacted set.

        Raises:
            JournalDamagedError: If an entry is not what was written, and no older set has it.
            JournalError: If a file was written by another version.
        """
        self._set = open_newest(self._disk, self._folder)
        if self._set is not None:
            for _, payload in self._set.entries():
                yield payload, True
        for _, payload in self._log.recover(self.compacted_to):
            yield payload, False

    def append(self, payloads: Sequence[bytes]) -> int:
        """Append entries; when this returns, they survive the death of this process.

        Returns:
            The position to `sync` to.

        Raises:
            JournalError: If they could not be written. Nothing of them is in the journal then.
        """
        try:
            self._log.append(payloads)
        except OSError as error:
            self._take_back(error)
        return self._log.end

    def plan_sync(self) -> SyncPlan:
        """What to `sync` so that everything appended so far is on the medium."""
        return self._log.plan_sync()

    def sync(self, plan: SyncPlan) -> None:
        """Wait until it is. Blocks; callable from any thread.

        Raises:
            OSError: If that failed; it must not be tried again, but `give_up`.
        """
        self._log.sync(plan)

    def prepare(self) -> None:
        """Make the next segment's file ahead of its need. Blocks; callable from any thread."""
        self._log.prepare()

    def give_up(self, synced: int, error: OSError) -> None:
        """After a failed sync: cut off what is not known to be on the medium.

        Args:
            synced: Position up to which it is.
            error: What failed.

        Raises:
            JournalError: Always.
        """
        self._log.cut(synced)
        self._take_back(error)

    def check(self, path: Path) -> CompactedSet:
        """Open a set that was written for this journal. Blocks; callable from any thread.

        Raises:
            JournalDamagedError: If it is not whole.
        """
        found = open_set(self._disk, path)
        if found is None:
            raise JournalDamagedError(f"the compacted set {path} is not whole")
        return found

    def adopt(self, newest: CompactedSet) -> Needless:
        """Use a set from now on.

        Returns:
            What two sets make needless, to `remove`.
        """
        previous = self._set
        self._set = newest
        if previous is None:
            return Needless("", ())
        previous.close()
        return Needless(previous.path.name, tuple(self._log.forget_below(previous.end)))

    def remove(self, needless: Needless) -> None:
        """Remove what `adopt` found needless. Blocks; callable from any thread."""
        for segment in needless.segments:
            self._disk.close(segment.fd)
            self._disk.unlink(segment.path)
        for name in set_names(self._disk, self._folder):
            if name < needless.sets_before:
                self._disk.unlink(self._folder / name)

    def close(self) -> None:
        """Seal the log and close every file."""
        self._log.close()
        if self._set is not None:
            self._set.close()
            self._set = None

    def _take_back(self, error: OSError) -> None:
        try:
            self._log.take_back()
        except OSError:
            # What is in the file now is unknown, so is what a restart will find: answer nobody.
            os._exit(EXIT_JOURNAL)
        raise JournalError(
            f"cannot write the journal in {self._folder}: {error}. Free space there, or set "
            "scratch= to another folder"
        ) from error
