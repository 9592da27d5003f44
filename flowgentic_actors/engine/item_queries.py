"""Queries about items: by key, by prefix and filter, or by similarity."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import dropwhile, islice
from operator import eq
from typing import Any, Final, TypeAlias

from flowgentic_actors.engine.commands import (
    GetItem,
    ItemQuery,
    ListNamespaces,
    Match,
    RankItems,
    SearchItems,
)
from flowgentic_actors.engine.expiry import ItemPlace
from flowgentic_actors.engine.filters import compile_filter
from flowgentic_actors.engine.items import Items, StoredItem
from flowgentic_actors.engine.model import (
    PAGE_BYTES,
    ItemPosition,
    NamespacePosition,
    RankPosition,
)
from flowgentic_actors.engine.pace import LARGE, Pace
from flowgentic_actors.engine.replies import (
    ItemPage,
    ItemReply,
    ItemRow,
    NamespacePage,
    RankPage,
    Reply,
    ScoredRow,
)
from flowgentic_actors.engine.values import Value, Values
from flowgentic_actors.engine.vectors import check_vector

MAX_PAGE = 4096
"""Most items in one page, however small they are."""

MAX_AHEAD = (256, 1 << 20)
"""Most cold values, and bytes of them, that are fetched at once for a filter to look at."""

_MOST_LOOKED_AHEAD: Final = 4096

_Predicate: TypeAlias = Callable[[Value], bool] | None
_Candidate: TypeAlias = tuple[ItemPlace, StoredItem | None, float | None]
"""Place, item (None for one that is no candidate, but was looked at), score."""


class ItemQueries:
    """Answers queries about items.

    Args:
        items: The items.
        values: Their values.
    """

    def __init__(self, items: Items, values: Values) -> None:
        self._items = items
        self._values = values

    def answer(self, query: ItemQuery, now_us: int) -> Reply:
        """Answer a query; the values that it needs may turn out to be cold.

        Raises:
            InvalidRequestError: If it cannot be answered as it stands.
        """
        alive_at = 0 if query.expired else now_us
        match query:
            case GetItem():
                return self.get(query, now_us)
            case SearchItems():
                return self._search(query, alive_at)
            case RankItems():
                return self._rank(query, alive_at)
            case ListNamespaces():
                return self._list_namespaces(query, alive_at)

    def get(self, query: GetItem, now_us: int) -> ItemReply:
        """One item; see `answer`."""
        place = query.namespace, query.key
        item = self._items.find(place, 0 if query.expired else now_us)
        return ItemReply(None if item is None else self._row(place, item))

    def get_at_once(self, query: GetItem) -> ItemReply | None:
        """One item without a time, where no item expires; None where that is not possible."""
        return None if self._items.any_expires else self.get(query, 0)

    # ------------------------------------------------------------------ searches

    def _search(self, query: SearchItems, now_us: int) -> ItemPage:
        """One page of the items below a prefix that match the filter."""
        page = self._page(query, partial(self._items.below, query.prefix, query.after), now_us)
        if not page.fill():
            return ItemPage((), None, 0)  # never sent: the query is asked again
        rows = tuple(self._row(place, item) for place, item, _ in page.found)
        last = page.last if page.has_more else None
        return ItemPage(rows, ItemPosition(*last[0]) if last else None, page.skipped)

    def _rank(self, query: RankItems, now_us: int) -> RankPage:
        """One page of matching items, most similar first."""
        check_vector(query.vector, "the vector to search for")
        start = query.after

        def candidates() -> Iterator[_Candidate]:
            after: ItemPosition | None = None
            has, size = self._items.vectors.has, len(query.vector)
            if start is not None and start.score is None:
                after = start.item
            elif query.metric != "l2" and not any(query.vector):
                # All score the same, and are in the order of their places.
                after = None if start is None else start.item
                for place, item, _ in self._items.below(query.prefix, after):
                    yield place, item if has(place, size) else None, 0.0
                after = None
            else:
                for score, place in self._ranked(query):
                    yield place, self._items.find(place), score
            for place, item, _ in self._items.below(query.prefix, after):
                yield place, None if has(place, size) else item, None

        page = self._page(query, candidates, now_us)
        if not page.fill():
            return RankPage((), None, 0)
        rows = tuple(ScoredRow(self._row(p, item), score) for p, item, score in page.found)
        last = page.last if page.has_more else None
        after = RankPosition(ItemPosition(*last[0]), last[2]) if last else None
        return RankPage(rows, after, page.skipped)

    def _page(
        self,
        query: SearchItems | RankItems,
        candidates: Callable[[], Iterable[_Candidate]],
        now_us: int,
    ) -> _Page:
        def living() -> Iterator[_Candidate]:
            for place, item, score in candidates():
                yield place, None if self._items.is_over(place, now_us) else item, score

        return _Page(self._values, query, living if self._items.any_expires else candidates)

    def _ranked(self, query: RankItems) -> Iterator[tuple[float, ItemPlace]]:
        every = not query.prefix and self._items.shown is None
        namespaces = None if every else self._items.namespaces(query.prefix)
        after = query.after
        past = None
        if after is not None and after.score is not None:
            past = after.score, (after.item.namespace, after.item.key)
        return self._items.vectors.ranked(query.vector, query.metric, namespaces, past)

    def _row(self, place: ItemPlace, item: StoredItem) -> ItemRow:
        return ItemRow(*place, self._values.blob(item), item.created_us, item.updated_us)

    # ------------------------------------------------------------------ namespaces

    def _list_namespaces(self, query: ListNamespaces, now_us: int) -> NamespacePage:
        """One page of the namespaces that match every condition, cut as asked for, unique."""
        found: list[tuple[str, ...]] = []
        room, size, skipped, conditions = min(query.limit, MAX_PAGE), 0, 0, query.conditions
        after = query.after
        first = last = None
        if after is not None:
            first = after.namespace
            last = first[: query.max_depth] if after.given else None
        if not room:
            return NamespacePage(())
        pace = Pace(sum(len(condition.path) for condition in conditions))
        step = pace.step
        namespaces = self._items.namespaces(_common_prefix(conditions), first)
        if after is not None:
            namespaces = dropwhile(partial(eq, first), namespaces)
        for looked, namespace in enumerate(namespaces, 1):
            cut = namespace[: query.max_depth]
            if (
                cut != last  # sorted input: equal cuts are neighbours
                and (not conditions or all(_match(each, namespace) for each in conditions))
                and self._items.has_living(namespace, now_us)
            ):
                last = cut
                if skipped < query.offset:
                    skipped += 1
                else:
                    found.append(cut)
                    size += len("".join(cut))
            if len(found) == room or size > PAGE_BYTES or (not looked % step and pace.is_over()):
                more = NamespacePosition(namespace, cut == last)
                return NamespacePage(tuple(found), more, skipped)
        return NamespacePage(tuple(found), None, skipped)


class _Page:
    """One page of a search, filled from its candidates.

    Args:
        values: The items' values.
        query: What is asked.
        candidates: Begins to go through the candidates.
    """

    def __init__(
        self,
        values: Values,
        query: SearchItems | RankItems,
        candidates: Callable[[], Iterable[_Candidate]],
    ) -> None:
        self._values = values
        self._room = min(query.limit, MAX_PAGE)
        self._offset = query.offset
        self._pace = Pace(len(query.filter))
        self._matches: _Predicate = compile_filter(query.filter) if query.filter else None
        self._candidates = candidates
        self.found: list[Any] = []  # candidates that have an item
        self.skipped = 0
        self._size = 0  # bytes of the values found
        self.has_more = False
        self.last: _Candidate | None = None  # that was looked at to the end

    def fill(self) -> bool:
        """Take candidates until the page is full; False when their values have to be fetched."""
        seen = 0  # bytes that were looked into since the last look at the clock
        least = LARGE // self._pace.step + 1  # that a candidate counts for
        matches, found, room = self._matches, self.found, self._room
        if not room:
            return True
        for candidate in self._candidates():
            seen += least
            item = candidate[1]
            if item is not None:
                seen += item.size
                if matches is not None and item.data is None:
                    return self._end_before_cold()
                if (matches is None or matches(item)) and not self._take(candidate, item.size):
                    self.has_more = True
                    return True
            self.last = candidate
            if seen > LARGE:
                seen = 0
                self.has_more = self._pace.is_over()
            if self.has_more or len(found) == room:
                self.has_more = True
                return True
        return True

    def _take(self, candidate: _Candidate, size: int) -> bool:
        """Put a match on the page, or skip it; False when it is too large for what is left."""
        if self.skipped < self._offset:
            self.skipped += 1
            return True
        self._size += size
        if self.found and self._size > PAGE_BYTES:
            return False
        self.found.append(candidate)
        return True

    def _end_before_cold(self) -> bool:
        """End the page before a cold value; False when it would be empty."""
        self.has_more = self.last is not None
        if not self.has_more:
            self._look_ahead()
        return self.has_more

    def _look_ahead(self) -> None:
        """Note the cold values that the filter will read next as missed."""
        most, most_bytes = MAX_AHEAD
        for _, item, _ in islice(self._candidates(), _MOST_LOOKED_AHEAD):
            if item is not None and item.data is None:
                self._values.miss(item)
                count, size = self._values.missed
                if count >= most or size >= most_bytes:
                    return


def _common_prefix(conditions: tuple[Match, ...]) -> tuple[str, ...]:
    """The longest literal prefix among the conditions, to start the scan there."""
    best: tuple[str, ...] = ()
    for condition in conditions:
        if condition.kind == "prefix":
            literal = condition.path[: _index_of_wildcard(condition.path)]
            best = max(best, literal, key=len)
    return best


def _index_of_wildcard(path: tuple[str, ...]) -> int:
    return path.index("*") if "*" in path else len(path)


def _match(condition: Match, namespace: tuple[str, ...]) -> bool:
    path = condition.path
    if len(namespace) < len(path):
        return False
    start = 0 if condition.kind == "prefix" else len(namespace) - len(path)
    labels = namespace[start : start + len(path)]
    return all(want in ("*", label) for want, label in zip(path, labels, strict=True))
