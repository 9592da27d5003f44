"""Placement of shards: which node has which copy. Without I/O and without a clock.

The host feeds it what nodes say and how time passes, keeps what it decides on its disk before
it is acted on, and hands it on as assignments to nodes and as a shard map to clients. A
simulation feeds it a thousand nodes.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from flowgentic_actors.cluster.nodes.cluster_plan import ClusterPlan, ShardPlan
from flowgentic_actors.cluster.nodes.copy_index import CopyIndex
from flowgentic_actors.cluster.nodes.leases import GrantedLeases
from flowgentic_actors.cluster.nodes.slot_migrations import SlotMigrations
from flowgentic_actors.cluster.protocol.assignments import (
    NodeAssignments,
    ReplicaStatus,
    actor_name,
)
from flowgentic_actors.event_kinds import EventKind
from flowgentic_actors.shard.assignment import Assignment
from flowgentic_actors.wire.addresses import Address

_UNANSWERED: Final = 10
"""Seconds for which a follower has asked its leader in vain, when there is another node to ask."""

_TRY_AGAIN: Final = 60.0
"""Seconds after which a node may follow again that could not: its disk was full, say."""


class NodeEvent(NamedTuple):
    """A decision, in the terms of `ClusterEvent`."""

    kind: EventKind
    actor: str
    detail: str


class Placement:
    """Decides which nodes of one cluster have which copies of its shards.

    Args:
        plan: What was decided before, by an earlier host too.
        host: Name of the host's own node, whose loss ends the cluster.
        replicas: Copies that each shard shall have, 1 or 2.
        degrade: Whether a leader acknowledges with one copy while there is no second one.
        recovers: Whether a shard whose only node is lost can be opened on another node.
        leases: The leases of the other nodes.
    """

    def __init__(
        self,
        plan: ClusterPlan,
        host: str,
        *,
        replicas: int,
        degrade: bool,
        recovers: bool,
        leases: GrantedLeases,
    ) -> None:
        self.plan = plan
        self._host = host
        self._replicas = replicas
        self._degrade = degrade
        self._recovers = recovers
        self._leases = leases
        self._up: dict[str, dict[int, ReplicaStatus]] = {host: {}}  # what each node told last
        self._events: list[NodeEvent] = []
        self._settled = False  # every shard has its first places
        self._copies = CopyIndex(plan)
        # Lost nodes whose copy of a shard is as good as its leader's, who knows of no later term.
        self._twins: dict[int, str] = {}
        self._unfit: dict[int, set[str]] = {}  # nodes that could not follow a shard's leader
        self._forgive_at: float | None = None  # on the clock of `tick`
        self.moves = SlotMigrations(
            plan, address=self._address, changed=self._mark, tell=self._event
        )
        """The slots that are on their way."""

    # ------------------------------------------------------------------ state and assignments

    @property
    def nodes(self) -> list[str]:
        """The nodes that are up, the host's own first."""
        return list(self._up)

    def leader_status(self, shard: int) -> ReplicaStatus | None:
        """The status of a shard's leader, None while it is unknown."""
        plan = self.plan.shards[shard]
        return self._up.get(plan.leader, {}).get(shard)

    def follower_status(self, shard: int) -> ReplicaStatus | None:
        """The status of a shard's follower, None while it is unknown."""
        plan = self.plan.shards[shard]
        return self._up.get(plan.follower, {}).get(shard)

    def take_events(self) -> list[NodeEvent]:
        """Take the events since the last call."""
        events, self._events = self._events, []
        return events

    def assignments(self, node: str) -> NodeAssignments:
        """The assignments of a node."""
        assignments = []
        for shard in sorted(self._copies.of(node)):
            plan = self.plan.shards[shard]
            if plan.leader == node:
                alone = self._degrade or self._replicas == 1
                whole = plan.caught_up, self.moves.ownership(plan)
                assignments.append(
                    Assignment(shard, "leader", plan.term, None, plan.follower, alone, *whole)
                )
            elif plan.follower == node:
                assignments.append(
                    Assignment(plan.shard, "follower", plan.term, self._address(plan))
                )
        return NodeAssignments(self.plan.version, tuple(assignments))

    def changed_for(self, node: str) -> int:
        """The version in which a node's assignments changed last.

        A node that has carried out that version, or a later one, has nothing to do.
        """
        return self._copies.changed(node)

    def _address(self, plan: ShardPlan) -> Address | None:
        """The address at which a shard's follower reaches its leader."""
        member = self._up.get(plan.leader, {}).get(plan.shard)
        if member is None or not member.leads or member.term != plan.term:
            return None
        return member.address

    # ------------------------------------------------------------------ changes of nodes

    def place(self, shards_of: Sequence[str]) -> None:
        """Place every shard of a new cluster for the first time.

        Args:
            shards_of: Node of each shard's leader, by number.
        """
        terms = [plan.term + 1 for plan in self.plan.shards]
        terms += [1] * (len(shards_of) - len(terms))
        since = self.plan.table.version if self.plan.table is not None else 0
        self.plan.shards = [
            ShardPlan(shard=shard, leader=node, term=terms[shard], since=since)
            for shard, node in enumerate(shards_of)
        ]
        self.plan.moves, self.plan.spare = [], []
        self.plan.version += 1
        self._copies.rebuild()
        self._twins.clear()
        self._settled = True
        self._seek_followers()

    def fail_absent_nodes(self) -> None:
        """Resume from a stored plan; nodes that did not rejoin are marked lost."""
        known = {plan.leader for plan in self.plan.shards} | {
            plan.follower for plan in self.plan.shards
        }
        if self.plan.moves:
            self.plan.moves = []  # slots that were on their way are moved anew, or stay
            self.plan.version += 1
            self._copies.mark_all()
        missing = sorted(known - {""} - set(self._up))
        self._up |= {node: {} for node in missing}
        self._settled = True
        self._lose(dict.fromkeys(missing, "it is not among the nodes that there are now"))
        self._seek_followers()

    def joined(self, node: str) -> None:
        """Add a node that joined or rejoined; its copies are those in the plan."""
        self._up[node] = {}
        if node != self._host:
            self._leases.heard(node)
        self._restore(node)

    def heard(self, node: str, members: Iterable[ReplicaStatus]) -> None:
        """Process a node's report; a lost node that reports is up again."""
        if node != self._host:
            self._leases.heard(node)
        if node not in self._up:
            self._up[node] = {}
            self._event(EventKind.NODE_RETURNED, "", f"{node} is there again")
            self._restore(node)
        led = [self.plan.shards[shard] for shard in self._copies.of(node)]
        led = [plan for plan in led if plan.leader == node]
        before = [self._address(plan) for plan in led]
        self._up[node] = {member.shard: member for member in members}
        for member in self._up[node].values():
            self._note(node, member)
        moved = [
            plan
            for plan, address in zip(led, before, strict=True)
            if plan.leader == node and self._address(plan) != address
        ]
        if moved:
            self.plan.version += 1  # followers, and clients, have to know
            for plan in moved:
                self._copies.mark((plan.follower,))
                if takers := self.moves.to(plan.shard):
                    self._mark(*takers)

    def granted(self, node: str, now: float) -> None:
        """Note that a lease is sent to a node, with the assignments it has not carried out."""
        self._leases.granted(node, now)
        for shard, twin in list(self._twins.items()):
            if node in (twin, self.plan.shards[shard].leader):
                del self._twins[shard]  # from now on the leader's is the only one

    def tick(self, now: float) -> None:
        """Count a tick, find the nodes that are lost now, and replace their copies."""
        lost = self._leases.tick(now)
        if lost:
            silent = "nothing was heard of it for"
            self._lose({node: f"{silent} {self._leases.silence(node):.1f} s" for node in lost})
            self._seek_followers()
        if not self._unfit:
            self._forgive_at = None
        elif self._forgive_at is None:
            self._forgive_at = now + _TRY_AGAIN
        elif now >= self._forgive_at:
            self._forgive_at = None
            self._try_again()

    def lost(self, node: str, reason: str) -> None:
        """Mark a node as lost: nothing on it answers any more."""
        self._lose({node: reason})
        self._seek_followers()

    def _lose(self, reasons: Mapping[str, str]) -> None:
        """Mark several nodes as lost at once, so that none of them replaces another."""
        concerned: set[int] = set()
        for node, reason in reasons.items():
            self._leases.forget(node)
            if self._up.pop(node, None) is not None:
                self._event(EventKind.NODE_LOST, "", f"{node}: {reason}")
                concerned |= self._copies.of(node)
        for plan in [self.plan.shards[shard] for shard in sorted(concerned)]:
            if plan.lost:
                continue
            if plan.leader not in self._up:
                self._replace_leader(plan)
                continue
            follower, caught_up = plan.follower, plan.caught_up
            self._change(plan, plan.leader, "")
            if caught_up:
                self._note_twin(plan, follower)

    # ------------------------------------------------------------------ more shards, and fewer

    def set_eligible_nodes(self, nodes: Iterable[str], without: Iterable[str] = ()) -> None:
        """Place new copies on these nodes only; existing copies on others stay.

        Args:
            nodes: The nodes.
            without: Nodes that shall get none, also when they are lost now and come back.
        """
        wanted = {*nodes, self._host}
        self.plan.spare = sorted({*self._up, *without} - wanted)
        self.plan.version += 1
        self._seek_followers()

    def add_shards(self, places: Iterable[tuple[str, str]]) -> list[int]:
        """Add shards that have no slots yet.

        Args:
            places: Node of the leader and of the follower of each, the latter empty for none.

        Returns:
            Their numbers.
        """
        numbers = []
        for leader, follower in places:
            plan = ShardPlan(shard=len(self.plan.shards), term=0)
            self.plan.shards.append(plan)
            self._change(plan, leader, follower)
            numbers.append(plan.shard)
        return numbers

    def retire(self, shard: int) -> None:
        """End a shard that has no slots any more."""
        plan = self.plan.shards[shard]
        assert self.plan.table is None or shard not in self.plan.table.owners
        self._change(plan, "", "")
        self._twins.pop(shard, None)
        plan.retired = True

    def _mark(self, *shards: int) -> None:
        """Mark the leaders of shards as having new assignments."""
        self.plan.version += 1
        self._copies.mark(self.plan.shards[shard].leader for shard in shards)

    # ------------------------------------------------------------------ decisions

    def _note(self, node: str, member: ReplicaStatus) -> None:
        """Process the status of one copy."""
        if member.shard >= len(self.plan.shards):
            return
        plan = self.plan.shards[member.shard]
        if member.term != plan.term:
            return
        if plan.follower == node:
            self._note_follower(plan, member)
        if plan.leader != node:
            return
        if member.caught_up and plan.follower and not (plan.caught_up or member.resync_required):
            plan.caught_up = True
            self.plan.version += 1
            self._copies.mark((node,))
            self._event(
                EventKind.REPLICA_READY, actor_name(plan.shard), f"on {plan.follower}, for {node}"
            )
        if member.resync_required and plan.follower:
            # A term of its own: an older word that all was caught up must not count for it.
            self._change(plan, plan.leader, plan.follower)
            self._event(
                EventKind.REPLICA_BEGUN, actor_name(plan.shard), f"on {plan.follower}, once more"
            )
            return
        if member.state == "failed" and plan.caught_up:
            self._replace_leader(plan)
            self._twins.pop(plan.shard, None)  # it would fail again
            self._seek_followers()

    def _note_follower(self, plan: ShardPlan, member: ReplicaStatus) -> None:
        """Replace a follower that cannot follow, if another node can."""
        leader = self.leader_status(plan.shard)
        if member.state == "failed":
            why = member.reason
        elif member.unanswered >= _UNANSWERED and leader is not None and leader.leads:
            why = f"it does not reach {plan.leader}, which is there"
        else:
            return
        old = plan.follower
        self._unfit.setdefault(plan.shard, set()).add(old)
        if other := self._other_for(plan):
            self._change(plan, plan.leader, other)
            self._event(
                EventKind.REPLICA_BEGUN,
                actor_name(plan.shard),
                f"on {other}, for {old} cannot: {why}",
            )

    def _try_again(self) -> None:
        """Reset the nodes that could not follow; where no other can, they are tried again."""
        shards = sorted(self._unfit)
        self._unfit.clear()
        for plan in [self.plan.shards[shard] for shard in shards]:
            follower = self.follower_status(plan.shard)
            if plan.leader and follower is not None and follower.state == "failed":
                other = self._other_for(plan)
                self._change(plan, plan.leader, other)
                self._event(
                    EventKind.REPLICA_BEGUN, actor_name(plan.shard), f"on {other}, once more"
                )

    def _other_for(self, plan: ShardPlan) -> str:
        """The node for a new follower, empty when there is none."""
        return self._least_used(plan.leader, self._unfit.get(plan.shard, set()))

    def _replace_leader(self, plan: ShardPlan) -> None:
        """Replace the lost leader of a shard, if another copy has all acknowledged writes."""
        name, old = actor_name(plan.shard), plan.leader
        self._unfit.pop(plan.shard, None)  # they may reach another one
        other = plan.follower if plan.caught_up else self._twins.get(plan.shard, "")
        if other in self._up:
            self._change(plan, other, "")
            self._note_twin(plan, old)
            self._event(EventKind.SHARD_PROMOTED, name, f"to {plan.leader}, in the place of {old}")
        elif self._recovers:
            self._change(plan, self._least_used(old), "")
            self._twins.pop(plan.shard, None)
            self._event(
                EventKind.SHARD_MOVED, name, f"from {old} to {plan.leader}: read from persist_path"
            )
        else:
            self._change(plan, "", other)
            plan.lost, plan.caught_up = old, bool(other)
            without = "its replica was not complete yet" if self._replicas > 1 else "one copy"
            why = f" and {other}" if other else f": there is no other copy ({without})"
            self._event(EventKind.SHARD_LOST, name, f"with {old}{why}")

    def _restore(self, node: str) -> None:
        """Restore the shards that were lost with a node, and let it take copies of others."""
        for unfit in self._unfit.values():
            unfit.discard(node)
        for plan in self.plan.shards:
            if plan.lost and node in (plan.lost, plan.follower):
                twin = plan.follower if node == plan.lost else plan.lost
                self._change(plan, node, "")
                self._note_twin(plan, twin)
                self._event(EventKind.SHARD_FOUND, actor_name(plan.shard), f"on {node}")
        if self._settled:
            self._seek_followers()

    def _note_twin(self, plan: ShardPlan, twin: str) -> None:
        """Note that a lost follower's copy equals the leader's, which has had no lease since."""
        if twin and plan.leader != self._host:  # which acts without one
            self._twins[plan.shard] = twin

    def _seek_followers(self) -> None:
        """Find a node for the follower of every shard that lacks one."""
        if self._replicas == 1:
            return
        for plan in self.plan.shards:
            if plan.leader and not plan.follower and (other := self._other_for(plan)):
                self._change(plan, plan.leader, other)
                self._event(EventKind.REPLICA_BEGUN, actor_name(plan.shard), f"on {other}")

    def _least_used(self, but: str, unfit: Container[str] = ()) -> str:
        """The node with the fewest copies, without excluded ones; of several, the next in order."""
        nodes = self._usable()
        after = nodes.index(but) + 1 if but in nodes else 0
        others = [n for n in nodes[after:] + nodes[:after] if n != but and n not in unfit]
        return min(others, key=lambda node: len(self._copies.of(node)), default="")

    def _usable(self) -> list[str]:
        """The nodes that may get copies; spare ones too, where a second copy needs them."""
        nodes = [node for node in self._up if node not in self.plan.spare]
        return nodes if len(nodes) >= self._replicas else list(self._up)

    def _change(self, plan: ShardPlan, leader: str, follower: str) -> None:
        """Begin another term of a shard; its slot migrations have to begin anew."""
        self.moves.give_up_of(plan.shard)
        before = {plan.leader, plan.follower}
        plan.term += 1
        plan.leader, plan.follower, plan.caught_up, plan.lost = leader, follower, False, ""
        self.plan.version += 1
        self._copies.move(plan.shard, before, {leader, follower})

    def _event(self, kind: EventKind, actor: str, detail: str) -> None:
        self._events.append(NodeEvent(kind, actor, detail))
