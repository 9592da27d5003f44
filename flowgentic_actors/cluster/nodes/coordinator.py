"""Who holds which copy of which shard: decided in one place, without I/O and without a clock.

The host feeds it what nodes say and how time passes, keeps what it decides on its disk before
anybody hears of it, and hands it on as orders to the nodes and as a map to the clients. A
simulation feeds it a thousand nodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from msgspec import Struct

from flowgentic_actors.cluster.nodes.duties import Duty, Member, Orders
from flowgentic_actors.cluster.nodes.leases import GrantedLeases
from flowgentic_actors.wire.addresses import Address


class NodeEvent(NamedTuple):
    """Something that was decided, in the words of `ClusterEvent`."""

    kind: str
    actor: str
    detail: str


class ShardPlan(Struct, kw_only=True):
    """Where the copies of one shard are.

    Attributes:
        shard: Number of the shard.
        term: Number of this arrangement.
        leader: Node of the copy that answers, empty while the shard is lost.
        follower: Node of the other copy, empty for none.
        caught_up: Whether the follower has everything that was acknowledged; from then on the
            leader acknowledges nothing without it.
        lost: Node that had the only copy, while the shard is lost.
    """

    shard: int
    term: int = 1
    leader: str = ""
    follower: str = ""
    caught_up: bool = False
    lost: str = ""


class ClusterPlan(Struct, kw_only=True):
    """What has to be on the disk before it is acted upon.

    Attributes:
        version: Grows with every change.
        shards: The plan of each shard, by number.
    """

    version: int
    shards: list[ShardPlan]


class Coordinator:
    """Decides for one cluster.

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
        self._up: dict[str, dict[int, Member]] = {host: {}}  # what each node told last
        self._events: list[NodeEvent] = []

    # ------------------------------------------------------------------ what there is

    @property
    def nodes(self) -> list[str]:
        """The nodes that are there, the host's own first."""
        return list(self._up)

    def member(self, shard: int) -> Member | None:
        """How the leading copy of a shard is doing, None while nobody tells."""
        plan = self.plan.shards[shard]
        return self._up.get(plan.leader, {}).get(shard)

    def follower(self, shard: int) -> Member | None:
        """How the following copy of a shard is doing, None while nobody tells."""
        plan = self.plan.shards[shard]
        return self._up.get(plan.follower, {}).get(shard)

    def take_events(self) -> list[NodeEvent]:
        """What was decided since the last call."""
        events, self._events = self._events, []
        return events

    def orders(self, node: str) -> Orders:
        """What a node has to do."""
        duties = []
        for plan in self.plan.shards:
            if plan.leader == node:
                alone = self._degrade or self._replicas == 1
                joint = plan.caught_up
                duties.append(
                    Duty(plan.shard, "leader", plan.term, None, plan.follower, alone, joint)
                )
            elif plan.follower == node:
                duties.append(Duty(plan.shard, "follower", plan.term, self._address(plan)))
        return Orders(self.plan.version, tuple(duties))

    def _address(self, plan: ShardPlan) -> Address | None:
        """Where the follower of a shard finds its leader."""
        member = self._up.get(plan.leader, {}).get(plan.shard)
        if member is None or not member.leads or member.term != plan.term:
            return None
        return member.address

    # ------------------------------------------------------------------ what happens

    def place(self, shards_of: Sequence[str]) -> None:
        """Give every shard of a new cluster its first places.

        Args:
            shards_of: Node of each shard's leader, by number.
        """
        self.plan.shards = [
            ShardPlan(shard=shard, leader=node) for shard, node in enumerate(shards_of)
        ]
        self.plan.version += 1
        self._seek_followers()

    def miss(self) -> None:
        """Go on with an earlier plan: the nodes in it that are not there are lost."""
        known = {plan.leader for plan in self.plan.shards} | {
            plan.follower for plan in self.plan.shards
        }
        for node in sorted(known - {""} - set(self._up)):
            self._up[node] = {}
            self.lost(node, "it is not among the nodes that there are now")
        self._seek_followers()

    def joined(self, node: str) -> None:
        """A node is there, for the first time or again; what it had is where the plan says."""
        self._up[node] = {}
        if node != self._host:
            self._leases.heard(node)
        self._restore(node)

    def heard(self, node: str, members: Iterable[Member]) -> None:
        """A node told how it is doing; one that was lost is there again."""
        if node != self._host:
            self._leases.heard(node)
        if node not in self._up:
            self._up[node] = {}
            self._event("node_returned", "", f"{node} is there again")
            self._restore(node)
        before = self._addresses()
        self._up[node] = {member.shard: member for member in members}
        for member in self._up[node].values():
            self._note(node, member)
        if before != self._addresses():
            self.plan.version += 1  # followers, and clients, have to know

    def granted(self, node: str, now: float) -> None:
        """A lease leaves for a node."""
        self._leases.granted(node, now)

    def tick(self, now: float) -> None:
        """Time passes: find out which nodes are lost, and decide what that means."""
        for node in self._leases.tick(now):
            silence = self._leases.silence(node)
            self.lost(node, f"nothing was heard of it for {silence:.1f} s")

    def lost(self, node: str, reason: str) -> None:
        """A node is not there any more, and nothing on it answers."""
        self._leases.forget(node)
        if self._up.pop(node, None) is None:
            return
        self._event("node_lost", "", f"{node}: {reason}")
        for plan in self.plan.shards:
            if plan.follower == node:
                self._change(plan, plan.leader, "")
            elif plan.leader == node:
                self._replace_leader(plan)
        self._seek_followers()

    # ------------------------------------------------------------------ what is decided

    def _note(self, node: str, member: Member) -> None:
        """Take in what is new about one copy."""
        if member.shard >= len(self.plan.shards):
            return
        plan = self.plan.shards[member.shard]
        if plan.leader != node or member.term != plan.term:
            return
        if member.caught_up and plan.follower and not plan.caught_up:
            plan.caught_up = True
            self.plan.version += 1
            self._event("replica_ready", _name(plan), f"on {plan.follower}, for {node}")
        if member.sent_back and plan.caught_up:
            plan.caught_up = False
            self.plan.version += 1
            self._event("replica_begun", _name(plan), f"on {plan.follower}, once more")
        if member.state == "failed" and plan.caught_up:
            self._replace_leader(plan)
            self._seek_followers()

    def _replace_leader(self, plan: ShardPlan) -> None:
        """Give a shard whose leader is lost another one, if any has what was acknowledged."""
        name, old = _name(plan), plan.leader
        if plan.caught_up and plan.follower in self._up:
            self._change(plan, plan.follower, "")
            self._event("shard_promoted", name, f"to {plan.leader}, in the place of {old}")
        elif self._recovers:
            self._change(plan, self._least_used(old), "")
            self._event("shard_moved", name, f"from {old} to {plan.leader}: read from persist_path")
        else:
            self._change(plan, "", "")
            plan.lost = old
            without = "its replica was not complete yet" if self._replicas > 1 else "one copy"
            self._event("shard_lost", name, f"with {old}: there is no other copy ({without})")

    def _restore(self, node: str) -> None:
        """A node is there: what was lost with it is found, and it can keep copies of others."""
        for plan in self.plan.shards:
            if plan.lost == node:
                self._change(plan, node, "")
                self._event("shard_found", _name(plan), f"on {node}")
        self._seek_followers()

    def _seek_followers(self) -> None:
        """Find a second node for every shard that lacks one."""
        if self._replicas == 1:
            return
        for plan in self.plan.shards:
            if plan.leader and not plan.follower and len(self._up) > 1:
                self._change(plan, plan.leader, self._least_used(plan.leader))
                self._event("replica_begun", _name(plan), f"on {plan.follower}")

    def _least_used(self, but: str) -> str:
        """The node with the fewest copies, but one; of several, the next one in their order."""
        nodes = list(self._up)
        after = nodes.index(but) + 1 if but in nodes else 0
        copies = {node: 0 for node in nodes[after:] + nodes[:after] if node != but}
        for plan in self.plan.shards:
            for node in (plan.leader, plan.follower):
                if node in copies:
                    copies[node] += 1
        return min(copies, key=copies.__getitem__)

    def _change(self, plan: ShardPlan, leader: str, follower: str) -> None:
        plan.term += 1
        plan.leader, plan.follower, plan.caught_up, plan.lost = leader, follower, False, ""
        self.plan.version += 1

    def _addresses(self) -> list[Address | None]:
        return [self._address(plan) for plan in self.plan.shards]

    def _event(self, kind: str, actor: str, detail: str) -> None:
        self._events.append(NodeEvent(kind, actor, detail))


def _name(plan: ShardPlan) -> str:
    return f"shard-{plan.shard}"
