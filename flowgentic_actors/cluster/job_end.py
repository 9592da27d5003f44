"""Detection of the job's end: by a stop file, and by the walltime.

On threads of their own, since a look at a shared file system or a question to a scheduler may take
long or for ever.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from flowgentic_actors.environment import job_end
from flowgentic_actors.errors import ClusterOpenError

WALLTIME_UNKNOWN: Final = "nobody tells when this job ends: walltime_margin has no effect"

_FILE_INTERVAL = 1.0
_LONGEST_WAIT = 60.0


def refuse_stale(path: Path | None) -> Path | None:
    """Refuse a stop file that exists before the work has begun. Blocks.

    Returns:
        Its absolute path: the program may change its folder.

    Raises:
        ClusterOpenError: If it is.
    """
    if path is not None and path.exists():
        raise ClusterOpenError(
            f"the stop file {path} is there already, left by an earlier job perhaps: remove it, or "
            "choose another (setting: stop_file)"
        )
    return None if path is None else path.absolute()


def watch_stop_file(path: Path, stop: threading.Event, on_end: Callable[[str], None]) -> None:
    """Call `on_end`, on a thread, when the stop file appears."""

    def watch() -> None:
        while not stop.wait(_FILE_INTERVAL):
            if path.exists():
                on_end(f"the stop file {path} is there")
                return

    threading.Thread(target=watch, name="flowgentic:stop-file", daemon=True).start()


def watch_walltime(
    margin: float,
    stop: threading.Event,
    on_end: Callable[[str], None],
    on_unknown: Callable[[], None],
    ask: Callable[[], float | None] = job_end,
) -> None:
    """Call `on_end`, on a thread, a given time before the scheduler ends the job.

    The scheduler is asked again when the time has come: the limit may have been raised meanwhile.

    Args:
        margin: How many seconds before.
        stop: Set when the result is not wanted any more.
        on_end: Told why.
        on_unknown: Called when the end of the job cannot be found out.
        ask: When the job ends, on the clock of `time.time`.
    """

    def watch() -> None:
        end = ask()
        if end is None:
            on_unknown()
            return
        while not stop.is_set():
            left = end - margin - time.time()
            if left > 0:
                stop.wait(min(left, _LONGEST_WAIT))
                continue
            latest = ask() or end
            if latest <= end:
                on_end(f"the job ends in {max(0.0, end - time.time()):.0f} s")
                return
            end = latest

    threading.Thread(target=watch, name="flowgentic:walltime", daemon=True).start()
