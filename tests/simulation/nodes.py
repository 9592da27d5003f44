"""A node: asks, does what it is told, then answers for as long as its lease lasts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from flowgentic_actors.cluster.nodes.leases import HeldLease
from flowgentic_actors.cluster.protocol.assignments import (
    NodeAssignments,
    ReplicaStatus,
)
from flowgentic_actors.cluster.protocol.host import Heartbeat, HeartbeatReply
from flowgentic_actors.engine.slots import SlotSet
from flowgentic_actors.shard.assignment import Assignment
from flowgentic_actors.shard.migration.ownership import PullOrder
from flowgentic_actors.shard.progress import MigrationStatus
from tests.simulation.agenda import Agenda
from tests.simulation.conditions import RETRIES, Chance, Conditions

_PAUSE = 0.1  # between two questions that were not answered
_PROBE = 1.0
_COPY_AGAIN = 0.2
_TAKE = 2.0  # seconds of taking slots over until there is a sign of it
_IDLE = 0.02  # between two questions for the rest


class Question(NamedTuple):
    """A heartbeat on its way.

    Attributes:
        number: Of the question, at its node.
        asked_at: On the node's clock.
        heartbeat: What the node tells.
    """

    number: int
    asked_at: float
    heartbeat: Heartbeat


class Network:
    """Brings messages; what is lost or cut off is sent again, as TCP does.

    Args:
        agenda: What happens when.
        chance: Draws latencies.
        loss: Share of packets that are lost.
    """

    def __init__(self, agenda: Agenda, chance: Chance, loss: float) -> None:
        self.cut: set[str] = set()
        """Nodes that reach each other, but neither the host nor any other node."""
        self._agenda = agenda
        self._chance = chance
        self._loss = loss
        self._arrival: dict[tuple[str, str], float] = {}

    def send(self, node: str, what: Callable[..., None], *arguments: Any) -> None:
        """Have something happen at the other end of a way between a node and the host."""
        self._attempt(0, node, what, arguments)

    def _attempt(
        self, number: int, node: str, what: Callable[..., None], arguments: tuple[Any, ...]
    ) -> None:
        if node in self.cut or self._chance.random.random() < self._loss:
            if number < len(RETRIES):
                waited = RETRIES[number - 1] if number else 0.0
                wait = RETRIES[number] - waited
                self._agenda.after(wait, self._attempt, number + 1, node, what, arguments)
            return
        way = (node, what.__name__)  # nothing overtakes what goes the same way
        arrival = self._agenda.now + self._chance.latency()
        self._arrival[way] = arrival = max(arrival, self._arrival.get(way, 0.0))
        self._agenda.at(arrival, what, *arguments)

    def joins(self, one: str, other: str) -> bool:
        """Whether two nodes reach each other."""
        return (one in self.cut) == (other in self.cut)


class NodeEnvironment(Protocol):
    """What a node sees of the cluster."""

    agenda: Agenda
    network: Network
    chance: Chance
    conditions: Conditions
    nodes: dict[str, Node]
    slot_bytes: float

    def ask_host(self, question: Question) -> None:
        """A question has arrived."""

    def answers_now(self, node: Node) -> None:
        """A node may answer from now on, with these duties."""

    def claimed(self, before: frozenset[int], after: frozenset[int]) -> None:
        """A leader answers for other slots from now on."""


class Slots:
    """The slots of one copy."""

    def __init__(self) -> None:
        self.answered: frozenset[int] = frozenset()
        self.stored: set[int] = set()
        """Those whose data is here."""
        self.move = 0  # that is being, or was last, taken over
        self.near = False
        self.done = False
        self.steps = 0

    def begin(self, move: int) -> None:
        """Take slots over."""
        self.move, self.near, self.done = move, False, False

    @property
    def status(self) -> MigrationStatus:
        """As an actor tells it."""
        return MigrationStatus(self.move, self.steps, self.near, self.done)


class Part:
    """One copy of a shard on a node.

    Args:
        assignment: What it has to do.
    """

    def __init__(self, assignment: Assignment) -> None:
        self.assignment = assignment
        self.term = 0  # in which it leads or follows
        self.leads = False
        self.caught_up = False
        self.copying = 0  # term of the copy that is under way
        self.slots = Slots()


class Node:
    """Does what `NodeAgent` and the actors below it do, with a real lease.

    Args:
        name: Its name.
        cluster: What is around it.
        lease: Length of a lease.
    """

    def __init__(self, name: str, cluster: NodeEnvironment, lease: float) -> None:
        self.name = name
        self.rate = cluster.chance.rate()
        self.lease = HeldLease(lease)
        self.parts: dict[int, Part] = {}
        self.known = 0
        self.powered = True
        self.paused_until = 0.0
        self._cluster = cluster
        self._seconds = lease
        self._number = 0
        self._busy = False
        self._granted_at = 0.0
        self._members: tuple[ReplicaStatus, ...] | None = None

    def clock(self) -> float:
        """The node's own."""
        return self._cluster.agenda.now * self.rate

    def may_answer(self, shard: int) -> bool:
        """Whether a client could be answered here now."""
        part = self.parts.get(shard)
        leads = part is not None and part.assignment.role == "leader"
        return leads and self.powered and self.lease.is_valid(self.clock())

    def _awake(self, what: Callable[..., None], *arguments: Any) -> bool:
        """Whether the node runs; what it cannot do now, it does when it goes on."""
        if not self.powered:
            return False
        if self._cluster.agenda.now < self.paused_until:
            self._cluster.agenda.at(self.paused_until, what, *arguments)
            return False
        return True

    # ------------------------------------------------------------------ the host

    def ask(self) -> None:
        """Ask for a lease and for orders."""
        if not self._awake(self.ask):
            return
        cluster = self._cluster
        self._number += 1
        self._busy = False
        heartbeat = Heartbeat(self.name, "", self.known, self._told(), ())
        question = Question(self._number, self.clock(), heartbeat)
        cluster.network.send(self.name, cluster.ask_host, question)
        cluster.agenda.after(self._seconds, self._unanswered, self._number)

    def _unanswered(self, number: int) -> None:
        if number != self._number or self._busy or not self._awake(self._unanswered, number):
            return
        cluster = self._cluster
        if self.clock() - self._granted_at > self._seconds + cluster.conditions.rejoin_grace:
            self.powered = False  # the host is silent for good
            return
        self._number += 1
        probe = _PROBE if self.name in cluster.network.cut else 0.0
        cluster.agenda.after(_PAUSE + probe, self.ask)

    def hear(self, number: int, asked_at: float, reply: HeartbeatReply) -> None:
        """The host has answered."""
        if number != self._number or self._busy:
            return
        if not self._awake(self.hear, number, asked_at, reply):
            return
        self._granted_at = self.clock()
        assignments, lease = reply.assignments, reply.lease > 0
        if assignments is None:
            self._go_on(asked_at, lease)
            return
        self._busy = True
        wanted = {assignment.shard for assignment in assignments.per_shard}
        ends = sum(shard not in wanted for shard in self.parts)
        wait = 0.001 + ends * self._cluster.conditions.remove
        self._cluster.agenda.after(wait, self._carry_out, asked_at, assignments, lease)

    def _carry_out(self, asked_at: float, assignments: NodeAssignments, lease: bool) -> None:
        if not self._awake(self._carry_out, asked_at, assignments, lease):
            return
        wanted = {assignment.shard: assignment for assignment in assignments.per_shard}
        for shard in set(self.parts) - set(wanted):
            del self.parts[shard]
        for shard, assignment in wanted.items():
            part = self.parts.get(shard)
            if part is None or (part.assignment.role, assignment.role) == ("leader", "follower"):
                self.parts[shard] = Part(assignment)
            elif part.assignment == assignment:
                continue
            self._take(self.parts[shard], assignment)
            self._claim(self.parts[shard])
        self.known = assignments.version
        self._members = None
        self._go_on(asked_at, lease)

    def _go_on(self, asked_at: float, lease: bool) -> None:
        if lease:
            self.lease.granted(asked_at)
        self._cluster.answers_now(self)
        self.ask()

    def _changed(self) -> None:
        """There is news: it does not wait for the answer that is under way."""
        self._members = None
        if not self._busy:
            self.ask()

    def _told(self) -> tuple[ReplicaStatus, ...]:
        if self._members is None:
            self._members = tuple(
                ReplicaStatus(
                    shard=shard,
                    state="running",
                    term=part.term,
                    leads=part.leads,
                    caught_up=part.caught_up,
                    resync_required=False,
                    path="",
                    address=f"{self.name}:{shard}" if part.leads else None,
                    pid=1,
                    epoch=1,
                    restarts=0,
                    reason="",
                    stats={},
                    migration=part.slots.status,
                )
                for shard, part in self.parts.items()
            )
        return self._members

    # ------------------------------------------------------------------ copies

    def _take(self, part: Part, assignment: Assignment) -> None:
        """Begin to lead or to follow."""
        cluster = self._cluster
        part.assignment = assignment
        if assignment.role == "leader":
            if part.term != assignment.term:
                part.caught_up = False
            given = cluster.conditions
            usual = given.promote if part.term else given.start
            begins = 0.001 if part.leads else cluster.chance.around(usual, 0.5)
            cluster.agenda.after(begins, self._lead, part, assignment.term)
        elif assignment.leader is not None and part.copying != assignment.term:
            part.copying = assignment.term
            takes = cluster.chance.around(cluster.conditions.copy, 0.5)
            cluster.agenda.after(takes, self._copied, part, assignment)

    def _lead(self, part: Part, term: int) -> None:
        if (
            not self._awake(self._lead, part, term)
            or self.parts.get(part.assignment.shard) is not part
        ):
            return
        if part.assignment.term == term and part.term != term:
            part.leads, part.term = True, term
            self._changed()

    def _copied(self, part: Part, assignment: Assignment) -> None:
        """All of a shard has been copied here; its leader knows, if it is reached."""
        if (
            not self._awake(self._copied, part, assignment)
            or self.parts.get(assignment.shard) is not part
        ):
            return
        if part.assignment.role != "follower" or part.assignment.term != assignment.term:
            return
        cluster = self._cluster
        name = str(assignment.leader).partition(":")[0]
        leader = cluster.nodes[name]
        theirs = leader.parts.get(assignment.shard)
        if not leader.powered or not cluster.network.joins(self.name, name):
            cluster.agenda.after(_COPY_AGAIN, self._copied, part, assignment)
            return
        part.term = assignment.term
        if theirs is not None and theirs.leads and theirs.term == assignment.term:
            part.slots.stored = set(theirs.slots.stored)
            theirs.caught_up = True
            leader.follower_caught_up()

    def follower_caught_up(self) -> None:
        """A copy is whole: the host has to know."""
        if self._awake(self.follower_caught_up):
            self._changed()

    # ------------------------------------------------------------------ slots

    def _claim(self, part: Part) -> None:
        """Answer for other slots, and take some over."""
        slots, ownership, before = part.slots, part.assignment.ownership, part.slots.answered
        if ownership is None:
            slots.answered = frozenset()
        else:
            slots.answered = frozenset(SlotSet(ownership.owned)) - frozenset(
                SlotSet(ownership.frozen)
            )
            if ownership.pull is None:
                slots.move = 0
                slots.stored &= set(SlotSet(ownership.owned))
            elif ownership.pull.source is not None and ownership.pull.move != slots.move:
                slots.begin(ownership.pull.move)
                size = len(SlotSet(ownership.pull.slots)) * self._cluster.slot_bytes
                self._pull(part, ownership.pull.move, size)
        self._cluster.claimed(before, slots.answered)

    def _pull(self, part: Part, move: int, left: float) -> None:
        """Copy what is left, then wait until the other one holds the slots, for the rest."""
        cluster, slots = self._cluster, part.slots
        pull = part.assignment.ownership.pull if part.assignment.ownership is not None else None
        if pull is None or pull.move != move or self.parts.get(part.assignment.shard) is not part:
            return
        if not self._awake(self._pull, part, move, left):
            return
        source = self._source(pull)
        if source is None:
            cluster.agenda.after(_COPY_AGAIN, self._pull, part, move, left)
            return
        slots.steps += 1
        self._members = None
        if left:
            seconds = min(left / pull.rate, _TAKE)
            cluster.agenda.after(seconds, self._pull, part, move, left - seconds * pull.rate)
            return
        ownership = source.assignment.ownership
        if ownership is not None and ownership.frozen_for == move:
            taken = set(SlotSet(pull.slots)) & source.slots.stored
            slots.done = True
            for copy in (part, self._second(part)):
                if copy is not None:
                    copy.slots.stored |= taken
            self._changed()
            return
        if not slots.near:
            slots.near = True
            self._changed()
        wait = _IDLE + cluster.chance.latency() + cluster.chance.latency()
        cluster.agenda.after(wait, self._pull, part, move, 0.0)

    def _source(self, pull: PullOrder) -> Part | None:
        """The copy that has the slots, if it answers."""
        name, _, shard = str(pull.source).partition(":")
        node = self._cluster.nodes[name]
        part = node.parts.get(int(shard))
        reached = node.powered and self._cluster.network.joins(self.name, name)
        return part if reached and part is not None and part.leads else None

    def _second(self, part: Part) -> Part | None:
        """The other copy, if it has all that this one has."""
        other = self._cluster.nodes.get(part.assignment.follower)
        return (
            other.parts.get(part.assignment.shard) if other is not None and part.caught_up else None
        )
