"""Items by namespace, in order, so that a prefix search costs its answer and not the whole."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct
from sortedcontainers import SortedList

from flowgentic_actors.engine.commands import ListNamespaces, Match, PutItem, SearchItems
from flowgentic_actors.engine.filters import compile_filter
from flowgentic_actors.engine.model import PAGE_BYTES, Blob, ItemPosition
from flowgentic_actors.engine.records import ItemDeleted, ItemStored
from flowgentic_actors.engine.replies import ItemPage, ItemRow, NamespacePage

MAX_PAGE = 4096
"""Most items in one page, however small they are."""

MAX_SCAN = 20_000
"""Most items that one page's filter may look at before the page is closed, full or not."""


class _Item(Struct, frozen=True, gc=False):
    value: Blob
    created_us: int
    updated_us: int


class Items:
    """All items of a shard."""

    def __init__(self) -> None:
        self._items: dict[tuple[tuple[str, ...], str], _Item] = {}
        self._namespaces: dict[tuple[str, ...], int] = {}  # how many items
        # Both in order, from the first search on: a shard that is being recovered, or is never
        # searched, does not pay for it.
        self._order: SortedList[tuple[tuple[str, ...], str]] | None = None
        self._namespace_order: SortedList[tuple[str, ...]] | None = None
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._items)

    # ------------------------------------------------------------------ writes

    def plan_put(self, command: PutItem, now_us: int) -> ItemStored:
        """Decide what storing an item would record: the creation time survives an update."""
        old = self._items.get((command.namespace, command.key))
        created = now_us if old is None else old.created_us
        return ItemStored(command.namespace, command.key, command.value, created, now_us)

    def store(self, record: ItemStored) -> None:
        """Apply a record."""
        place = (record.namespace, record.key)
        old = self._items.get(place)
        if old is None:
            self._count(record.namespace, 1)
            if self._order is not None:
                self._order.add(place)
        else:
            self.bytes -= len(old.value[1])
        self._items[place] = _Item(record.value, record.created_us, record.updated_us)
        self.bytes += len(record.value[1])

    def delete(self, record: ItemDeleted) -> None:
        """Apply a record."""
        place = (record.namespace, record.key)
        old = self._items.pop(place, None)
        if old is None:
            return
        self.bytes -= len(old.value[1])
        self._count(record.namespace, -1)
        if self._order is not None:
            self._order.remove(place)

    def _count(self, namespace: tuple[str, ...], change: int) -> None:
        before = self._namespaces.get(namespace, 0)
        self._namespaces[namespace] = before + change
        if not before and self._namespace_order is not None:
            self._namespace_order.add(namespace)
        if before + change == 0:
            del self._namespaces[namespace]
            if self._namespace_order is not None:
                self._namespace_order.remove(namespace)

    # ------------------------------------------------------------------ reads

    def has(self, namespace: tuple[str, ...], key: str) -> bool:
        """Whether an item is stored."""
        return (namespace, key) in self._items

    def get(self, namespace: tuple[str, ...], key: str) -> ItemRow | None:
        """Fetch one item."""
        item = self._items.get((namespace, key))
        return None if item is None else _row(namespace, key, item)

    def search(self, query: SearchItems) -> ItemPage:
        """One page of the items below a prefix that match the filter."""
        matches = compile_filter(query.filter) if query.filter else None
        room = min(query.limit, MAX_PAGE)
        rows: list[ItemRow] = []
        if not room:
            return ItemPage((), None)
        skip = query.offset if query.after is None else 0
        size = 0
        last: tuple[tuple[str, ...], str] | None = None
        for scanned, (namespace, key, item) in enumerate(self._below(query.prefix, query.after), 1):
            if matches is None or matches(*item.value):
                if skip:
                    skip -= 1
                else:
                    size += len(item.value[1])
                    if rows and size > PAGE_BYTES:
                        return ItemPage(tuple(rows), ItemPosition(*last) if last else None)
                    rows.append(_row(namespace, key, item))
            last = (namespace, key)
            # a page that is still skipping cannot say where it stopped: finish the offset first
            if len(rows) == room or (matches is not None and scanned >= MAX_SCAN and not skip):
                return ItemPage(tuple(rows), ItemPosition(*last))
        return ItemPage(tuple(rows), None)

    def list_namespaces(self, query: ListNamespaces) -> NamespacePage:
        """The namespaces that match every condition, cut to the depth asked for, unique."""
        found: list[tuple[str, ...]] = []
        wanted = query.offset + query.limit
        last: tuple[str, ...] | None = None
        for namespace in self._namespaces_below(_common_prefix(query.conditions)):
            if len(found) >= wanted:
                break
            if all(_match(condition, namespace) for condition in query.conditions):
                cut = namespace[: query.max_depth]
                if cut != last:  # sorted input: equal cuts are neighbours
                    found.append(cut)
                    last = cut
        return NamespacePage(tuple(found[query.offset :]))

    def _namespaces_below(self, prefix: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        if self._namespace_order is None:
            self._namespace_order = SortedList(self._namespaces)
        for namespace in self._namespace_order.irange(minimum=prefix):
            if namespace[: len(prefix)] != prefix:
                return
            yield namespace

    def _below(
        self, prefix: tuple[str, ...], after: ItemPosition | None
    ) -> Iterator[tuple[tuple[str, ...], str, _Item]]:
        start = (after.namespace, after.key) if after else (prefix, "")
        if self._order is None:
            self._order = SortedList(self._items)
        for place in self._order.irange(minimum=start, inclusive=(after is None, True)):
            if place[0][: len(prefix)] != prefix:
                return
            yield *place, self._items[place]


def _row(namespace: tuple[str, ...], key: str, item: _Item) -> ItemRow:
    return ItemRow(namespace, key, item.value, item.created_us, item.updated_us)


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
