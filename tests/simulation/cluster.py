"""The host and its cluster: the real placement, in the loops that `ClusterController` runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final

from msgspec import Struct

from flowgentic_actors.cluster.nodes.cluster_plan import ClusterPlan
from flowgentic_actors.cluster.nodes.heartbeats import HeartbeatDesk
from flowgentic_actors.cluster.nodes.leases import LEASE_SHARE, TICK, GrantedLeases
from flowgentic_actors.cluster.nodes.placement import NodeEvent, Placement
from flowgentic_actors.cluster.nodes.rebalancing import Rebalancing
from flowgentic_actors.cluster.protocol.slot_table import even_table
from flowgentic_actors.engine.slots import SLOTS
from tests.simulation.agenda import Agenda, SimulatedTask
from tests.simulation.conditions import Chance, Conditions
from tests.simulation.nodes import Network, Node, Part, Question

_CLIENT_WAITS: Final = 1.0
_START_TIMEOUT: Final = 120.0
_TELL: Final = 1e-6  # processor time to look at one node, or at one client, that waits


class Client:
    """Knows where some shards are, and since when.

    Args:
        number: Which one it is.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.version = 0
        self.leaders: dict[int, str] = {}


class TellPolicy(Struct, frozen=True, kw_only=True):
    """How the host tells others what it decided.

    Attributes:
        name: Of the manner.
        own: Whether a node's lease and orders need only what concerns it to be on the disk.
            Otherwise nobody gets any while some change is not there.
        quiet: Whether a client that asks in vain is told so, instead of all places.
        once: Whether places are encoded once for all clients, with one certificate for all.
    """

    name: str
    own: bool = False
    quiet: bool = False
    once: bool = False


BROADCAST: Final = TellPolicy(name="lavish")
"""As simply as can be, to compare with."""

DELTA: Final = TellPolicy(name="sparing", own=True, quiet=True, once=True)
"""As `ClusterController` does it."""


class _BroadcastDesk(HeartbeatDesk):
    """Gives no node a lease while any change is not stored."""

    def is_stored_for(self, node: str) -> bool:
        return not self.must_publish


