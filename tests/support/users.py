"""Real users of the machine: `ann` uses the memory and `mallory` attacks it.

Both are processes forked from this one, which have all modules already: other users may not be able
to run this Python.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from flowgentic_actors import MemoryCluster, UntrustedPathError
from flowgentic_actors.errors import FlowgenticError

NEEDS_OTHER_USERS = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: to become two other users"),
    # Newer Pythons warn of forks while there are threads; what is forked here starts its own.
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]
"""Marks of a test that becomes other users."""

ANN, MALLORY = 65533, 65532


class User:
    """A process of another user that does what it is told."""

    def __init__(self, uid: int) -> None:
        self._here, there = multiprocessing.Pipe()
        fork = multiprocessing.get_context("fork")
        self._process = fork.Process(target=_be, args=(uid, there), daemon=True)
        self._process.start()
        there.close()

    def begins(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._here.send((function, arguments))

    def has_done(self) -> Any:
        assert self._here.poll(60), "it hangs"
        done, error = self._here.recv()
        if error is not None:
            raise error
        return done

    def does(self, function: Callable[..., Any], *arguments: Any) -> Any:
        self.begins(function, *arguments)
        return self.has_done()

    def end(self) -> None:
        self._here.send(None)
        self._process.join(10)
        self._here.close()
        assert self._process.exitcode == 0


def _be(uid: int, orders: Connection) -> None:
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
    os.chdir("/")
    os.umask(0o022)
    while order := orders.recv():
        function, arguments = order
        try:
            orders.send((function(*arguments), None))
        except Exception as error:
            # Some of ours, and of the operating system's, cannot be made anew of their text.
            kind = UntrustedPathError if _is_refusal(error) else OSError
            orders.send((None, kind(str(error))))
    os._exit(0)


def _is_refusal(error: Exception) -> bool:
    return isinstance(error, (UntrustedPathError, FlowgenticError))


def open_memory(path: Path) -> None:
    with MemoryCluster(mode="local", persist_path=path) as memory:
        memory.store.put(("team",), "key", {"text": "ann's"})
