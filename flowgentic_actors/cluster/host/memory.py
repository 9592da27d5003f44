"""A cluster's memory as its host has it open, and the actors that its shards need on this node."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from flowgentic_actors.actors.daemon_threads import on_daemon_thread
from flowgentic_actors.cluster.nodes.planfile import PlanFile
from flowgentic_actors.cluster.nodes.shard_specs import OpenMemory
from flowgentic_actors.cluster.persistence.manifest import (
    MANIFEST,
    Manifest,
    holds_memory,
    reopening,
)
from flowgentic_actors.cluster.persistence.stored_memory import StoredMemory
from flowgentic_actors.cluster.protocol.host_spec import HostSpec
from flowgentic_actors.errors import ClusterOpenError
from flowgentic_actors.event_kinds import EventKind
from flowgentic_actors.storage.mounts import is_in_memory, is_node_local

EXIT_REPLACED: Final = 71
"""Exit code of a host that was given up for dead, and whose memory another cluster has taken."""

FILE_TIMEOUT: Final = 30.0
OPEN_TIMEOUT: Final = 7 * 86_400.0  # the owner's open_timeout ends a re-sharding sooner


class HostMemory:
    """The memory of one host's cluster, from before it is open until it is let go.

    Args:
        spec: The host's.
        on_event: Called with what there is to tell: kind, actor, and a detail.

    Attributes:
        is_open: Whether it is open.
        shared: What all programs have in common; once it is open, as the memory remembers it.
        found: Name of another cluster that had it before, or empty.
    """

    def __init__(self, spec: HostSpec, on_event: Callable[[EventKind, str, str], None]) -> None:
        self._spec = spec
        self._on_event = on_event
        self._stored = StoredMemory(Path(spec.memory))
        self._let_go = False
        self.is_open = False
        self.shared = spec.shared
        self.found = ""

    async def open(self, nodes: int, *, ip: str, several: bool) -> OpenMemory:
        """Open it, and describe its actors.

        Args:
            nodes: How many nodes the cluster has.
            ip: Where actors of this node listen for other nodes, empty without any.
            several: Whether the cluster may have other nodes.

        Raises:
            FlowgenticError: If the memory cannot be opened.
        """
        spec = self._spec
        shards, table = spec.actors * nodes, None
        if not spec.persist:
            before = await on_daemon_thread(FILE_TIMEOUT, PlanFile(Path(spec.memory)).read)
            if before is not None:
                shards, table = len(before.shards), before.table
            spread = before is not None and before.is_spread
            await on_daemon_thread(FILE_TIMEOUT, self._check_spread, nodes, planned=spread)
        manifest, found = await on_daemon_thread(
            OPEN_TIMEOUT,
            self._stored.open,
            name=spec.name,
            instance=spec.instance,
            shards=shards,
            namespace_depth=spec.namespace_depth,
            job=spec.job,
            table=table,
            index=spec.shared.index,
            reindex=spec.reindex,
            on_lost=lambda: os._exit(EXIT_REPLACED),  # the actors end with their links
        )
        node_local = not spec.persist or await on_daemon_thread(
            FILE_TIMEOUT, is_node_local, Path(spec.memory)
        )
        if await on_daemon_thread(FILE_TIMEOUT, is_in_memory, Path(spec.memory)):
            setting = "persist_path" if spec.persist else "scratch"
            self._on_event(
                EventKind.JOURNAL_IN_MEMORY,
                "",
                f"the journals are in {spec.memory}, on a file system in memory: they take memory, "
                f"and end with this node. Set {setting}= to a folder on a disk if there is one",
            )
        self.is_open = True
        self.shared = replace(spec.shared, index=manifest.index)
        if found is not None and found.instance != spec.instance:
            self.found = found.name
            self._tell_reopened(manifest, found)
        return OpenMemory(
            actor=replace(
                spec.actor,
                journal=replace(spec.actor.journal, appends="direct" if node_local else "thread"),
                limits=spec.actor.limits.divided(nodes),
                claimed=several,
            ),
            replicated=spec.replicas > 1,
            generation=Path(spec.memory) / manifest.subfolder,
            folder=Path(spec.folder),
            ip=ip,
            shards=shards,
            note_table=self._stored.note_table,
        )

    @property
    def doing(self) -> str:
        """What takes time while it is being opened, in words."""
        return self._stored.doing

    def announce_end(self) -> None:
        """Tell who wants to open it that it is let go soon; does not block."""
        self._stored.announce_end()

    def close(self, *, orderly: bool) -> None:
        """Let go of it, once; see `StoredMemory.close`."""
        if not self._let_go:
            self._let_go = True
            self._stored.close(orderly=orderly)

    def _check_spread(self, nodes: int, *, planned: bool) -> None:
        """Refuse an orphan of one node on several, and the other way round: each has its part."""
        memory = Path(self._spec.memory)
        if not (memory / MANIFEST).exists() or planned == (nodes > 1):
            return
        if planned or holds_memory(memory):
            raise ClusterOpenError(
                f"the memory that an earlier cluster named {self._spec.name!r} left is "
                f"{'on several nodes' if planned else 'on this node alone'}: open it that way "
                "(n_nodes), or choose another name="
            )

    def _tell_reopened(self, manifest: Manifest, found: Manifest) -> None:
        kind = EventKind.PERSIST_REOPENED if self._spec.persist else EventKind.ORPHAN_REOPENED
        for event, detail in reopening(Path(self._spec.memory), manifest, found, kind):
            self._on_event(event, "", detail)
