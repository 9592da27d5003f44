"""Detection of a cluster's end, and of the next cluster of its name, by its descriptor file.

The owner writes the file when the cluster is up, and removes it when it closes the cluster; a host
whose owner died does that for it. A thread polls the file, so an attached program is informed
whether it calls or not, from an event loop or from any thread.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from flowgentic_actors.cluster.persistence.cluster_folders import (
    DESCRIPTOR,
    PID_FILE,
    has_owner,
    is_orphan,
)
from flowgentic_actors.cluster.protocol.handle import ClusterHandle, Descriptor
from flowgentic_actors.environment import machine
from flowgentic_actors.errors import ClusterNotFoundError, FlowgenticError
from flowgentic_actors.storage.private_files import read_private

_INTERVAL: Final = 0.2
"""Seconds between two polls: calls fail at most so much later than the cluster is closed."""

logger = logging.getLogger("flowgentic_actors")


class Watched(NamedTuple):
    """The file that an attached client watches.

    Attributes:
        path: The descriptor file.
        by_name: Whether to go on with another cluster of that name when this one has ended.
    """

    path: Path
    by_name: bool = False


def watched_file(descriptor: Descriptor) -> Watched | None:
    """The file to watch for a descriptor; None where that file is on another node."""
    return Watched(Path(descriptor.host).with_name(DESCRIPTOR)) if _is_here(descriptor) else None


class ClusterWatch:
    """Watches for the end of one cluster, and for the next one of its name, until closed.

    Args:
        descriptor: Of the cluster.
        watched: Its file.
        on_closed: Called on the thread once the cluster has ended, with a sentence for users.
        on_opened: Called on the thread with the descriptor of the next cluster of that name, again
            and again until it returns true; that one is watched from then on.
    """

    def __init__(
        self,
        descriptor: Descriptor,
        watched: Watched,
        *,
        on_closed: Callable[[str], None],
        on_opened: Callable[[Descriptor], bool],
    ) -> None:
        self._descriptor = descriptor
        self._path, self._by_name = watched
        self._on_closed = on_closed
        self._on_opened = on_opened
        self._has_ended = False
        self._seen: tuple[int, int, int] | None = None  # which file it was
        self._found: Descriptor | None = descriptor  # in it
        self._stop = threading.Event()
        threading.Thread(target=self._run, name="flowgentic:presence", daemon=True).start()

    def close(self) -> None:
        """Stop watching; callable from any thread."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.wait(_INTERVAL):
            try:
                self._look()
            except (OSError, FlowgenticError) as error:  # the next look tells
                logger.warning("cannot see whether a cluster is there: %s", error)
            if self._has_ended and not self._by_name:
                return

    def _look(self) -> None:
        found = self._read()
        another = found if found is not None and found.secret != self._descriptor.secret else None
        if not self._has_ended:
            if found is not None and another is None and self._lives():
                return
            self._has_ended = True
            self._on_closed(self._what_happened(another))
        if self._by_name and another is not None and self._on_opened(another):
            logger.info("cluster %s was opened again: going on there", another.name)
            self._descriptor, self._has_ended = another, False

    def _read(self) -> Descriptor | None:
        """The content of the watched file, None when there is no file."""
        try:
            found = self._path.stat()
            seen = found.st_ino, found.st_mtime_ns, found.st_size
            if seen != self._seen:
                self._found = ClusterHandle(self._descriptor.name, str(self._path)).read()
                self._seen = seen
        except (FileNotFoundError, NotADirectoryError):
            self._found = self._seen = None
        except (OSError, ClusterNotFoundError) as error:  # nothing is known: the next look tells
            logger.debug("the descriptor of a cluster cannot be read: %s", error)
        return self._found

    def _lives(self) -> bool:
        """Whether the host may be running, or the owner, which would start another host."""
        folder = self._path.parent
        if not _is_here(self._descriptor):
            return True
        try:
            os.kill(int(read_private(folder / PID_FILE)), 0)
        except PermissionError:
            return True
        except (OSError, ValueError):  # its owner replaces it, or it is in another pid namespace
            return has_owner(folder)
        return True

    def _what_happened(self, another: Descriptor | None) -> str:
        name = self._descriptor.name
        text = f"cluster {name!r} was closed at {time.strftime('%Y-%m-%d %H:%M:%S')}"
        if self._by_name:
            text += ". The next one of that name is used as soon as it is open"
        else:
            has = "has its name now" if another is not None else "that gets its name"
            text += (
                f". Another one {has} has to be attached to anew; MemoryCluster.attach({name!r}), "
                "by name, finds the next ones by itself"
            )
        if another is None and _is_here(self._descriptor) and is_orphan(self._path.parent):
            text += (
                ". It did not end in order, since its program died, perhaps: what it held is kept "
                f"for a while, and MemoryCluster(name={name!r}, ...) opens it again"
            )
        return text


def _is_here(descriptor: Descriptor) -> bool:
    return descriptor.machine in ("", machine())
