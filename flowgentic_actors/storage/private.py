"""Small files that only this user can read: written anew, or in the place of what is there.

The latter needs no room on a disk that is full. That must not keep an actor from being started
again, or a copy from being promoted, so what has to be noted for that has its room beforehand.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from flowgentic_actors.secret import Secret, plain

_LEAST: Final = 4096  # bytes: less takes as much of a disk


def write_private(path: Path, data: bytes | Secret[bytes]) -> None:
    """Write a file that only this user can read, whole or not at all."""
    temporary = path.with_name(path.name + ".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(plain(data))
    temporary.replace(path)


def overwrite(path: Path, data: bytes | Secret[bytes], least: int = _LEAST) -> None:
    """Put data in the place of what a file holds, and fill up with spaces; it never gets smaller.

    Readable by this user alone. What is cut off in the middle leaves a part of both, so either
    nobody reads it then, or it has to be told. Blocks.

    Args:
        path: The file; made when it is not there.
        data: What to write, without spaces at the end that mean anything.
        least: Bytes that the file has at least, from then on.

    Raises:
        OSError: If that is not possible. There is no room on a full disk for more than the file
            had before.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        content = plain(data)
        size = os.fstat(descriptor).st_size
        if size < len(content) or not size:
            size = max(2 * len(content), least)
        rest = memoryview(content.tobytes().ljust(size))
        while rest:
            rest = rest[os.pwrite(descriptor, rest, size - len(rest)) :]
    finally:
        os.close(descriptor)
