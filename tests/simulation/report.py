"""All figures of one run, and how they are told."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from msgspec import Struct

from tests.simulation import losses, placing, resizing, silence
from tests.simulation.cluster import BROADCAST, DELTA
from tests.simulation.losses import Cut, PowerLosses, Spread
from tests.simulation.placing import Balance, FanOut, Loads, Moved, Routing
from tests.simulation.resizing import CHANGES, Resized
from tests.simulation.silence import Day

_LENGTHS = tuple(length / 20 for length in range(40, 73))  # 2.0 to 3.6 s


class Report(Struct, frozen=True, kw_only=True):
    """What a run found.

    Attributes:
        nodes: How many nodes.
        hours: Of pauses.
        seed: Decides everything but what is timed.
        balances: By number of shards.
        moved: By number of shards.
        losses: By manner and number of nodes that are lost at once.
        cuts: By manner.
        resized: By what was changed.
        day: Of pauses.
        paused: Share of nodes that are lost, by length of a pause.
        resumed: The same, by how much later than the host a node goes on.
        loads: By number of nodes.
        routing: Time to find a shard.
        fans: By number of shards.
    """

    nodes: int
    hours: float
    seed: int
    balances: list[Balance]
    moved: list[Moved]
    losses: list[tuple[str, PowerLosses]]
    cuts: list[tuple[str, Cut]]
    resized: list[Resized]
    day: Day
    paused: list[tuple[float, float]]
    resumed: list[tuple[float, float]]
    loads: list[Loads]
    routing: Routing
    fans: list[FanOut]

    @property
    def sound(self) -> bool:
        """Whether what must not happen did not."""
        ran = [found for _, found in self.losses]
        cuts = [found for _, found in self.cuts]
        return not (
            self.day.lost
            or any(found.two_answered or found.others_lost for found in ran)
            or any(found.two_answered or found.others_lost or found.lost for found in cuts)
            or any(found.two_answered or found.unstored for found in self.resized)
        )


def simulate(nodes: int, hours: float, seed: int, say: Callable[[str], None]) -> Report:
    """Run all of it. Takes minutes for 1,000 nodes.

    Args:
        nodes: How many nodes.
        hours: Of pauses.
        seed: Decides everything but what is timed.
        say: Told what is under way.
    """
    sizes = [size for size in (10, 30, 100, 300) if size < nodes] + [nodes]
    tries = min(1000, 10 * nodes)
    say("placing keys")
    balances = [placing.balance(size, 100_000, seed) for size in sizes]
    moved = [placing.moved(size) for size in sizes]
    loads = [placing.loads(size) for size in sizes]
    fans = [placing.fan_out(size, 20_000, seed) for size in (1, *sizes)]
    found, cuts = [], []
    several = max(2, nodes // 100)
    for policy in (BROADCAST, DELTA):
        for at_once, most in ((1, 20), (several, 5)):
            times = min(most, (nodes - 1) // (2 * at_once))
            say(f"power loss, {at_once} of {nodes} at once, {times} times, {policy.name}")
            lost = losses.power_losses(nodes, at_once, times, seed, policy)
            found.append((policy.name, lost))
        say(f"a cut, {policy.name}")
        cut = losses.cut_off(nodes, 3 * nodes // 10, 10.0, seed, policy)
        cuts.append((policy.name, cut))
    changes = []
    for change in CHANGES:
        say(f"slots move: {change}")
        changes.append(resizing.resized(nodes, change, seed))
    say(f"{hours:g} hours of pauses")
    return Report(
        nodes=nodes,
        hours=hours,
        seed=seed,
        balances=balances,
        moved=moved,
        losses=found,
        cuts=cuts,
        resized=changes,
        day=silence.day(nodes, hours, seed),
        paused=silence.lost_by_length(_LENGTHS, tries, seed),
        resumed=silence.lost_by_length(_LENGTHS, tries * 3 // 10, seed, suspended=True),
        loads=loads,
        routing=placing.routing(nodes),
        fans=fans,
    )


# ---------------------------------------------------------------------- as text


def markdown(report: Report) -> str:
    """The tables."""
    return "\n\n".join(
        [
            f"{report.nodes} nodes, {report.hours:g} hours of pauses, seed {report.seed}",
            _balance(report),
            _moved(report),
            _losses(report),
            _cuts(report),
            _resized(report),
            _silence(report),
            _loads(report),
            _fans(report),
            _routing(report.routing),
        ]
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _balance(report: Report) -> str:
    head = ["shards", "slots", "threads alike", "Zipf 1.1", "its busiest thread alone"]
    rows = [
        [
            f"{one.shards:,}",
            f"{one.slots:.2f}",
            f"{one.uniform:.2f}",
            *(text for s in one.zipf for text in (f"{one.zipf[s]:.1f}", f"{one.alone[s]:.1f}")),
        ]
        for one in report.balances
    ]
    return "Busiest shard, max / mean:\n\n" + _table(
        [*head, "Zipf 1.3", "its busiest thread alone"], rows
    )


def _moved(report: Report) -> str:
    rows = [
        [
            f"{one.shards:,}",
            f"{one.added * 100:.3f} %",
            f"{one.ideal * 100:.3f} %",
            f"{one.removed * 100:.3f} %",
            f"{one.seconds * 1e3:.0f} ms",
        ]
        for one in report.moved
    ]
    head = ["shards", "one more", "the least possible", "one less", "time to compute"]
    return "Slots that move:\n\n" + _table(head, rows)


def _seconds(found: Spread) -> str:
    return f"{found.p50:.2f} / {found.p99:.2f} / {found.most:.2f}"


def _losses(report: Report) -> str:
    rows = [
        [
            policy,
            str(one.at_once),
            _seconds(one.detected),
            _seconds(one.leading),
            _seconds(one.clients),
            _seconds(one.last_client),
            f"{one.busy * 100:.0f} %",
            f"{one.two_answered} / {one.others_lost} / {one.lost_shards}",
        ]
        for policy, one in report.losses
    ]
    head = [
        "told",
        "lost at once",
        "counted as lost",
        "another leads",
        "a client knows",
        "the last client knows",
        "host busy",
        "two answered / others lost / both copies gone",
    ]
    return "Loss of power, seconds, p50 / p99 / max:\n\n" + _table(head, rows)


def _cuts(report: Report) -> str:
    rows = [
        [
            policy,
            f"{one.cut} of {one.nodes}, {one.seconds:g} s",
            str(one.unreachable),
            f"{one.two_answered} / {one.others_lost} / {one.lost}",
            f"{one.back:.1f} s",
            f"{one.whole:.1f} s",
            f"{one.most_led}, {one.lead_nothing}",
        ]
        for policy, one in report.cuts
    ]
    head = [
        "told",
        "cut off",
        "shards not reached",
        "two answered / others lost / lost for good",
        "all back after",
        "two copies after",
        "most led, nodes that lead nothing",
    ]
    return "Nodes that are cut off:\n\n" + _table(head, rows)


def _resized(report: Report) -> str:
    rows = [
        [
            one.change,
            f"{one.needed} / {one.left} / {one.copied}",
            str(one.begun_anew),
            f"{one.seconds:.0f} s",
            f"{one.silences.p50:.3f} / {one.silences.p99:.3f} / {one.silences.most:.3f} s",
            f"{one.two_answered} / {one.unstored}",
            str(one.most_led),
            f"{one.busy * 100:.0f} %",
        ]
        for one in report.resized
    ]
    head = [
        "nodes",
        "slots that had to leave their node / left it / were copied",
        "moves begun anew",
        "took",
        "a slot was not answered for, p50 / p99 / max",
        "two answered / answered without the data",
        "most led",
        "host busy",
    ]
    return "Slots that move while all serve:\n\n" + _table(head, rows)


def _silence(report: Report) -> str:
    day = report.day
    rows = [
        ["nodes, hours", f"{day.nodes:,}, {day.hours:g}"],
        ["pauses, of at least 0.2 s", f"{day.pauses:,}, {day.played:,}"],
        ["times that the whole job was suspended", str(day.suspended)],
        ["longest silence that the host counted", f"{day.longest_silence:.2f} s"],
        ["nodes wrongly counted as lost", str(day.lost)],
        ["pauses after which a node had to wait for a lease", f"{day.fenced:,}"],
        ["first pauses that lose a node, half, all", _ends(report.paused)],
        ["the same for going on later than the host", _ends(report.resumed)],
    ]
    return "Pauses:\n\n" + _table(["", ""], rows)


def _ends(shares: Sequence[tuple[float, float]]) -> str:
    found = []
    for least in (0.0005, 0.5, 0.9995):
        longer = [length for length, share in shares if share >= least]
        found.append(f"{longer[0]:.2f} s" if longer else f"over {shares[-1][0]:.2f} s")
    return ", ".join(found)


def _loads(report: Report) -> str:
    rows = [
        [
            f"{one.nodes:,}",
            f"{one.table_bytes:,}",
            f"{one.places_bytes:,}",
            f"{one.plan_bytes:,}",
            f"{one.beats:,.0f}",
            f"{one.heard * 1e6:.1f}",
            f"{one.granted * 1e6:.1f}",
            f"{one.assignments * 1e6:.1f}",
            f"{one.tick * 1e6:.0f}",
            f"{one.lost * 1e6:.0f}",
        ]
        for one in report.loads
    ]
    head = [
        "nodes",
        "table, B",
        "places, B",
        "plan, B",
        "beats/s",
        "heard, µs",
        "granted, µs",
        "orders, µs",
        "tick, µs",
        "lost, µs",
    ]
    return "What the host carries:\n\n" + _table(head, rows)


def _fans(report: Report) -> str:
    rows = [
        [
            f"{one.shards:,}",
            f"{one.slowest * 1e3:.1f} ms",
            f"{one.slowest_p99 * 1e3:.1f} ms",
            f"{one.asking * 1e3:.1f} ms",
        ]
        for one in report.fans
    ]
    head = ["shards asked", "slowest, mean", "slowest, p99", "asking, in the client"]
    return "A search below a short prefix:\n\n" + _table(head, rows)


def _routing(one: Routing) -> str:
    times = [one.known, one.thread, one.namespace, one.below]
    head = ["a key asked for before", "a thread", "a namespace", "all below a short prefix"]
    return "Finding a shard:\n\n" + _table(head, [[f"{t * 1e6:.2f} µs" for t in times]])
