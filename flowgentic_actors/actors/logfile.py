"""The log file of one of our processes: its standard streams go there, within a bound."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path
from typing import Final

from flowgentic_actors.storage.private_files import open_log

LOG_BYTES = 4 << 20
"""Size beyond which a log becomes the previous one, and a new one is begun."""

_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_STREAMS: Final = (1, 2)


class LogHandler(logging.StreamHandler):  # type: ignore[type-arg]  # generic in stubs alone
    """Writes to standard error, and begins another log file beyond a bound.

    Args:
        path: That file. Standard error that goes elsewhere is left alone.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record; see `logging.Handler.emit`."""
        super().emit(record)
        with contextlib.suppress(OSError):  # a full disk, say: the log goes on as it is
            found = os.fstat(_STREAMS[-1])
            if found.st_size > LOG_BYTES and os.path.samestat(found, self._path.stat()):
                self._path.replace(self._path.with_name(f"{self._path.name}.1"))
                send_streams_to(self._path)


def log_to(path: Path, level: int = logging.WARNING) -> None:
    """Log to standard error, and keep the file that it goes to within a bound."""
    logging.basicConfig(format=_FORMAT, level=level, handlers=[LogHandler(path)], force=True)


def send_streams_to(path: Path) -> None:
    """Append standard output and error to a file that only this user can read."""
    with open_log(path) as log:
        for stream in _STREAMS:
            os.dup2(log.fileno(), stream)
