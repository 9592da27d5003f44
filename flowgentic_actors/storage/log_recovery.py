"""The recovery of a log: what of its segments is valid, and is read again.

A torn tail is cut off when the log is opened; damage is refused rather than served or dropped. A
segment that is complete, and synced in a log that is, is named `.sealed`; until then `.seg`. When
the machine itself went down since (the boot id tells), what is in a `.seg` may be anything, as its
pages reach the medium in any order. Everything from the first bad entry on is cut then, later
segments included: none of it was acknowledged as on disk.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator
from pathlib import Path

from flowgentic_actors.errors import JournalDamagedError
from flowgentic_actors.storage.disk import Disk
from flowgentic_actors.storage.segment import ACTIVE, SEALED, SPARE, Segment

logger = logging.getLogger(__name__)


def boot_id() -> bytes:
    """An id of this machine's current boot, 16 bytes; zeros where it is unknown."""
    try:
        text = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    except OSError:
        return bytes(16)
    return bytes.fromhex(text.strip().replace("-", ""))


class Recovery:
    """Opens the segments of a log, and yields their entries.

    Args:
        disk: File operations.
        folder: Folder of the segments.
        segments: Takes each segment that is opened, oldest first; the caller closes them.
        boot: What tells this start of the machine from others.
        cuts: Whether to log what is cut off.

    Attributes:
        end: LSN after the last valid entry, once all were yielded.
        lost_some: Whether the machine went down and took what was not sealed.
    """

    def __init__(
        self, disk: Disk, folder: Path, segments: list[Segment], *, boot: bytes, cuts: bool
    ) -> None:
        self._disk = disk
        self._folder = folder
        self._segments = segments
        self._boot = boot
        self._cuts = cuts
        self.end = 0
        self.lost_some = False

    def entries(self, start: int) -> Iterator[tuple[int, bytes]]:
        """Yield (LSN, payload) of every entry from an LSN on; see `SegmentLog.recover`."""
        names = self._disk.names(self._folder)
        paths = [self._folder / name for name in names if name.endswith((ACTIVE, SEALED))]
        spares = [self._folder / name for name in names if name.endswith(SPARE)]
        expected, whole = start, True
        while paths and whole:
            segment = Segment.open(self._disk, paths.pop(0))
            self._segments.append(segment)
            if segment.first > expected:
                raise JournalDamagedError(
                    f"{self._folder}: the log from {expected} to {segment.first} is missing; "
                    "restore the folder from a copy"
                )
            whole = yield from self._entries_of(segment, start, last=not paths)
            expected = max(expected, segment.end)
        for path in paths:  # written after what the machine lost, and never acknowledged
            self._disk.unlink(path)
        self.end = yield from self._unnamed(spares, start, expected)

    def _entries_of(
        self, segment: Segment, start: int, *, last: bool
    ) -> Generator[tuple[int, bytes], None, bool]:
        """Yield the entries of one segment; returns whether all of it is valid."""
        whole = True
        for lsn, payload in segment.entries():
            if payload is None:
                whole = False
                self._cut(segment, last=last, rebooted=segment.boot != self._boot)
            elif lsn >= start:
                yield lsn, payload
        return whole

    def _unnamed(
        self, paths: list[Path], start: int, expected: int
    ) -> Generator[tuple[int, bytes], None, int]:
        """Yield the entries of segments that were not named yet, and remove empty files."""
        begun: list[Segment] = []
        try:
            for path in paths:
                if (segment := Segment.open_spare(self._disk, path)) is None:
                    self._disk.unlink(path)
                else:
                    begun.append(segment)
            while found := next((each for each in begun if each.begins_at(expected)), None):
                begun.remove(found)
                self._segments.append(found)
                yield from self._entries_of(found, start, last=True)
                expected = found.end
            # The first append to each of these was interrupted, or the machine lost some of it.
            for segment in begun:
                self._cut(segment, last=True, rebooted=segment.boot != self._boot)
                self._disk.unlink(segment.path)
        finally:
            for segment in begun:
                segment.close()
        return expected

    def _cut(self, segment: Segment, *, last: bool, rebooted: bool) -> None:
        """Cut off what follows a segment's last good entry, or raise if it is damage."""
        if segment.sealed or not (last or rebooted):
            raise segment.damage(segment.end)
        if not rebooted:
            segment.check_torn()
        self.lost_some = self.lost_some or rebooted
        if self._cuts and (torn := segment.bytes_after_end()):
            logger.warning("%s: cut %d bytes of an interrupted append", segment.path, torn)
