"""The node pool: starts the agents of a cluster's nodes, and waits for them to join."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Final

import anyio

from flowgentic_actors.actors.daemon_threads import on_daemon_thread
from flowgentic_actors.actors.restarts import RestartPolicy
from flowgentic_actors.cluster.nodes.join_protocol import Join, JoinServer, NodeSpec, Ticket
from flowgentic_actors.cluster.protocol.host_spec import HostSpec
from flowgentic_actors.environment import machine
from flowgentic_actors.errors import ClusterOpenError, FlowgenticError
from flowgentic_actors.event_kinds import EventKind
from flowgentic_actors.platform import NodeLauncher
from flowgentic_actors.wire.addresses import TcpAddress
from flowgentic_actors.wire.identity import Identity, server_context
from flowgentic_actors.wire.server import Server

AGENT_MODULE: Final = "flowgentic_actors.cluster.nodes.agent"

_LAUNCH: Final = 30.0
_LOOK: Final = 0.2  # between two looks whether a program has ended
_FILE_TIMEOUT: Final = 30.0
_MAX_BYTES: Final = 4 << 20


class NodePool:
    """The agents of the other nodes, from their start until they have their settings.

    Args:
        spec: What the host was told.
        launcher: Starts them.
        identity: What the host proves.
        ip: IP address of this node.
        on_event: Told what happens.

    Attributes:
        identity: What the host proves.
        here: The host's own node.
        machines: The machine of each node that there is or was, as `environment.machine` names it.
        missing: Which nodes did not join when they were started last, and why; empty for none.
    """

    def __init__(
        self,
        spec: HostSpec,
        launcher: NodeLauncher,
        identity: Identity,
        ip: str,
        on_event: Callable[[EventKind, str, str], None],
    ) -> None:
        self._spec = spec
        self._launcher = launcher
        self._ip = ip
        self._on_event = on_event
        self._awaited: set[str] = set()
        self._hopeless: dict[str, str] = {}  # nodes that will not join, and why
        self._arrival = asyncio.Event()
        self._admission: tuple[JoinServer, Server] | None = None  # while nodes may join
        self._starting = asyncio.Lock()
        self._restarts: dict[str, RestartPolicy] = {}
        self.identity = identity
        self.here = launcher.here
        self.machines = {self.here: machine()}
        self.missing = ""

    async def gather(self, deadline: float, known: Collection[str] = ()) -> list[str]:
        """Start the agents of the other nodes, and wait until they have joined.

        Args:
            deadline: On the monotonic clock.
            known: Nodes that had a part in the cluster under an earlier host: they come first.

        Returns:
            The names of all nodes that there are, this one first.
        """
        asked = self._spec.nodes
        others = await self._launcher.find(max(asked, len({*known})))
        others.sort(key=lambda node: node not in known)
        most = max(asked - 1, len({*known} & {*others}))
        wanted = others[:most] if asked else others
        if len(wanted) + 1 < asked:
            there = ", ".join([self.here, *wanted])
            self._on_event(
                EventKind.FEWER_NODES,
                "",
                f"n_nodes={asked}, and there are {len(wanted) + 1}: {there}",
            )
        missing = await self._start(wanted, deadline)
        return [self.here, *(node for node in wanted if node not in missing)]

    async def hand_out(self, specs: Callable[[str], NodeSpec]) -> None:
        """Send the agents that joined their settings, and admit no further ones."""
        if self._admission is not None:
            join_server, server = self._admission
            self._admission = None
            join_server.release(specs)
            await server.close()

    async def others(self, count: int) -> list[str]:
        """The other available nodes, used or not.

        Args:
            count: Nodes that there shall be in all, where they can be made at will.
        """
        return await self._launcher.find(count)

    async def add(
        self,
        nodes: Sequence[str],
        specs: Callable[[str], NodeSpec],
        on_joined: Callable[[Sequence[str]], None],
    ) -> list[str]:
        """Start the agents of more nodes; returns those that have joined.

        Args:
            nodes: The nodes.
            specs: Makes the settings of a node.
            on_joined: Told which have joined, before they get their settings.
        """
        async with self._starting:
            missing = await self._start(
                nodes, time.monotonic() + self._spec.supervision.open_timeout
            )
            joined = [node for node in nodes if node not in missing]
            on_joined(joined)
            await self.hand_out(specs)
        return joined

    async def restart(
        self, node: str, specs: Callable[[str], NodeSpec], is_wanted: Callable[[], bool]
    ) -> None:
        """Restart the agent of a node whose last one has ended, unless it keeps ending.

        Args:
            node: The node.
            specs: Makes the settings of a node.
            is_wanted: Whether it still has none, and needs one.
        """
        spec = self._spec.supervision
        new = RestartPolicy(spec.restart_intensity, spec.restart_period)
        delay = self._restarts.setdefault(node, new).next_delay(time.monotonic(), 0.0)
        if delay is None:
            self._on_event(EventKind.NODE_GIVEN_UP, "", f"the program of {node} keeps ending")
            return
        await anyio.sleep(delay)
        async with self._starting:
            if not is_wanted():
                return
            try:
                missing = await self._start([node], time.monotonic() + spec.open_timeout)
                await self.hand_out(specs)
            except OSError as error:  # such as no open file being left
                missing, why = [node], f"{node} cannot be started again: {error}"
            else:
                why = f"{node} did not join again"
            if missing:
                self._on_event(EventKind.NODE_MISSING, "", why)

    async def close(self) -> None:
        """Kill the agents that do not end by themselves, where that is possible from here."""
        await on_daemon_thread(_FILE_TIMEOUT, self._launcher.close)

    def folder(self, node: str) -> str:
        """The folder for a node's files, empty for the usual one."""
        return self._launcher.folder(node)

    async def _start(self, nodes: Sequence[str], deadline: float) -> list[str]:
        """Start agents and wait for them; returns those that did not join."""
        if not nodes:
            return []
        self._awaited, self._hopeless = set(nodes), {}
        join_server = JoinServer(self._take_in)
        server = Server(join_server, join_server.secret, "the host", 0, _MAX_BYTES)
        folder = Path(self._spec.folder)
        context = await on_daemon_thread(_FILE_TIMEOUT, server_context, self.identity, folder)
        port = await server.listen_tcp(self._ip, context)
        self._admission = join_server, server
        address = TcpAddress(self._ip, port, self.identity.certificate)
        async with anyio.create_task_group() as tasks:
            for node in nodes:
                patience = max(1.0, deadline - time.monotonic())
                ticket = Ticket(node, (address,), join_server.secret, patience)
                tasks.start_soon(self._launch, ticket)
        with anyio.move_on_after(max(0.0, deadline - time.monotonic())):
            while self._awaited - self._hopeless.keys():
                self._arrival.clear()
                with anyio.move_on_after(_LOOK):
                    await self._arrival.wait()
                self._hopeless |= await on_daemon_thread(_FILE_TIMEOUT, self._launcher.ended)
        missing = [node for node in nodes if node in self._awaited]
        why = (f"{node} {self._hopeless.get(node, 'did not join in time')}" for node in missing)
        self.missing = "; ".join(why)
        if missing:
            self._on_event(EventKind.NODE_MISSING, "", self.missing)
        return missing

    async def _launch(self, ticket: Ticket) -> None:
        try:
            line, timeout = ticket.write(), min(_LAUNCH, ticket.patience)
            await self._launcher.launch(ticket.node, line, timeout)
        except TimeoutError:
            pass  # the program may have been started nevertheless
        except (FlowgenticError, OSError) as error:
            self._hopeless[ticket.node] = f"cannot be started: {error}"

    def _take_in(self, join: Join) -> None:
        """Admit a node that presents its ticket; each ticket counts once."""
        if join.node not in self._awaited:
            raise ClusterOpenError(f"{join.node} is not awaited, or has joined already")
        self._awaited.discard(join.node)
        self.machines[join.node] = join.machine
        if self._launcher.folder(join.node):  # it only stands for a machine of its own
            self.machines[join.node] += f" {join.node}"
        self._arrival.set()
