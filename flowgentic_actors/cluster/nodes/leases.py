"""Leases: how long a node's actors may answer, and when they certainly do not any more.

A node asks and is granted. It counts the lease from the moment in which it *asked*, the host from
the moment in which it *granted*, which is later; so the node's own end of the lease is always the
earlier one, whatever the network did to the messages in between. Clocks are never compared, they
only have to run at about the same rate.
"""

from __future__ import annotations

import math
from typing import Final

from flowgentic_actors.silence import SilenceCounter

DRIFT: Final = 0.05
"""Share by which the host waits longer than a lease, for clocks that do not run at one rate."""

LEASE_SHARE: Final = 1 / (1 + DRIFT) - 0.1
"""Length of a lease, as a share of `node_timeout`: it is over for sure when that is."""

TICK: Final = 0.1
"""Seconds between two ticks of the host."""

_MOST_TICKS: Final = 2.0  # intervals that one tick counts for, however late it comes


class HeldLease:
    """The lease of one node, as the node sees it.

    Args:
        seconds: Length of a lease.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.until = -math.inf
        """When it ends, on the node's clock."""

    def granted(self, asked_at: float) -> float:
        """Extend the lease by the reply to a heartbeat sent at a given time; returns its end."""
        self.until = max(self.until, asked_at + self._seconds)
        return self.until

    def is_valid(self, now: float) -> bool:
        """Whether the node's actors may answer."""
        return now < self.until


class GrantedLeases:
    """The leases of all nodes, as the host sees them.

    Silence is counted in the host's ticks, of which a late one counts as two at most.

    Args:
        seconds: Length of a lease.
        node_timeout: Silence after which a node counts as lost.
        interval: Time between two ticks.

    Attributes:
        seconds: Length of a lease.
    """

    def __init__(self, seconds: float, node_timeout: float, interval: float) -> None:
        self.seconds = seconds
        self._timeout = node_timeout
        self._interval = interval
        self._silence: dict[str, SilenceCounter] = {}
        self._free_at: dict[str, float] = {}
        self._last_tick: float | None = None

    def heard(self, node: str) -> None:
        """Note a sign of life of a node."""
        self._silence.setdefault(node, SilenceCounter()).heard()

    def granted(self, node: str, now: float) -> None:
        """Note that a lease is sent to a node."""
        self._free_at[node] = now + self.seconds * (1 + DRIFT)

    def forget(self, node: str) -> None:
        """Stop watching a node."""
        self._silence.pop(node, None)

    def silence(self, node: str) -> float:
        """Seconds without a sign of life of a node."""
        return self._silence[node].seconds if node in self._silence else 0.0

    def may_answer(self, node: str, now: float) -> bool:
        """Whether a node may still hold a lease."""
        return now < self._free_at.get(node, -math.inf)

    def tick(self, now: float) -> list[str]:
        """Count a tick; returns the watched nodes that are lost now: silent and without a lease.

        Args:
            now: On the host's clock.
        """
        last, self._last_tick = self._last_tick, now
        passed = 0.0 if last is None else min(now - last, _MOST_TICKS * self._interval)
        lost = []
        for node, silence in self._silence.items():
            if silence.tick(passed) >= self._timeout and not self.may_answer(node, now):
                lost.append(node)
        return lost
