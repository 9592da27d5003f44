"""Dragon's DDict itself, as one thread uses it: bytes in its managers' pools, without pickle."""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from flowgentic_actors.dragon.ddict_processes import started_at
from flowgentic_actors.dragon.fixes import with_fixes
from flowgentic_actors.dragon.fixes.sitecustomize import OWNER_VARIABLE
from flowgentic_actors.errors import TierFullError


class DDictClient:
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
        """Keep a value; raises `TierFullError` where there is no room."""
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
        """Fetch a value; None when there is none."""
        if key not in self._room:
            return None
        data: bytes = self._clients[key % self._managers][_pack(key)]
        return data

    def delete(self, keys: Sequence[int]) -> None:
        """Free the room of values; keys that are not there are fine."""
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
        """Serialize a key: bytes already."""
        return key

    @staticmethod
    def loads(key: bytes) -> bytes:
        """Deserialize a key: bytes already."""
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
    """Bytes of a pool that a value of this size takes."""
    return max(64, 1 << (size - 1).bit_length()) if size else 64


def _pack(key: int) -> bytes:
    return struct.pack("<q", key)
