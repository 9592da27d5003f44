"""Interruption of a piece of work at every possible instruction, or at random times.

As Ctrl-C does, and the time limits of Celery or pytest-timeout, which are signal handlers that
raise.
"""

from __future__ import annotations

import asyncio
import dis
import gc
import random
import signal
import sys
import traceback
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Protocol

_MOST = 1_000_000
# `__repr__` is of a socket that was left open
_FINALIZERS = {"__del__", "__repr__", "_before_others", "_after_others"}
_WEAK = {c.__init__.__code__.co_filename for c in (weakref.WeakSet, weakref.WeakValueDictionary)}
_LATER = 1e-4

# An exception in asyncio's own `call_soon` loses the wake-up of a task, which nothing brings back.
_SPARED = (__file__, str(Path(asyncio.__file__).parent))


class Interruption(Exception):  # noqa: N818 - what interrupts is no error of the work
    """The exception that interrupts a piece of work."""


class SwallowedInterruptionError(AssertionError):
    """Interrupted work went on as if it had not been interrupted."""


# ---------------------------------------------------------------------- at every instruction


@lru_cache(maxsize=4096)
def _interruptible(code: CodeType) -> frozenset[int]:
    """The offsets of instructions before which Python raises asynchronous exceptions.

    It looks for signals and the like when a function begins or goes on, after a call, and at the
    end of a loop's body. Anywhere else, its own bookkeeping of handled exceptions is not prepared.
    """
    bytecode = dis.Bytecode(code)
    instructions = list(bytecode)
    entries = bytecode.exception_entries  # type: ignore[attr-defined]  # not in typeshed yet

    def handler(of: dis.Instruction) -> int | None:
        handlers = (e.target for e in entries if e.start <= of.offset < e.end)
        return next(handlers, None)

    begins = {i.offset for i in instructions if i.opname in ("RESUME", "JUMP_BACKWARD")}
    after = {
        following.offset
        for call, following in pairwise(instructions)
        if call.opname in ("CALL", "CALL_KW", "CALL_FUNCTION_EX")
        and handler(call) == handler(following)  # it is the call that raises
    }
    return frozenset(begins | after)


class Injector:
    """Raises an exception before the n-th interruptible instruction of this thread.

    Args:
        at: The number of that instruction, from 0.
        error: What to raise.
        within: Whether a call, and all that it calls, is of interest. Default: all.

    Attributes:
        error: What is raised.
        raised: Whether that instruction was reached.
        count: Such instructions so far.
        where: Where it was raised.
    """

    def __init__(
        self,
        at: int,
        error: BaseException,
        within: Callable[[CodeType], bool] = lambda _: True,
    ) -> None:
        self._at = at
        self.error = error
        self._within = within
        self._depth = 0
        self.raised = False
        self.count = 0
        self.where = ""

    def _called(self, frame: FrameType, _event: str, _argument: Any) -> Any:
        code = frame.f_code
        if code.co_filename.startswith(_SPARED) or (not self._depth and not self._within(code)):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        self._depth += 1
        return self._stepped

    def _stepped(self, frame: FrameType, event: str, _argument: Any) -> Any:
        if event == "return":
            self._depth -= 1
        if event == "opcode" and frame.f_lasti in _interruptible(frame.f_code):
            if self.count == self._at and not self.raised:
                self.raised = True
                self.where = f"{frame.f_code.co_qualname}:{frame.f_lineno}"
                raise self.error  # which ends the tracing, too
            self.count += 1
        return self._stepped

    @contextmanager
    def on(self) -> Iterator[None]:
        """A context in which the exception is raised."""
        before = sys.gettrace()
        sys.settrace(self._called)
        try:
            yield
        finally:
            sys.settrace(before)


