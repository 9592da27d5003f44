"""A disk in memory that crashes when told to, with or without the machine."""

from __future__ import annotations

import random
from pathlib import Path

_SECTOR = 512


class Crash(BaseException):
    """The simulated death of the process. Not an `Exception`: nothing may catch it and go on."""


class _File:
    def __init__(self, data: bytes = b"") -> None:
        self.data = bytearray(data)
        self.synced = bytes(data)


class SimulatedDisk:
    """A `flowgentic_actors.storage.disk.Disk` in memory that can crash.

    Args:
        crash_at: Number of the changing operation (write, truncate, create, sync, rename, unlink)
            at which `Crash` is raised, counting from 0; None for never. A write that crashes is
            half done.
    """

    def __init__(self, crash_at: int | None = None) -> None:
        self._crash_at = crash_at
        self.operations = 0
        self._files: dict[Path, _File] = {}
        self._synced_names: dict[Path, _File] = {}
        # since the last sync of the folder: (name gone, name made, file), in order
        self._name_changes: list[tuple[Path | None, Path | None, _File]] = []
        self._open: dict[int, _File] = {}
        self._next_fd = 3

    # ------------------------------------------------------------------ after a crash

    def after_process_death(self) -> SimulatedDisk:
        """The disk after the death of the process: the kernel keeps what was written."""
        disk = SimulatedDisk()
        disk._files = {path: _File(bytes(file.data)) for path, file in self._files.items()}
        disk._synced_names = dict(disk._files)
        return disk

    def after_power_loss(self, rng: random.Random | None = None) -> SimulatedDisk:
        """The disk after a power loss: what was not synced may be lost.

        Args:
            rng: Decides for each sector and name that was not synced whether it got through;
                None loses all of them.
        """
        disk = SimulatedDisk()
        names = dict(self._synced_names)
        # File systems keep changes of names in order: some beginning of them got through.
        through = rng.randint(0, len(self._name_changes)) if rng else 0
        for gone, made, file in self._name_changes[:through]:
            if gone is not None:
                names.pop(gone, None)
            if made is not None:
                names[made] = file
        for path, file in names.items():
            disk._files[path] = _File(_surviving(file, rng))
        disk._synced_names = dict(disk._files)
        return disk

    # ------------------------------------------------------------------ Disk

    def create(self, path: Path, size: int) -> int:
        """See `Disk.create`."""
        self._step()
        if path in self._files:
            raise FileExistsError(path)
        self._files[path] = _File()
        self._files[path].data = bytearray(size)
        self._name_changes.append((None, path, self._files[path]))
        return self._descriptor(self._files[path])

    def open(self, path: Path) -> int:
        """See `Disk.open`."""
        if path not in self._files:
            raise FileNotFoundError(path)
        return self._descriptor(self._files[path])

    def close(self, fd: int) -> None:
        """See `Disk.close`."""
        del self._open[fd]

    def size(self, fd: int) -> int:
        """See `Disk.size`."""
        return len(self._open[fd].data)

    def read(self, fd: int, count: int, offset: int) -> bytes:
        """See `Disk.read`."""
        return bytes(self._open[fd].data[offset : offset + count])

    def write(self, fd: int, data: bytes, offset: int) -> None:
        """See `Disk.write`."""
        try:
            self._step()
        except Crash:
            self._write(fd, data[: len(data) // 2], offset)
            raise
        self._write(fd, data, offset)

    def allocate(self, fd: int, size: int) -> None:
        """See `Disk.allocate`."""
        self._step()
        data = self._open[fd].data
        data.extend(bytes(max(0, size - len(data))))

    def truncate(self, fd: int, size: int) -> None:
        """See `Disk.truncate`."""
        self._step()
        del self._open[fd].data[size:]

    def sync(self, fd: int) -> None:
        """See `Disk.sync`."""
        self._step()
        self._open[fd].synced = bytes(self._open[fd].data)

    def sync_folder(self, folder: Path) -> None:
        """See `Disk.sync_folder`."""
        self._step()
        assert all(path.parent == folder for path in self._files), "one folder is simulated"
        self._synced_names = dict(self._files)
        self._name_changes.clear()

    def rename(self, source: Path, target: Path) -> None:
        """See `Disk.rename`."""
        self._step()
        self._files[target] = self._files.pop(source)
        self._name_changes.append((source, target, self._files[target]))

    def unlink(self, path: Path) -> None:
        """See `Disk.unlink`."""
        self._step()
        self._name_changes.append((path, None, self._files.pop(path)))

    def names(self, folder: Path) -> list[str]:
        """See `Disk.names`."""
        return sorted(path.name for path in self._files if path.parent == folder)

    def flip(self, path: Path, byte: int, bit: int) -> None:
        """Flip a bit of a file."""
        self._files[path].data[byte] ^= 1 << bit

    def _step(self) -> None:
        if self.operations == self._crash_at:
            raise Crash(f"crashed at operation {self.operations}")
        self.operations += 1

    def _descriptor(self, file: _File) -> int:
        self._next_fd += 1
        self._open[self._next_fd] = file
        return self._next_fd

    def _write(self, fd: int, data: bytes, offset: int) -> None:
        file = self._open[fd].data
        file.extend(bytes(max(0, offset + len(data) - len(file))))
        file[offset : offset + len(data)] = data


def _surviving(file: _File, rng: random.Random | None) -> bytes:
    """The content of a file after a power loss: as synced, with some later sectors."""
    if rng is None:
        return file.synced
    length = rng.choice([len(file.synced), len(file.data)])
    result = bytearray(file.synced[:length].ljust(length, b"\0"))
    for start in range(0, length, _SECTOR):
        if rng.random() < 0.5:
            sector = bytes(file.data[start : min(start + _SECTOR, length)])
            result[start : start + len(sector)] = sector
    return bytes(result)
