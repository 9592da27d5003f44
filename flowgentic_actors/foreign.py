"""Distinguishes own errors from asynchronous ones: of signal handlers and other threads.

A signal handler may raise at any instruction, often `TimeoutError`, which is an `OSError`: it must
not be handled as an error of a socket or a disk.
"""

from __future__ import annotations

import signal
from functools import partial
from types import CodeType, FrameType
from typing import Final

_PACKAGE: Final = "flowgentic_actors"
_MODULES: Final = (
    "builtins",
    "ssl",
    "socket",
    _PACKAGE,
)  # of the exception classes that this package handles


def is_foreign(error: BaseException) -> bool:
    """Whether an exception was raised by a signal's handler, or set by another thread.

    Only for exceptions about to be handled as the operating system's or this package's.
    """
    if type(error).__module__.partition(".")[0] not in _MODULES:
        return True
    if isinstance(error, OSError) and error.errno is not None:
        return False  # the operating system's errors have a number; not so a socket's timeout
    frames = _frames(error)
    if not frames:
        return False
    if not error.args:  # set by another thread; own errors have a text, asyncio's have none
        return str(frames[-1].f_globals.get("__name__")).partition(".")[0] == _PACKAGE
    codes = {frame.f_code for frame in frames}
    return any(_code_of(signal.getsignal(number)) in codes for number in signal.valid_signals())


def _frames(error: BaseException) -> list[FrameType]:
    """The frames of an exception's traceback, outermost first."""
    found, traceback = [], error.__traceback__
    while traceback is not None:
        found.append(traceback.tb_frame)
        traceback = traceback.tb_next
    return found


def _code_of(handler: object) -> CodeType | None:
    while isinstance(handler, partial):
        handler = handler.func
    code = getattr(handler, "__code__", None) or getattr(type(handler).__call__, "__code__", None)
    return code if isinstance(code, CodeType) else None
