"""Selection of workloads and contenders by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from flowgentic_actors.bench import (
    cold,
    conversation,
    footprint,
    graph_work,
    growth,
    saver_work,
    store_work,
)
from flowgentic_actors.bench.workloads import Workload

WORKLOADS: Final = (*saver_work.WORKLOADS, *graph_work.WORKLOADS, *store_work.WORKLOADS)
"""Everything that is measured in turns, in the order of the table."""

STUDIES: Final = {
    conversation.GROUP: "one thread of 200 turns: time and bytes written, early and late; kept "
    "as a list, and with LangGraph's delta channel",
    growth.GROUP: "get, put and search with 1,000 to 1,000,000 items, aget_tuple and aput with "
    "1,000 to 100,000 threads",
    cold.GROUP: "reads from the DDict (dragon) and the journal (subprocess) beside memory",
    footprint.MEMORY: "bytes held for each byte stored",
    footprint.IDLE: "processor time while nothing is asked",
}
"""What takes another course than turns, with what it is."""

DEFAULT: Final = (saver_work.GROUP, graph_work.GROUP, store_work.GROUP, conversation.GROUP)
"""Groups that are measured when nothing is said."""

GROUPS: Final = tuple(dict.fromkeys([w.group for w in WORKLOADS])) + tuple(STUDIES)


class Selection(NamedTuple):
    """The selected workloads and contenders.

    Attributes:
        workloads: To be measured in turns.
        studies: Names of studies.
    """

    workloads: tuple[Workload, ...]
    studies: tuple[str, ...]


def select(wanted: Sequence[str], *, quick: bool) -> Selection:
    """Resolve names: a group, the beginning of a workload's name, or `all`.

    Args:
        wanted: The names.
        quick: Whether heavy workloads are only taken when they are named themselves.

    Raises:
        ValueError: If a name means nothing.
    """
    workloads: list[Workload] = []
    studies: list[str] = []
    for name in wanted:
        low = name.strip().lower()
        of_group = [w for w in WORKLOADS if low in (w.group, "all") and not (quick and w.heavy)]
        named = [w for w in WORKLOADS if w.name.lower().startswith(low)] if not of_group else []
        study = [s for s in STUDIES if low in (s, "all")]
        if not low or not (of_group or named or study):
            raise ValueError(
                f"unknown workload {name!r}: give a group ({', '.join(GROUPS)}), all, or how the "
                "name of a workload begins; --list tells them"
            )
        workloads += of_group + named
        studies += study
    order = {workload.name: workload for workload in WORKLOADS}
    taken = {workload.name for workload in workloads}
    return Selection(
        tuple(w for name, w in order.items() if name in taken),
        tuple(s for s in STUDIES if s in studies),
    )
