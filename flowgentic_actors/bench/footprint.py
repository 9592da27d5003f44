"""The footprint of a memory: bytes held for each byte stored, and processor time while idle.

Each contender is measured in a child process that opens nothing else: what one stored and freed
would be another one's room.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from flowgentic_actors.bench.measuring import Show
from flowgentic_actors.bench.results import Figure, Report, Unit
from flowgentic_actors.python import python_command

MEMORY: Final = "memory"
IDLE: Final = "idle"

_CHILD = "flowgentic_actors.bench.footprint_child"
_TIMEOUT = 600.0
_MIB = 1 << 20


class Extent(NamedTuple):
    """The extent of the measurement.

    Attributes:
        items: Values of 4 KiB to store.
        idle: Seconds to be idle for.
        rest: Seconds after which what is done behind the answers is done.
    """

    items: int
    idle: float
    rest: float = 3.0


FULL: Final = Extent(50_000, 10.0)
QUICK: Final = Extent(5_000, 2.0)


async def weigh(
    report: Report,
    names: Sequence[str],
    groups: Sequence[str],
    extent: Extent,
    *,
    scratch: Path,
    show: Show,
) -> None:
    """Measure every contender in a process of its own."""
    cases: list[tuple[str, int | None]] = [(name, None) for name in names]
    if MEMORY in groups:
        small = max(_MIB, extent.items * 4096 // 16)
        cases += [(name, small) for name in names if name in ("subprocess", "dragon")]
    for number, (name, hot_memory) in enumerate(cases):
        show(number / len(cases), f"memory and idle time: {name}")
        label = name if hot_memory is None else f"{name}, hot_memory={hot_memory >> 20} MiB"
        asked = {
            "name": name,
            "hot_memory": hot_memory,
            "items": extent.items if MEMORY in groups else 0,
            "idle": extent.idle if IDLE in groups and hot_memory is None else 0.0,
            "rest": extent.rest,
            "scratch": str(scratch),
        }
        try:
            found = await _ask(asked)
        except Exception as error:  # noqa: BLE001 - the others go on
            report.fail("memory and idle time", label, error)
        else:
            report.figures += [
                _figure(group, what, label, unit, found[key])
                for group, what, unit, key in _ROWS
                if key in found
            ]


_ROWS: Final[tuple[tuple[str, str, Unit, str], ...]] = (
    (MEMORY, "held a byte stored", "B/B", "held"),
    (MEMORY, "of it resident", "B/B", "resident"),
    (MEMORY, "of it in /dev/shm", "B/B", "shm"),
    (MEMORY, "journal a byte stored", "B/B", "journal"),
    (MEMORY, "resident with a tenth", "B", "fixed"),
    (IDLE, "processor, who holds it", "%", "idle"),
    (IDLE, "processor, the other processes", "%", "idle_others"),
)


def _figure(group: str, what: str, who: str, unit: Unit, value: float) -> Figure:
    return Figure(
        group=group,
        workload=what,
        contender=who,
        unit=unit,
        median=value,
        p99=None,
        ratio=None,
        against="",
        samples=1,
    )


async def _ask(asked: dict[str, Any]) -> dict[str, float]:
    process = await asyncio.create_subprocess_exec(
        *python_command(_CHILD, msgspec.json.encode(asked).decode()),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(_TIMEOUT):
            answer, trouble = await process.communicate()
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()  # what it opened ends with it
            await process.wait()
    if process.returncode != 0:
        lines = trouble.decode(errors="replace").strip().splitlines() or ["no reason was told"]
        raise RuntimeError(lines[-1])
    return msgspec.json.decode(answer.splitlines()[-1], type=dict[str, float])
