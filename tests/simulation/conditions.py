"""How nodes, networks and machines behave: every number that the simulation assumes is here."""

from __future__ import annotations

import math
from random import Random
from typing import Final

from msgspec import Struct

RETRIES: Final = (0.2, 0.6, 1.4, 3.0)
"""Seconds after which TCP sends again what nobody acknowledged; after these a connection ends."""


class Conditions(Struct, frozen=True, kw_only=True):
    """What the model assumes.

    Attributes:
        node_timeout: As in `MemoryConfig`.
        heartbeat_interval: As in `MemoryConfig`.
        rejoin_grace: As in `MemoryConfig`.
        latency: Median of one way through the network, with TLS and both event loops.
        latency_spread: Sigma of its logarithm.
        loss: Share of packets that are lost and sent again.
        drift: Largest deviation of a clock's rate.
        beat_cost: Processor time of the host for a beat and its answer, in seconds.
        places_cost: The same for telling one client where one shard is.
        place_bytes: Bytes of one shard's place in what clients are told, with a certificate of its
            own.
        certificate_bytes: How many of these are the certificate, the same one for every shard; told
            sparingly, it is in there once for all.
        bandwidth: Bytes a second that the host's network card carries.
        publish: Median time to write the plan to the host's disk.
        promote: Median time until a follower leads that is told to.
        remove: Time to end one actor that is not wanted any more.
        copy: Median time to copy a shard to a new follower.
        start: Median time until a new actor serves.
        shard_bytes: What is stored in one shard, all its slots alike.
        move_rate: Bytes a second that a slot moves with.
        gc: Median of short pauses of a node's event loop; each message may meet one.
        starved_every: Mean seconds between two moments in which a node gets no processor time.
        starved: Median of how long those take.
        starved_spread: Sigma of its logarithm.
        starved_most: None is longer.
        suspended_per_day: Times that the scheduler suspends the whole job.
        resume_skew: Median of how much later than the host a node goes on after that.
        resume_skew_most: None is later.
    """

    node_timeout: float = 3.0
    heartbeat_interval: float = 0.5
    rejoin_grace: float = 60.0
    latency: float = 150e-6
    latency_spread: float = 0.5
    loss: float = 1e-4
    drift: float = 5e-5
    beat_cost: float = 150e-6
    places_cost: float = 1.3e-6
    place_bytes: int = 794
    certificate_bytes: int = 666
    bandwidth: float = 1.25e9
    publish: float = 0.005
    promote: float = 0.05
    remove: float = 0.03
    copy: float = 2.0
    start: float = 1.0
    shard_bytes: int = 64 << 20
    move_rate: int = 32 << 20
    gc: float = 0.01
    starved_every: float = 300.0
    starved: float = 0.15
    starved_spread: float = 0.8
    starved_most: float = 1.5
    suspended_per_day: float = 2.0
    resume_skew: float = 0.1
    resume_skew_most: float = 1.0


class Chance:
    """Draws from the distributions.

    Args:
        seed: The same one draws the same.
        conditions: What to draw from.
    """

    def __init__(self, seed: int | str, conditions: Conditions) -> None:
        self.random = Random(seed)
        self._conditions = conditions

    def around(self, median: float, spread: float) -> float:
        """A duration: log-normal, as they are."""
        return median * math.exp(self.random.gauss(0.0, spread))

    def latency(self) -> float:
        """One way through the network, and now and then a short pause of the receiver's."""
        given = self._conditions
        way = self.around(given.latency, given.latency_spread)
        if self.random.random() < 0.01:
            way += self.around(given.gc, 0.7)
        return way

    def starved(self) -> float:
        """How long a node gets no processor time."""
        given = self._conditions
        return min(given.starved_most, self.around(given.starved, given.starved_spread))

    def resume_skew(self) -> float:
        """How much later than the host a node goes on."""
        given = self._conditions
        return min(given.resume_skew_most, self.around(given.resume_skew, 0.8))

    def rate(self) -> float:
        """Of a clock."""
        return 1.0 + self.random.uniform(-1, 1) * self._conditions.drift
