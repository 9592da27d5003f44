"""Where keys live: balance, moves, time and bytes. All of it real code, with drawn keys."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Final, TypeVar

import msgspec
import numpy as np
from msgspec import Struct

from flowgentic_actors.cluster.nodes.cluster_plan import ClusterPlan
from flowgentic_actors.cluster.nodes.leases import GrantedLeases
from flowgentic_actors.cluster.nodes.placement import Placement
from flowgentic_actors.cluster.protocol.assignments import ReplicaStatus
from flowgentic_actors.cluster.protocol.host import ShardLocation, ShardMap
from flowgentic_actors.cluster.protocol.slot_table import SlotTable, even_table, moves, rebalanced
from flowgentic_actors.wire.addresses import TcpAddress

T = TypeVar("T")

CERTIFICATE: Final = "c" * 664  # as long as a real one

QUANTILES: Final = (
    (0.0, 274e-6),
    (0.01, 286e-6),
    (0.1, 296e-6),
    (0.25, 319e-6),
    (0.5, 408e-6),
    (0.75, 462e-6),
    (0.9, 502e-6),
    (0.95, 528e-6),
    (0.99, 719e-6),
    (0.995, 1141e-6),
    (0.999, 4152e-6),
    (1.0, 4914e-6),
)
"""Latency of a search of 10 among 100 items, one shard, over a Unix socket: 6,000 samples on two
cores with little other work."""

PER_REQUEST: Final = 87e-6
"""Processor time of the asking process for each shard more that a wide search asks: measured with
1 and 16 shards."""


class Balance(Struct, frozen=True, kw_only=True):
    """How evenly requests are spread: the busiest shard, as a multiple of the mean.

    Attributes:
        shards: How many shards.
        slots: For slots.
        uniform: When all threads are asked for alike.
        zipf: For each exponent, when the n-th is asked for in proportion to 1 / n ** exponent.
        alone: The same for a table that had given the busiest thread a shard of its own.
    """

    shards: int
    slots: float
    uniform: float
    zipf: dict[str, float]
    alone: dict[str, float]


def balance(shards: int, threads: int, seed: int) -> Balance:
    """Draw threads, and look where they live."""
    table = even_table(shards, 2)
    drawn = Random(seed)
    names = [f"{drawn.getrandbits(64):016x}" for _ in range(threads)]
    home = np.array([table.of_thread(name) for name in names])
    ranks = np.arange(1, threads + 1, dtype=float)
    zipf, alone = {}, {}
    for exponent in (1.1, 1.3):
        weights = ranks**-exponent
        zipf[f"{exponent:g}"] = _busiest(home, weights, shards)
        alone[f"{exponent:g}"] = float(weights[0] / weights.sum() * shards)
    sizes = Counter(table.shards)
    return Balance(
        shards=shards,
        slots=max(sizes.values()) / (len(table.shards) / shards),
        uniform=_busiest(home, np.ones(threads), shards),
        zipf=zipf,
        alone=alone,
    )


def _busiest(home: np.ndarray[Any, Any], weights: np.ndarray[Any, Any], shards: int) -> float:
    loads = np.bincount(home, weights=weights, minlength=shards)
    return float(loads.max() / (weights.sum() / shards))


class Moved(Struct, frozen=True, kw_only=True):
    """Slots that move, as a share of all.

    Attributes:
        shards: How many shards there are.
        added: When one more comes.
        removed: When one goes.
        ideal: What no table could do with less, when one more comes.
        seconds: Time to compute a table.
    """

    shards: int
    added: float
    removed: float
    ideal: float
    seconds: float


def moved(shards: int) -> Moved:
    """Add a shard, and remove one."""
    even = dict.fromkeys(range(shards), 1.0)
    table = even_table(shards, 2)
    begin = time.perf_counter()
    more = rebalanced(table, even | {shards: 1.0})
    seconds = time.perf_counter() - begin
    fewer = rebalanced(table, even | {shards // 2: 0.0})
    return Moved(
        shards=shards,
        added=_share(table, more),
        removed=_share(table, fewer),
        ideal=1 / (shards + 1),
        seconds=seconds,
    )


def _share(old: SlotTable, new: SlotTable) -> float:
    return sum(map(len, moves(old, new).values())) / len(old.shards)


class FanOut(Struct, frozen=True, kw_only=True):
    """Latency of a search that asks all shards.

    Attributes:
        shards: How many are asked.
        slowest: Mean of the slowest shard's answer, seconds.
        slowest_p99: Its 99th percentile.
        asking: Time that the asking process needs for sending and decoding.
    """

    shards: int
    slowest: float
    slowest_p99: float
    asking: float


def fan_out(shards: int, tries: int, seed: int) -> FanOut:
    """Draw each shard's latency."""
    drawn = np.random.default_rng(seed)
    shares, times = zip(*QUANTILES, strict=True)
    # The largest of N draws: one draw, whose N-th root is the share that is below it.
    largest = np.interp(drawn.random(tries) ** (1 / shards), shares, times)
    return FanOut(
        shards=shards,
        slowest=float(largest.mean()),
        slowest_p99=float(np.quantile(largest, 0.99)),
        asking=shards * PER_REQUEST,
    )


