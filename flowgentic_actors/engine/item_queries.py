"""What can be read of items: one by its key, a search by prefix and filter or by similarity."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TypeAlias

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
from flowgentic_actors.engine.model import PAGE_BYTES, ItemPosition, RankPosition
from flowgentic_actors.engine.replies import (
    ItemPage,
    ItemReply,
    ItemRow,
    NamespacePage,
    RankPage,
    Reply,
    ScoredRow,
)
from flowgentic_actors.engine.values import Values
from flowgentic_actors.engine.vectors import check_vector

MAX_PAGE = 4096
"""Most items in one page, however small they are."""

MAX_SCAN = 20_000
"""Most items that one page's filter may look at before the page is closed, full or not."""

MAX_AHEAD = (256, 1 << 20)
"""Most cold values, and bytes of them, that are fetched at once for a filter to look at."""

_Predicate: TypeAlias = Callable[[str, bytes], bool] | None
_Candidate: TypeAlias = tuple[ItemPlace, StoredItem, float | None, int]
"""Place, item, score, and how many candidates with a score there were up to it."""


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

    # ------------------------------------------------------------------ searches

    def _search(self, query: SearchItems, now_us: int) -> ItemPage:
        """One page of the items below a prefix that match the filter."""

        def candidates() -> Iterator[_Candidate]:
            for place, item in self._items.below(query.prefix, query.after, now_us):
                yield place, item, None, 0

        page = _Page(self._values, query, candidates)
        if not page.fill():
            return ItemPage((), None, 0)  # nobody gets it: the query is asked again
        rows = tuple(self._row(place, item) for place, item, _, _ in page.found)
        last = page.last if page.has_more else None
        return ItemPage(rows, ItemPosition(*last[0]) if last else None, page.skipped)

    def _rank(self, query: RankItems, now_us: int) -> RankPage:
        """One page of the same, most similar first."""
        check_vector(query.vector, "the vector to search for")
        start = query.after or RankPosition(0)

        def candidates() -> Iterator[_Candidate]:
            rank = start.rank
            if start.after is None:
                for score, place in islice(self._ranked(query), start.rank, None):
                    rank += 1
                    item = self._items.find(place, now_us)
                    if item is not None:
                        yield place, item, score, rank
            for place, item in self._items.below(query.prefix, start.after, now_us):
                if not self._items.vectors.has(place, len(query.vector)):
                    yield place, item, None, rank

        page = _Page(self._values, query, candidates)
        if not page.fill():
            return RankPage((), None, 0)
        rows = tuple(ScoredRow(self._row(p, item), score) for p, item, score, _ in page.found)
        after = None
        if page.has_more and page.last is not None:
            place, _, score, rank = page.last
            after = RankPosition(rank, ItemPosition(*place) if score is None else None)
        return RankPage(rows, after, page.skipped)

    def _ranked(self, query: RankItems) -> Iterator[tuple[float, ItemPlace]]:
        every = not query.prefix and self._items.shown is None
        namespaces = None if every else self._items.namespaces(query.prefix)
        return self._items.vectors.ranked(query.vector, query.metric, namespaces)

    def _row(self, place: ItemPlace, item: StoredItem) -> ItemRow:
        return ItemRow(*place, self._values.blob(item), item.created_us, item.updated_us)

    # ------------------------------------------------------------------ namespaces

    def _list_namespaces(self, query: ListNamespaces, now_us: int) -> NamespacePage:
        """The namespaces that match every condition, cut to the depth asked for, unique."""
        found: list[tuple[str, ...]] = []
        wanted = query.offset + query.limit
        last: tuple[str, ...] | None = None
        for namespace in self._items.namespaces(_common_prefix(query.conditions)):
            if len(found) >= wanted:
                break
            cut = namespace[: query.max_depth]
            if (
                cut != last  # sorted input: equal cuts are neighbours
                and all(_match(condition, namespace) for condition in query.conditions)
                and self._items.has_living(namespace, now_us)
            ):
                found.append(cut)
                last = cut
        return NamespacePage(tuple(found[query.offset :]))


class _Page:
    """What one page of a search takes from its candidates."""

    def __init__(
        self,
        values: Values,
        query: SearchItems | RankItems,
        candidates: Callable[[], Iterable[_Candidate]],
    ) -> None:
        self._values = values
        self._room = min(query.limit, MAX_PAGE)
        self._offset = query.offset
        self._matches: _Predicate = compile_filter(query.filter) if query.filter else None
        self._candidates = candidates
        self.found: list[_Candidate] = []
        self.skipped = 0
        self.has_more = False
        self.last: _Candidate | None = None  # that was looked at to the end

    def fill(self) -> bool:
        """Take candidates until the page is full; False when their values have to be fetched."""
        size = 0
        if not self._room:
            return True
        for scanned, candidate in enumerate(self._candidates(), 1):
            item = candidate[1]
            if self._matches is not None and item.data is None:
                if scanned == 1:
                    self._look_ahead()
                    return False
                self.has_more = True
                return True
            if self._matches is None or self._matches(*self._values.blob(item)):
                if self.skipped < self._offset:
                    self.skipped += 1
                else:
                    size += item.size
                    if self.found and size > PAGE_BYTES:
                        self.has_more = True
                        return True
                    self.found.append(candidate)
            self.last = candidate
            if len(self.found) == self._room or (self._matches is not None and scanned >= MAX_SCAN):
                self.has_more = True
                return True
        return True

    def _look_ahead(self) -> None:
        """Miss the cold values that the filter will look at next."""
        most, most_bytes = MAX_AHEAD
        for _, item, _, _ in self._candidates():
            if item.data is None:
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
