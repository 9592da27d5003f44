"""Open files: how many a process may have, and how many of them connections leave to the rest."""

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


def allow_files(wanted: int = WANTED) -> None:
    """Lift this process's soft limit of open files, often 1,024, as far as the hard one allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def is_reserved(descriptor: int) -> bool:
    """Whether a connection has to give its descriptor back, for few others are left.

    A new descriptor is the lowest that is free, so its number tells how many are taken, whoever
    in the process has them.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft != resource.RLIM_INFINITY and descriptor >= soft - min(RESERVED, soft // 4)


def is_out_of_files(error: BaseException) -> bool:
    """Whether something failed because this process, or the system, has no open file to spare."""
    return isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)
