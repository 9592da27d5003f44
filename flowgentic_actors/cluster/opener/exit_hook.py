"""An exit hook that closes clusters which are still open when the interpreter ends.

That is after its last non-daemon thread. Later, when modules are cleared and generators closed,
Python lets no thread start any more and the daemon threads are gone: nothing can be closed then.
"""

from __future__ import annotations

import atexit
import itertools
import logging
import os
import weakref
from typing import Protocol

logger = logging.getLogger("flowgentic_actors")


class Closable(Protocol):
    """An object with `close`, which does nothing the second time."""

    def close(self) -> object:
        """Close the object, blocking."""


_numbers = itertools.count()
_open: weakref.WeakValueDictionary[int, Closable] = weakref.WeakValueDictionary()


def close_at_exit(closable: Closable) -> None:
    """Close an object when the interpreter ends, if it still exists by then."""
    _open[next(_numbers)] = closable


def _close_all() -> None:
    for _, closable in sorted(_open.items(), reverse=True):  # what was opened last, first
        try:
            closable.close()
        except Exception as error:  # noqa: BLE001 - the others are to be closed as well
            logger.warning("a cluster was not closed when its program ended: %s", error)


atexit.register(_close_all)
os.register_at_fork(after_in_child=_open.clear)  # a forked child owns none of them