class SimulatedCluster:
    """A cluster of one shard for each node, its host, and clients.

    Args:
        nodes: How many nodes.
        seed: Decides everything.
        conditions: What the model assumes.
        policy: How the host tells what it decided.
    """

    def __init__(
        self,
        nodes: int,
        seed: int,
        conditions: Conditions | None = None,
        policy: TellPolicy = DELTA,
    ) -> None:
        self.conditions = given = conditions or Conditions()
        self.slot_bytes = given.shard_bytes * nodes / SLOTS
        self.agenda = Agenda()
        self.chance = Chance(seed, given)
        self.network = Network(self.agenda, self.chance, given.loss)
        self.events: list[tuple[float, NodeEvent]] = []
        self.two_answered: list[tuple[float, int, str, str]] = []
        """When, for which shard or slot, and who: must stay empty."""
        self.unstored: set[tuple[int, str]] = set()
        """Slots that a node answers for without having what is stored there: must stay empty."""
        self.silences: list[float] = []
        """For how long nobody answered for a slot that moved."""
        self.counts: Counter[str] = Counter()
        self.on_places: Callable[[Client], None] = lambda _client: None
        self.watched: frozenset[int] = frozenset()
        """Shards whose places clients note down."""
        self.worked = 0.0
        """Processor time of the host so far."""
        self._manner = policy
        lease = given.node_timeout * LEASE_SHARE
        names = [f"n{number:04}" for number in range(nodes)]
        self.host = names[0]
        leases = GrantedLeases(lease, given.node_timeout, TICK)
        self.placement = Placement(
            ClusterPlan(version=0, shards=[], table=even_table(nodes, 2)),
            self.host,
            replicas=2,
            degrade=True,
            recovers=False,
            leases=leases,
        )
        desk = HeartbeatDesk if policy.own else _BroadcastDesk
        self._desk = desk(self.placement, leases, self.host)
        for name in names:
            self.placement.joined(name)
        self.placement.place(names)
        self._lease = lease
        self.nodes = {name: Node(name, self, lease) for name in names}
        self.clients: list[Client] = []
        self._leaders: dict[int, set[str]] = {}
        self._answering: dict[int, set[tuple[str, int]]] = {}
        self._silent: dict[int, float] = {}
        self._course = SimulatedTask(self.agenda, TICK)
        self._polls: dict[str, Question] = {}
        self._numbers: dict[str, int] = {}
        self._waiting: dict[int, Client] = {}
        self._publishing = False
        self._free_at = 0.0
        self._card_free_at = 0.0
        self._encoded = -1
        own = self.nodes[self.host]
        own.lease.until = float("inf")
        self._stir()
        for name in names[1:]:
            self.agenda.at(self.chance.random.uniform(0, 0.5), self.nodes[name].ask)
        self.agenda.after(TICK, self._tick)
        self._pause_later()

    def run(self, seconds: float) -> None:
        """Let time pass."""
        self.agenda.run(self.agenda.now + seconds)

    def open(self, most: float) -> None:
        """Let time pass until every shard has two whole copies, then have all slots hold data.

        Raises:
            TimeoutError: If that takes too long.
        """
        self.settle(most)
        for node in self.nodes.values():
            for part in node.parts.values():
                leader = self.nodes[self.placement.plan.shards[part.assignment.shard].leader]
                part.slots.stored = set(leader.parts[part.assignment.shard].slots.answered)
        self.unstored.clear()

    def settle(self, most: float) -> None:
        """Let time pass until every shard has two whole copies.

        Raises:
            TimeoutError: If that takes too long.
        """
        end = self.agenda.now + most
        while not self.complete:
            if self.agenda.now >= end:
                raise TimeoutError(f"not every shard has two copies after {most:g} s")
            self.run(TICK)

    def attach(self, clients: int) -> None:
        """Clients come, and ask where the shards are from now on."""
        for _ in range(clients):
            client = Client(len(self.clients))
            client.version = self._desk.published
            self.clients.append(client)
            self.agenda.after(self.chance.random.uniform(0, 1), self._client_asks, client)

    def join(self) -> str:
        """A node comes; it has nothing yet.

        Returns:
            Its name.
        """
        name = f"n{len(self.nodes):04}"
        self.nodes[name] = Node(name, self, self._lease)
        self.placement.joined(name)
        self.nodes[name].ask()
        return name

    def rebalance(self, nodes: list[str], without: Sequence[str] = ()) -> SimulatedTask:
        """Begin to spread the slots over some nodes.

        Returns:
            What is under way.
        """
        self._course = course = SimulatedTask(self.agenda, TICK)
        self.placement.set_eligible_nodes(nodes, without)
        self._stir()
        rebalancing = Rebalancing(
            self.placement,
            actors=1,
            replicas=2,
            rate=self.conditions.move_rate,
            start_timeout=_START_TIMEOUT,
            changed=course.changed,
            stir=self._stir,
            sleep=course.sleep,
            now=lambda: self.agenda.now,
        )
        course.begin(rebalancing.run(nodes))
        return course

    def restore(self, names: set[str]) -> None:
        """The network of nodes that are cut off heals."""
        self.network.cut -= names

    # ------------------------------------------------------------------ faults

    def power_off(self, names: list[str]) -> None:
        """Nodes are gone for good."""
        for name in names:
            self.nodes[name].powered = False

    def _pause_later(self) -> None:
        """Some node will get no processor time for a while."""
        mean = self.conditions.starved_every / max(1, len(self.nodes) - 1)
        self.agenda.after(self.chance.random.expovariate(1 / mean), self._pause)

    def _pause(self) -> None:
        node = self.nodes[self.chance.random.choice(list(self.nodes)[1:])]
        node.paused_until = max(node.paused_until, self.agenda.now + self.chance.starved())
        self._pause_later()

    # ------------------------------------------------------------------ the host

    def _work(self, cost: float, what: Callable[..., None], *arguments: Any) -> None:
        """Have the host do something, after what it has to do before: it has one loop."""
        self._free_at = max(self._free_at, self.agenda.now) + cost
        self.worked += cost
        self.agenda.at(self._free_at, what, *arguments)

    def _tick(self) -> None:
        self._work(0.0005, self._ticked)

    def _ticked(self) -> None:
        self._desk.tick(self.agenda.now)
        self._hear_own()
        if self._desk.must_publish:
            self._stir()
        self.agenda.after(TICK, self._tick)

    def _hear_own(self) -> None:
        self.placement.heard(self.host, self.nodes[self.host]._told())
        self._course.news()

    def ask_host(self, question: Question) -> None:
        """A beat has arrived; one that was sent again after a later one is not listened to."""
        node = question.heartbeat.node
        if question.number < self._numbers.get(node, 0):
            return
        self._numbers[node] = question.number
        self.counts["beats"] += 1
        self._work(self.conditions.beat_cost, self._beat, question)

    def _beat(self, question: Question) -> None:
        self._desk.heard(question.heartbeat)
        self._course.news()
        self._stir()
        self._polls[question.heartbeat.node] = question
        if self._desk.has_news_for(question.heartbeat):
            self._grant(question)
        else:
            self.agenda.after(self.conditions.heartbeat_interval, self._grant, question)

    def _grant(self, question: Question) -> None:
        node = question.heartbeat.node
        if self._polls.get(node) is not question:
            return
        del self._polls[node]
        reply = self._desk.reply(question.heartbeat, self.agenda.now)
        if not reply.lease:
            self.counts["answers without a lease"] += 1
        answer = self.nodes[node].hear
        self.network.send(node, answer, question.number, question.asked_at, reply)

    def _stir(self) -> None:
        """Write down what was decided."""
        for event in self.placement.take_events():
            self.events.append((self.agenda.now, event))
        if not self._publishing and self._desk.must_publish:
            self._publishing = True
            takes = self.chance.around(self.conditions.publish, 0.5)
            self.agenda.after(takes, self._has_published, self.placement.plan.version)

    def _has_published(self, version: int) -> None:
        """Act on it."""
        self.counts["versions"] += 1
        self._publishing = False
        desk, own = self._desk, self.nodes[self.host]
        desk.published = version
        if own.known < version:  # the product waits until there is nothing that is not stored
            own._carry_out(0.0, self.placement.assignments(self.host), False)
            self._hear_own()
        for question in [q for q in self._polls.values() if desk.has_news_for(q.heartbeat)]:
            self._work(self.conditions.beat_cost / 2, self._grant, question)
        self._work(_TELL * len(self._polls), lambda: None)
        waiting, self._waiting = list(self._waiting.values()), {}
        for client in waiting:
            self._tell(client)
        self._stir()

    # ------------------------------------------------------------------ clients

    def _client_asks(self, client: Client) -> None:
        self.agenda.after(self.chance.latency(), self._client_arrives, client, client.version)

    def _client_arrives(self, client: Client, version: int) -> None:
        if self._desk.published > version:
            self._tell(client)
            return
        self._waiting[client.number] = client
        self.agenda.after(_CLIENT_WAITS, self._in_vain, client, version)

    def _in_vain(self, client: Client, version: int) -> None:
        if client.version == version and self._waiting.pop(client.number, None) is not None:
            if self._manner.quiet:
                self._work(self.conditions.beat_cost / 2, self._client_asks, client)
            else:
                self._tell(client)

    def _tell(self, client: Client) -> None:
        given = self.conditions
        encodes = not (self._manner.once and self._encoded == self._desk.published)
        self._encoded = self._desk.published
        cost = given.places_cost * len(self.nodes) if encodes else 0.0
        self._work(cost + given.beat_cost / 2, self._send_places, client)

    def _send_places(self, client: Client) -> None:
        given = self.conditions
        each = given.place_bytes - given.certificate_bytes * self._manner.once
        size = each * len(self.nodes)
        begin = max(self._card_free_at, self.agenda.now)
        self._card_free_at = begin + size / self.conditions.bandwidth
        self.counts["bytes of places"] += size
        leaders = {}
        for shard in self.watched:
            member = self.placement.leader_status(shard)
            plan = self.placement.plan.shards[shard]
            leaders[shard] = plan.leader if member is not None and member.leads else ""
        arrives = self._card_free_at + self.chance.latency()
        self.agenda.at(arrives, self._know, client, self._desk.published, leaders)

    def _know(self, client: Client, version: int, leaders: dict[int, str]) -> None:
        if version != client.version or leaders != client.leaders:
            client.version, client.leaders = version, leaders
            self.on_places(client)
        self._client_asks(client)

    # ------------------------------------------------------------------ what must be so

    def answers_now(self, node: Node) -> None:
        """Look whether anybody else may answer for what a node leads."""
        for shard, part in node.parts.items():
            there = self._leaders.setdefault(shard, set())
            if part.assignment.role != "leader":
                there.discard(node.name)
                continue
            there.add(node.name)
            if len(there) > 1 and node.may_answer(shard):
                for name in sorted(there - {node.name}):
                    if self.nodes[name].may_answer(shard):
                        self.two_answered.append((self.agenda.now, shard, node.name, name))
            if node.may_answer(shard):
                self._look_at_slots(node, part)

    def _look_at_slots(self, node: Node, part: Part) -> None:
        """Look whether the slots of a shard are another one's, too, and their data is there."""
        me = (node.name, part.assignment.shard)
        for slot in part.slots.answered:
            if part.leads and slot not in part.slots.stored:
                self.unstored.add((slot, node.name))
            there = self._answering.setdefault(slot, set())
            there.add(me)
            if len(there) == 1:
                continue
            for name, shard in sorted(there - {me}):
                other = self.nodes[name].parts.get(shard)
                if other is None or slot not in other.slots.answered:
                    there.discard((name, shard))
                elif shard != part.assignment.shard and self.nodes[name].may_answer(shard):
                    self.two_answered.append((self.agenda.now, slot, node.name, name))

    def claimed(self, before: frozenset[int], after: frozenset[int]) -> None:
        """A leader answers for other slots from now on."""
        for slot in before - after:
            self._silent.setdefault(slot, self.agenda.now)
        for slot in after - before:
            if slot in self._silent:
                self.silences.append(self.agenda.now - self._silent.pop(slot))

    @property
    def complete(self) -> bool:
        """Whether every shard has two whole copies."""
        shards = self.placement.plan.shards
        return all(plan.caught_up and plan.leader for plan in shards if not plan.retired)
