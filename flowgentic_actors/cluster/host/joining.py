"""The other nodes of a host's cluster, gathered when it opens."""

from __future__ import annotations

import logging
import ssl
import time
from pathlib import Path
from typing import Final

from anyio.abc import TaskGroup

from flowgentic_actors.actors.daemon_threads import on_daemon_thread
from flowgentic_actors.actors.hang_detector import EventSink
from flowgentic_actors.actors.supervisor import Supervisor
from flowgentic_actors.cluster.host.memory import FILE_TIMEOUT
from flowgentic_actors.cluster.host.topology import JoinedNodes, SingleNode
from flowgentic_actors.cluster.nodes.node_pool import AGENT_MODULE, NodePool
from flowgentic_actors.cluster.nodes.planfile import PlanFile
from flowgentic_actors.cluster.persistence.cluster_folders import PORT_FILE
from flowgentic_actors.cluster.platforms import platform_named
from flowgentic_actors.cluster.protocol.host_spec import HostSpec
from flowgentic_actors.errors import ClusterOpenError
from flowgentic_actors.event_kinds import EventKind
from flowgentic_actors.python import python_command
from flowgentic_actors.storage.private_files import overwrite, read_private
from flowgentic_actors.wire.addresses import TcpAddress
from flowgentic_actors.wire.identity import server_context
from flowgentic_actors.wire.server import Server

_GATHER_SHARE: Final = 0.6  # of open_timeout, for the other nodes to join

logger = logging.getLogger(__name__)


async def gather_nodes(
    spec: HostSpec, supervisor: Supervisor, tasks: TaskGroup, server: Server, on_event: EventSink
) -> SingleNode:
    """Take in the other nodes, if there are to be any, and listen for them.

    Args:
        spec: The host's.
        supervisor: Of this node's actors.
        tasks: The task group that owns their watching.
        server: The host's.
        on_event: Told what happens.

    Returns:
        The nodes, before the actors are placed on them.

    Raises:
        FlowgenticError: If there are too few.
    """
    alone = SingleNode(spec, supervisor, tasks)
    if spec.nodes == 1 or spec.identity is None:
        if spec.asked_nodes > 1:
            on_event(
                EventKind.FEWER_NODES,
                "",
                f"n_nodes={spec.asked_nodes}, and there is this one alone: neither a Dragon "
                "runtime nor a job with more nodes",
            )
        return alone
    platform, folder = platform_named(spec.spawner), Path(spec.folder)
    ip = await on_daemon_thread(FILE_TIMEOUT, platform.address, spec.network)
    launcher = platform.node_launcher(python_command(AGENT_MODULE), folder)
    node_pool = NodePool(spec, launcher, spec.identity, ip, on_event)
    before = await on_daemon_thread(FILE_TIMEOUT, PlanFile(Path(spec.memory)).read)
    names = await node_pool.gather(
        time.monotonic() + _GATHER_SHARE * spec.supervision.open_timeout,
        before.nodes if before is not None and not spec.persist else (),
    )
    if len(names) == 1:
        await node_pool.close()
        if spec.replicas > 1:
            found = node_pool.missing or "there is no other node in the Dragon runtime"
            raise ClusterOpenError(f"replicas=2 needs a second node: {found}")
        return alone
    context = await on_daemon_thread(FILE_TIMEOUT, server_context, spec.identity, folder)
    port = await _listen(server, ip, context, folder / PORT_FILE)
    return JoinedNodes(
        spec,
        supervisor,
        tasks,
        names=names,
        node_pool=node_pool,
        address=TcpAddress(ip, port, spec.identity.certificate),
        on_event=on_event,
    )


async def _listen(server: Server, ip: str, context: ssl.SSLContext, file: Path) -> int:
    """Listen where the host before this one did: programs that attached know that port."""
    before = await on_daemon_thread(FILE_TIMEOUT, _read_number, file)
    try:
        port = await server.listen_tcp(ip, context, before)
    except OSError:
        if not before:
            raise
        logger.warning("port %d is taken: who attached from another node is cut off", before)
        port = await server.listen_tcp(ip, context)
    await on_daemon_thread(FILE_TIMEOUT, overwrite, file, str(port).encode())
    return port


def _read_number(path: Path) -> int:
    try:
        return int(read_private(path))
    except (OSError, ValueError):
        return 0
