"""Limits on open files: how many a process may have, and how many stay reserved."""

from __future__ import annotations

import errno
import resource
from typing import Final

WANTED: Final = 8192
"""Open files of a process that serves: twice its connections. Not all that a system may allow, some
thousand million say, which the process's children would inherit: there are programs that go through
all numbers up to the limit."""

RESERVED: Final = 256
"""Open files that connections leave to the rest of a process: journals, logs, children."""

NO_FILES: Final = "few open files are left for this process: connections get no more of them"
"""Why a connection is closed whose descriptor `is_reserved`."""


def allow_files(wanted: int = WANTED) -> None:
    """Raise this process's soft limit of open files, often 1,024, to the hard limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def is_reserved(descriptor: int) -> bool:
    """Whether a connection has to be refused, to keep the reserve of descriptors.

    A new descriptor is the lowest that is free, so its number tells how many are taken, wherever
    in the process has them.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft != resource.RLIM_INFINITY and descriptor >= soft - min(RESERVED, soft // 4)


def is_out_of_files(error: BaseException) -> bool:
    """Whether an error means that this process, or the system, has too many open files."""
    return isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)
