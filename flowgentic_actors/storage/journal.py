"""The journal of a shard: a compacted set, and the log after it.

Recovery reads the newest whole set and the segments after it. Two sets are kept, with the segments
since the older one, so a set that is damaged costs nothing but time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from flowgentic_actors.errors import JournalDamagedError, JournalError
from flowgentic_actors.foreign import is_foreign
from flowgentic_actors.storage.compacted_set import CompactedSet, open_newest, open_set, set_names
from flowgentic_actors.storage.disk import Disk
from flowgentic_actors.storage.log import SEGMENT_BYTES, SegmentLog, SyncPlan
from flowgentic_actors.storage.segment import Segment

_URGENT_SHARE: Final = 16  # of a segment: kept for what wins space back when the disk is full


class Obsolete(NamedTuple):
    """The obsolete files of a journal: sets below a name, an open one, segments."""

    sets_before: str
    opened: CompactedSet | None
    segments: tuple[Segment, ...]

    def __bool__(self) -> bool:
        return bool(self.sets_before or self.segments)


class Journal:
    """The journal of one shard. The caller has locked its folder.

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
        self._urgent_bytes = segment_bytes // _URGENT_SHARE
        self._no_space: OSError | None = None

    @property
    def end(self) -> int:
        """The LSN of the next entry."""
        return self._log.end

    @property
    def size(self) -> int:
        """The bytes of entries in the newest set and the log after it."""
        compacted = self._set.bytes if self._set else 0
        return compacted + self._log.bytes_from(self.compacted_to)

    @property
    def compacted_to(self) -> int:
        """The LSN up to which the newest set replaces the log."""
        return self._set.end if self._set else 0

    @property
    def log_from(self) -> int:
        """The LSN of the oldest entry that is still in the log."""
        return self._log.start

    @property
    def newest_set(self) -> Path | None:
        """The file of the newest set, None when there is none."""
        return self._set.path if self._set else None

    @property
    def sealed_to(self) -> int:
        """The LSN up to which the log is sealed, and can be compacted."""
        sealed = self._log.sealed()
        return sealed[-1].end if sealed else 0

    def replay(self) -> Iterator[tuple[int, bytes, bool]]:
        """Yield every entry in order: LSN, payload, and whether it is from the compacted set.

        Raises:
            JournalDamagedError: If an entry is not what was written, and no older set has it.
            JournalError: If a file was written by another version.
        """
        self._set = open_newest(self._disk, self._folder)
        if self._set is not None:
            for lsn, payload in self._set.entries():
                yield lsn, payload, True
        for lsn, payload in self._log.recover(self.compacted_to):
            yield lsn, payload, False

    def read(self, lsn: int) -> bytes:
        """Read the payload of one live entry. Blocks; call it on the thread of `remove`.

        Raises:
            JournalDamagedError: If it is not there, or not what was written.
        """
        payload = self._log.read(lsn)
        if payload is None and self._set is not None:
            payload = self._set.read(lsn)
        if payload is None:
            raise JournalDamagedError(f"{self._folder}: there is no entry {lsn}")
        return payload

    def scan(self, lsn: int, most: int) -> tuple[list[tuple[int, bytes]], int]:
        """Read some entries from an LSN on; returns them and the LSN to continue from; as `read`.

        Args:
            lsn: 0, or where an earlier scan said to go on.
            most: Bytes to read, about.
        """
        if self._set is None or lsn >= self._set.end:
            found = self._log.scan(lsn, most)
            if found is not None:
                return found
        if self._set is None or lsn >= self._set.end:
            raise JournalDamagedError(f"{self._folder}: there is no entry {lsn}")
        return self._set.scan(lsn, most)

    # ------------------------------------------------------------------ space

    def has_room(self, size: int, *, urgent: bool) -> bool:
        """Whether entries of so many bytes, overhead included, fit into what is allocated.

        Args:
            size: Bytes that wait to be appended, those of earlier requests too.
            urgent: Whether they win space back, and so may use what is kept for that.
        """
        return self._log.has_room(size, kept=0 if urgent else self._urgent_bytes)

    @property
    def no_space(self) -> OSError | None:
        """The error of the last attempt to allocate a segment, None when it succeeded."""
        return self._no_space

    def make_room(self, size: int, *, urgent: bool) -> OSError | None:
        """Allocate the next segment, for entries that `has_room` has no room for. Blocks.

        Returns:
            Why that is not possible, None when it is done.
        """
        try:
            self._log.settle()  # which frees what is left of the last segment
            # Urgent entries make do with what that has freed.
            kept, least = (0, self._urgent_bytes // 2) if urgent else (self._urgent_bytes, None)
            self._log.make_room(size + kept, least)
        except OSError as error:
            if is_foreign(error):
                raise
            self._no_space = error
            return error
        return None

    @property
    def room(self) -> int:
        """The bytes of entries that fit into what is allocated, without the reserve."""
        return self._log.room(kept=self._urgent_bytes)

    @property
    def wants_space(self) -> bool:
        """Whether it is time to `prepare`."""
        return self._log.nearly_full()

    def on_begin(self, call: Callable[[], None]) -> None:
        """Set a function that an append calls when it begins a segment: time to `prepare`."""
        self._log.on_begin = call

    def prepare(self) -> None:
        """Finish the last segment's file and allocate the next one's ahead of its need.

        Blocks; callable from any thread. A full disk is no error here: `no_space` tells, until a
        later call succeeds.
        """
        try:
            self._log.settle()
            if self._no_space is not None or self._log.nearly_full():
                self._log.prepare()
        except OSError as error:
            self._no_space = error
        else:
            self._no_space = None

    def drop_older_set(self) -> Obsolete:
        """Drop the older set and the segments that a fall back to it would need.

        Returns:
            What can go, to `remove`.
        """
        if self._set is None:
            return Obsolete("", None, ())
        segments = tuple(self._log.forget_below(self._set.end))
        return Obsolete(self._set.path.name, None, segments)

    # ------------------------------------------------------------------ writing

    def append(self, payloads: Sequence[bytes | memoryview]) -> int:
        """Append entries; when this returns, they survive the death of this process.

        Returns:
            The position to `sync` to.

        Raises:
            JournalError: If they could not be written. Nothing of them is in the journal then.
            OSError: If what was written of them could not be taken back either. What is in the
                file is unknown, and so is what the next opening finds: no caller may be answered,
                and nothing appended any more.
        """
        try:
            self._log.append(payloads)
        except OSError as error:
            if is_foreign(error):
                raise
            self._take_back(error)
        return self._log.end

    def mend(self) -> None:
        """Repair the journal after an `append` that an exception other than a failed write ended.

        Raises:
            JournalError: If the journal cannot be put in order.
            OSError: See `append`.
        """
        try:
            self._log.mend()
        except OSError as error:
            if is_foreign(error):
                raise
            self._take_back(error)

    def plan_sync(self) -> SyncPlan:
        """The plan of a `sync` that brings everything appended so far to the medium."""
        return self._log.plan_sync()

    def sync(self, plan: SyncPlan) -> None:
        """Wait until a plan's entries are on the medium. Blocks; callable from any thread.

        Raises:
            OSError: If that failed; it must not be tried again, but `give_up`.
        """
        self._log.sync(plan)

    def give_up(self, synced: int, error: OSError) -> None:
        """Cut off, after a failed sync, what is not known to be on the medium.

        Args:
            synced: Position up to which it is.
            error: What failed.

        Raises:
            JournalError: If that succeeded.
            OSError: If not; see `append`.
        """
        self._log.truncate_from(synced)
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

    def adopt(self, newest: CompactedSet) -> Obsolete:
        """Replace the compacted set by a new one.

        Returns:
            What two sets make needless, to `remove`.
        """
        previous = self._set
        self._set = newest
        if previous is None:
            return Obsolete("", None, ())
        segments = tuple(self._log.forget_below(previous.end))
        return Obsolete(previous.path.name, previous, segments)

    def remove(self, obsolete: Obsolete) -> None:
        """Remove obsolete files. Blocks; call it on the thread that reads."""
        if obsolete.opened is not None:
            obsolete.opened.close()
        for segment in obsolete.segments:
            segment.close()
            self._disk.unlink(segment.path)
        for name in set_names(self._disk, self._folder):
            if name < obsolete.sets_before:
                self._disk.unlink(self._folder / name)

    def close(self) -> None:
        """Seal the log and close every file."""
        self._log.close()
        if self._set is not None:
            self._set.close()
            self._set = None

    def detach(self) -> None:
        """Close every file without a change: they belong to another process now."""
        self._log.detach()
        if self._set is not None:
            self._set.close()
            self._set = None

    def _take_back(self, error: OSError) -> None:
        self._log.take_back()
        raise JournalError(
            f"cannot write the journal in {self._folder}: {error}. Free space there, or set "
            "scratch= to another folder"
        ) from error
