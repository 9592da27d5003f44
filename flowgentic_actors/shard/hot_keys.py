"""Hot keys: the threads and namespaces that take a large part of a shard's requests.

All of a key's requests meet one shard. Which keys are hot is found in a sample of them, by a
Space-Saving counter (Metwally et al., 2005): of bounded size, with counts that fade. An actor names
them among its counters. A shard in the process that uses it does not count: there is no other place
that its keys could be moved to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import cycle, islice
from math import sqrt
from operator import attrgetter
from typing import Any, Final, TypeAlias

from flowgentic_actors.engine.commands import ABOUT_A_THREAD, ABOUT_AN_ITEM, SEARCHES, Command

Key: TypeAlias = tuple[str, str]
"""(`"thread"`, its id) or (`"namespace"`, its first labels)."""

EVERY: Final = 16
"""One request in about this many is looked at."""

SHARE: Final = 0.25
"""A key is hot from this share of the requests on."""

LEAST_PER_SECOND: Final = 200.0
"""A shard with fewer requests is idle, whatever their keys."""

_PREFIX: Final = "hot "
_FORGOTTEN: Final = 0.5  # what is left of a count that need not be kept
_LABELS: Final = 2  # as many as decide a namespace's shard, if the cluster's settings do not differ
_LONGEST: Final = 200  # of an id's characters: a counter's name may have 256

_THREAD, _NAMESPACE = attrgetter("thread_id"), attrgetter("namespace")
_PREFIXED = attrgetter("prefix")

_ABOUT: dict[type, Callable[[Command], Any]] = {
    **dict.fromkeys(ABOUT_A_THREAD, _THREAD),
    **dict.fromkeys(ABOUT_AN_ITEM, _NAMESPACE),
    **dict.fromkeys(SEARCHES, _PREFIXED),
}


def sampling(every: int = EVERY) -> Iterator[bool]:
    """Yield for each request whether it is in the sample, without end; the first is not.

    Every 16th would see one thread of 16 that take turns, and nothing of the others. The multiples
    of the golden ratio are spread evenly over the remainders of any period.
    """
    limit = (1 << 32) // every
    return cycle([(n * 0x9E3779B1) & 0xFFFF_FFFF < limit for n in range(1, 4100)])


def key_of(command: Command) -> Key | None:
    """The thread or namespace that a command is about; None for others, as those of caches."""
    about = _ABOUT.get(type(command))
    if about is None:
        return None
    of = about(command)
    if of is None or of == ():
        return None
    kind, text = ("thread", of) if about is _THREAD else ("namespace", ".".join(of[:_LABELS]))
    return kind, text if len(text) <= _LONGEST else _cut(text)


class HotKeys:
    """Counts the keys of a sample of requests; told the time by its callers.

    A new key takes the place, and the count, of the one with the fewest when all places are taken;
    what it took over is known as its error, so how often it was seen at least is known as well.
    Counts are halved after every period: they are about the last few.

    Times are seconds of one clock that never goes back.

    Args:
        now: The time.
        size: Keys to count at one time.
        period: Seconds after which counts are halved.
        every: Requests that one of the sample stands for.
    """

    def __init__(
        self, now: float, *, size: int = 64, period: float = 5.0, every: int = EVERY
    ) -> None:
        self._size = size
        self._every = every
        self._counts = _Counts(now, period)

    def saw(self, key: Key | None, now: float) -> None:
        """Count one request of the sample, with its key if it has one."""
        seen = self._counts
        if now >= seen.until:
            seen = self._counts = seen.at(now)
        seen.total += 1
        if key is None:
            return
        counts, errors = seen.counts, seen.errors
        if key in counts:
            counts[key] += 1
        elif len(counts) < self._size:
            counts[key] = 1
        else:
            values = list(counts.values())
            fewest = next(islice(counts, values.index(min(values)), None))
            errors.pop(fewest, None)
            errors[key] = counts.pop(fewest)
            counts[key] = errors[key] + 1

    def hot(
        self, now: float, *, share: float = SHARE, least_per_second: float = LEAST_PER_SECOND
    ) -> list[tuple[Key, float]]:
        """The keys with more than a given share of all requests, and their shares, largest first.

        A sample can mislead, so a key has to be three standard deviations above the share: none is
        named for a few requests, or flickers because it is just at it. Only reads: callable from
        any thread.

        Args:
            now: The time.
            share: The share.
            least_per_second: Requests per second below which no key is hot.
        """
        seen = self._counts.at(now)
        seconds = max(1.0, seen.seconds + now - seen.since)
        if not seen.total or seen.total * self._every < least_per_second * seconds:
            return []
        bar = seen.total * share + 3 * sqrt(seen.total * share * (1 - share))
        counts, errors = seen.counts.copy(), seen.errors.copy()
        surely = {key: count - errors.get(key, 0.0) for key, count in counts.items()}
        found = [(key, count / seen.total) for key, count in surely.items() if count > bar]
        return sorted(found, key=lambda each: (-each[1], each[0]))

    def stats(self, now: float) -> dict[str, int]:
        """The hot keys as an actor's counters, name to percent; see `hot_in`."""
        return {_counter(*key): min(100, round(100 * part)) for key, part in self.hot(now)}


def hot_in(stats: Mapping[str, int]) -> tuple[str, ...]:
    """The hot keys among an actor's counters in words, such as `thread 'abc' 61 %`."""
    named = [(name, percent) for name, percent in stats.items() if name.startswith(_PREFIX)]
    named.sort(key=lambda each: -each[1])
    return tuple(f"{name.removeprefix(_PREFIX)} {percent} %" for name, percent in named)


class _Counts:
    """Counts of requests by key; replaced as a whole when they fade, for consistent reads."""

    __slots__ = ("counts", "errors", "period", "seconds", "since", "total", "until")

    def __init__(self, since: float, period: float) -> None:
        self.since = since  # when counts were halved last
        self.period = period
        self.until = since + period
        self.seconds = 0.0  # before that which the counts are of, halved like them
        self.total = 0.0
        self.counts: dict[Key, float] = {}
        self.errors: dict[Key, float] = {}

    def at(self, now: float) -> _Counts:
        """The counts, faded to a given time."""
        if now < self.until:
            return self
        periods = max(1, int((now - self.since) / self.period))
        faded, left = _Counts(self.since + periods * self.period, self.period), 0.5**periods
        faded.seconds = self.period + (self.seconds - self.period) * left
        faded.total = self.total * left
        faded.counts = {
            key: count * left
            for key, count in self.counts.copy().items()
            if count * left > _FORGOTTEN
        }
        faded.errors = {
            key: error * left for key, error in self.errors.copy().items() if key in faded.counts
        }
        return faded


def _cut(text: str) -> str:
    """Shorten a text to its two ends, in which most texts differ."""
    end = _LONGEST // 2 - 1
    return text if len(text) <= _LONGEST else f"{text[:end]}…{text[-end:]}"


def _counter(kind: str, text: str) -> str:
    """The name of a key's counter: short, printable text, whatever ids users choose."""
    return f"{_PREFIX}{kind} {_cut(repr(text))}"
