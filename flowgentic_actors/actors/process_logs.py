"""The ends of process logs, for error messages and for the program's log."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from flowgentic_actors.storage.private_files import open_private

_TAIL: Final = 4000  # bytes of one file
_LINE: Final = 400  # characters


def log_tail(*files: Path) -> str:
    """The ends of log files; files that cannot be read are left out. Blocks."""
    tails = []
    for file in files:
        try:
            with os.fdopen(open_private(file, os.O_RDONLY), "rb") as log:
                log.seek(max(0, os.fstat(log.fileno()).st_size - _TAIL))
                tails.append(log.read().decode(errors="replace").strip())
        except OSError:
            continue
    return "\n".join(filter(None, tails))


def last_line(tail: str) -> str:
    """The last line of a log: of a traceback, that is the exception. Empty for an empty log."""
    lines = tail.rstrip().splitlines()
    return lines[-1].strip()[:_LINE] if lines else ""


def with_last_line(text: str, tail: str) -> str:
    """Add the last line of a log to a text that does not have it."""
    line = last_line(tail)
    known = not line or line.rpartition("Error: ")[2] in text
    return text if known else f"{text}. The last line of its log: {line}"
