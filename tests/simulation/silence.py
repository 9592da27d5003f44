"""How long a node may stand still before the host counts it as lost: a day of pauses.

Beats that come as they should make nobody lost, so only the seconds around a pause are played, one
node at a time, with the real leases of both sides. A pause that is shorter than `_SHORTEST` delays
a beat by no more than that, and is not played.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from flowgentic_actors.cluster.nodes.leases import LEASE_SHARE, TICK, GrantedLeases, HeldLease
from tests.simulation.conditions import RETRIES, Chance, Conditions

_SHORTEST: Final = 0.2
_DAY: Final = 86_400.0
_NODE: Final = "n"


class Pause(Struct, frozen=True):
    """Something stands still.

    Attributes:
        begins: When.
        ends: When it goes on.
    """

    begins: float
    ends: float

    def over(self, when: float) -> float:
        """When that happens which is due at a time."""
        return self.ends if self.begins <= when < self.ends else when


NEVER: Final = Pause(0.0, 0.0)


class Watched(Struct, frozen=True):
    """What became of one pause.

    Attributes:
        lost: Whether the node was counted as lost.
        silence: The longest that the host counted.
        fenced: Seconds for which the node had no lease, on its own clock.
    """

    lost: bool
    silence: float
    fenced: float


def watch(chance: Chance, given: Conditions, node: Pause, host: Pause = NEVER) -> Watched:
    """Play the time around a pause of a node, of the host, or of both.

    Args:
        chance: Draws latencies.
        given: What the model assumes.
        node: When the node stands still.
        host: When the host does.
    """
    lease = given.node_timeout * LEASE_SHARE
    granted, held = GrantedLeases(lease, given.node_timeout, TICK), HeldLease(lease)
    # The phase of the ticks to the beats is as it comes.
    tick = chance.random.uniform(0, TICK)
    arrives = _arrival(chance, given, 0.0)
    asked = 0.0
    end = max(node.ends, host.ends) + 2 * given.node_timeout
    granted.heard(_NODE)
    lost, most, fenced = False, 0.0, 0.0
    answered = 0.0  # when the answer is with the node, 0 while there is none
    while tick < end:
        if answered:
            now = answered = node.over(answered)
            if now <= tick:
                fenced += max(0.0, now - held.until) if held.until > 0 else 0.0
                held.granted(asked)
                asked, answered = now, 0.0
                arrives = _arrival(chance, given, asked)
                continue
        elif host.over(arrives) <= tick:
            heard = host.over(arrives)
            granted.heard(_NODE)
            leaves = host.over(heard + given.heartbeat_interval)
            granted.granted(_NODE, leaves)
            answered = _arrival(chance, given, leaves)
            continue
        tick = host.over(tick)
        lost = bool(granted.tick(tick)) or lost
        most = max(most, granted.silence(_NODE))
        tick += TICK + chance.random.uniform(0, 0.005)
    return Watched(lost, most, fenced)


def _arrival(chance: Chance, given: Conditions, sent: float) -> float:
    """When a message is there; what is lost is sent again."""
    number = 0
    while number < len(RETRIES) and chance.random.random() < given.loss:
        number += 1
    return sent + (RETRIES[number - 1] if number else 0.0) + chance.latency()


class Day(Struct, frozen=True, kw_only=True):
    """What pauses led to.

    Attributes:
        nodes: How many nodes.
        hours: For how long.
        pauses: Pauses in that time.
        played: How many of them were long enough to be played.
        lost: Nodes that were counted as lost, and were not.
        longest_silence: The longest that the host counted.
        fenced: Pauses in which the node had no lease for a moment.
        suspended: Times that the whole job was suspended.
    """

    nodes: int
    hours: float
    pauses: int
    played: int
    lost: int
    longest_silence: float
    fenced: int
    suspended: int


def day(nodes: int, hours: float, seed: int, conditions: Conditions | None = None) -> Day:
    """Let nodes run for hours, with the pauses that nodes have."""
    given = conditions or Conditions()
    chance = Chance(f"day {seed}", given)
    seconds = hours * 3600
    pauses = played = lost = fenced = 0
    longest = 0.0
    found: list[Watched] = []
    for _ in range(nodes - 1):
        now = chance.random.expovariate(1 / given.starved_every)
        while now < seconds:
            pauses += 1
            takes = chance.starved()
            if takes >= _SHORTEST:
                begins = chance.random.uniform(1.0, 1.6)
                found.append(watch(chance, given, Pause(begins, begins + takes)))
            now += takes + chance.random.expovariate(1 / given.starved_every)
    suspended = round(given.suspended_per_day * seconds / _DAY)
    for _ in range(suspended):
        takes = chance.random.uniform(10, 600)
        for _ in range(nodes - 1):
            begins = chance.random.uniform(1.0, 1.6)
            skew = chance.resume_skew()
            node = Pause(begins, begins + takes + skew)
            found.append(watch(chance, given, node, Pause(begins, begins + takes)))
    for one in found:
        played += 1
        lost += one.lost
        fenced += one.fenced > 0
        longest = max(longest, one.silence)
    return Day(
        nodes=nodes,
        hours=hours,
        pauses=pauses,
        played=played,
        lost=lost,
        longest_silence=longest,
        fenced=fenced,
        suspended=suspended,
    )


def lost_by_length(
    lengths: Sequence[float],
    tries: int,
    seed: int,
    *,
    suspended: bool = False,
    conditions: Conditions | None = None,
) -> list[tuple[float, float]]:
    """The share of pauses of each length after which a node counts as lost.

    Args:
        lengths: Seconds.
        tries: Pauses of each length.
        seed: Decides everything.
        suspended: The length is how much later than the host a node of a suspended job goes on.
        conditions: What the model assumes.
    """
    given = conditions or Conditions()
    chance = Chance(f"pauses {seed}", given)
    shares = []
    for length in lengths:
        lost = 0
        for _ in range(tries):
            begins = chance.random.uniform(1.0, 1.6)
            until = begins + (60.0 if suspended else 0.0)
            host = Pause(begins, until) if suspended else NEVER
            lost += watch(chance, given, Pause(begins, until + length), host).lost
        shares.append((length, lost / tries))
    return shares