def interrupt_at_every_instruction(
    work: Callable[[int], object],
    check: Callable[[int], None],
    *,
    error: type[BaseException] = Interruption,
) -> int:
    """Repeat a piece of work, interrupted before another of its instructions each time.

    Args:
        work: The work, given the number of the run.
        check: Called after each run, with its number: raises if something is not as it must be.
        error: What interrupts it.

    Returns:
        At how many instructions it was interrupted; the run after those ended without.

    Raises:
        SwallowedInterruptionError: If the work went on, or raised something else.
    """
    for run in range(_MOST):
        injector = Injector(run, error(f"at instruction {run}"))
        caught: BaseException | None = None
        try:
            with injector.on():
                work(run)
        except BaseException as raised:  # noqa: BLE001 - compared below
            caught = raised
        if caught is not (injector.error if injector.raised else None):
            raise SwallowedInterruptionError(
                f"interrupted at {injector.where}, instruction {run}, and raised {caught!r}"
            ) from caught
        del caught
        try:
            check(run)
        except BaseException as failure:
            failure.add_note(f"interrupted at {injector.where}, instruction {run}")
            raise
        if not injector.raised:
            return run
    raise AssertionError(f"the work has more than {_MOST} instructions")


# ---------------------------------------------------------------------- at random times


class Source(Protocol):
    """A source of interruptions."""

    def run(self, work: Callable[[], object], within: float) -> BaseException | None:
        """Run a piece of work, which may be interrupted within so many seconds.

        Returns:
            What interrupted it, None when nothing did.

        Raises:
            SwallowedInterruptionError: If it was interrupted and raised something else, or nothing.
        """


def _ends(code: CodeType) -> bool:
    """Whether a frame runs at an object's end, as callbacks of weak references do.

    The end of an open socket has no frame: it takes signals in C and drops what they raise.
    """
    return code.co_name in _FINALIZERS or code.co_filename in _WEAK


class Signals:
    """Interruptions by a signal whose handler raises, on the main thread.

    Args:
        seed: Decides the times and what is raised.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311 - repeatable, not secret
        self._armed = False
        self._collecting = False
        self._raised: BaseException | None = None
        self._where = ""

    def _ring(self, _number: int, frame: FrameType | None) -> None:
        if not self._armed:
            return
        if self._collecting or any(_ends(f.f_code) for f, _ in traceback.walk_stack(frame)):
            # What is raised in an object's end is lost in Python itself: a little later.
            signal.setitimer(signal.ITIMER_REAL, _LATER)
        else:
            self._armed = False
            self._where = "".join(traceback.format_stack(frame, 4))
            kind = self._random.choice((Interruption, KeyboardInterrupt, TimeoutError))
            self._raised = kind("the time is over")
            raise self._raised

    def _before_others(self, phase: str, _: object) -> None:
        if phase == "start":
            self._collecting = True

    def _after_others(self, phase: str, _: object) -> None:
        if phase == "stop":
            self._collecting = False

    def run(self, work: Callable[[], object], within: float) -> BaseException | None:
        """See `Source.run`."""
        self._raised, caught = None, None
        before = signal.signal(signal.SIGALRM, self._ring)
        gc.callbacks.insert(0, self._before_others)  # what any callback raises is lost, too
        gc.callbacks.append(self._after_others)
        try:
            signal.setitimer(signal.ITIMER_REAL, max(1e-6, self._random.random() * within))
            self._armed = True
            work()
            self._armed = False
        except BaseException as error:  # noqa: BLE001 - compared below
            caught = error
        finally:
            self._armed = False
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
            gc.callbacks.remove(self._before_others)
            gc.callbacks.remove(self._after_others)
        return _compared(caught, self._raised, self._where)


def _compared(
    caught: BaseException | None, raised: BaseException | None, where: str = ""
) -> BaseException | None:
    if raised is not None and caught is not raised:
        raise SwallowedInterruptionError(
            f"interrupted by {raised!r}, and raised {caught!r}\n{where}"
        ) from caught
    if caught is not None and raised is None:
        raise caught
    return raised