class Routing(Struct, frozen=True, kw_only=True):
    """Seconds to find a key's shard.

    Attributes:
        known: When the key was asked for a short while ago.
        thread: Of a thread that was not.
        namespace: Of a namespace that was not.
        below: Of all shards below a short prefix.
    """

    known: float
    thread: float
    namespace: float
    below: float


def routing(shards: int) -> Routing:
    """Time the real table."""
    table = even_table(shards, 2)
    names = [f"thread-{number}" for number in range(20_000)]
    return Routing(
        known=_each(table.of_thread, ["thread"] * 20_000),
        thread=_each(table.of_thread, names),
        namespace=_each(table.of_namespace, [("users", name) for name in names]),
        below=_each(lambda _: table.owners, [("users",)] * 20_000),
    )


def _each(what: Callable[[T], object], over: Sequence[T]) -> float:
    """Seconds for one; the fastest of five runs, for whatever else the machine does only adds."""
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        for one in over:
            what(one)
        times.append(time.perf_counter() - begin)
    return min(times) / len(over)


class Loads(Struct, frozen=True, kw_only=True):
    """What the host has to carry.

    Attributes:
        nodes: How many nodes, with a shard each.
        table_bytes: Of the encoded table.
        places_bytes: Of all places, encoded.
        encode: Seconds to encode the places.
        decode: Seconds to decode them.
        plan_bytes: Of the plan on the disk.
        beats: Beats a second.
        heard: Seconds that a beat costs in the coordinator.
        granted: The same for the answer.
        assignments: The same for a node's orders.
        tick: Seconds of one tick.
        lost: Seconds to decide what the loss of a node means.
    """

    nodes: int
    table_bytes: int
    places_bytes: int
    encode: float
    decode: float
    plan_bytes: int
    beats: float
    heard: float
    granted: float
    assignments: float
    tick: float
    lost: float


def loads(nodes: int, heartbeat_interval: float = 0.5) -> Loads:
    """Measure the real coordinator, and the real messages."""
    names = [f"n{number:04}" for number in range(nodes)]
    plan = ClusterPlan(version=0, shards=[])
    leases = GrantedLeases(2.5, 3.0, 0.1)
    host = Placement(plan, names[0], replicas=2, degrade=True, recovers=False, leases=leases)
    for name in names:
        host.joined(name)
    host.place(names)
    for _ in range(2):  # the second time, followers know their leaders
        told = {name: _members(host, name) for name in names}
        for name in names:
            host.heard(name, told[name])
    places = _places(nodes, CERTIFICATE)
    encoded = msgspec.msgpack.encode(places)
    # Long before anybody's silence is too long.
    tick = _each(host.tick, [0.0] * 10)
    heard = _each(lambda name: host.heard(name, told[name]), names)
    granted = _each(lambda name: host.granted(name, 0.0), names)
    assignments = _each(host.assignments, names)
    begin = time.perf_counter()
    host.lost(names[nodes // 2], "power")
    lost = time.perf_counter() - begin
    return Loads(
        nodes=nodes,
        table_bytes=len(msgspec.msgpack.encode(places.table)),
        places_bytes=len(encoded),
        encode=_each(msgspec.msgpack.encode, [places]),
        decode=_each(msgspec.msgpack.Decoder(ShardMap).decode, [encoded]),
        plan_bytes=len(msgspec.json.encode(host.plan)),
        beats=nodes / heartbeat_interval,
        heard=heard,
        granted=granted,
        assignments=assignments,
        tick=tick,
        lost=lost,
    )


def _members(host: Placement, name: str) -> list[ReplicaStatus]:
    return [
        ReplicaStatus(
            shard=assignment.shard,
            state="running",
            term=assignment.term,
            leads=assignment.role == "leader",
            caught_up=assignment.role == "leader",
            resync_required=False,
            path=f"/{assignment.shard}",
            address=TcpAddress("10.0.0.1", 4000 + assignment.shard, CERTIFICATE),
            pid=1,
            epoch=1,
            restarts=0,
            reason="",
            stats={},
        )
        for assignment in host.assignments(name).per_shard
    ]


def _places(shards: int, certificate: str) -> ShardMap:
    return ShardMap(
        7,
        even_table(shards, 2),
        tuple(
            ShardLocation(
                f"shard-{shard}",
                f"{shard:032x} n{shard:04}",
                f"/tmp/flowgentic-1000/job-1234567/shard-{shard}.sock",
                f"10.0.{shard // 250}.{shard % 250}",
                40_000 + shard % 20_000,
            )
            for shard in range(shards)
        ),
        certificate,
    )
