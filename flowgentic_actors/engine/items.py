"""Items by namespace, in order, so that a prefix search costs its answer and not the whole."""

from __future__ import annotations

from collections.abc import Iterator
from sys import intern

from sortedcontainers import SortedList

from flowgentic_actors.engine.commands import ListNamespaces, Match, PutItem, SearchItems
from flowgentic_actors.engine.filters import compile_filter
from flowgentic_actors.engine.model import PAGE_BYTES, ItemPosition
from flowgentic_actors.engine.records import ItemDeleted, ItemStored
from flowgentic_actors.engine.replies import ItemPage, ItemRow, NamespacePage
from flowgentic_actors.engine.values import Value, Values, shared

MAX_PAGE = 4096
"""Most items in one page, however small they are."""

MAX_SCAN = 20_000
"""Most items that one page's filter may look at before the page is closed, full or not."""


MAX_AHEAD = (256, 1 << 20)
"""Most cold values, and bytes of them, that are fetched at once for a filter to look at."""


class _Item(Value, gc=False):
    created_us: int
    updated_us: int


class _Namespace:
    """The items of one namespace."""

    __slots__ = ("items", "order")

    def __init__(self) -> None:
        self.items: dict[str, _Item] = {}
        # The keys in order, from the first search on: a shard that is being recovered, or is
        # never searched, does not pay for it.
        self.order: SortedList[str] | None = None

    def from_key(self, key: str, *, inclusive: bool) -> Iterator[tuple[str, _Item]]:
        if self.order is None:
            self.order = SortedList(self.items)
        for found in self.order.irange(minimum=key, inclusive=(inclusive, True)):
            yield found, self.items[found]


class Items:
    """All items of a shard.

    Args:
        values: Keeps their values.
    """

    def __init__(self, values: Values) -> None:
        self._values = values
        self._namespaces: dict[tuple[str, ...], _Namespace] = {}
        self._order: SortedList[tuple[str, ...]] | None = None  # of namespaces, likewise
        self._count = 0
        self.bytes = 0

    def __len__(self) -> int:
        return self._count

    # ------------------------------------------------------------------ writes

    def plan_put(self, command: PutItem, now_us: int) -> ItemStored:
        """Decide what storing an item would record: the creation time survives an update."""
        old = self._find(command.namespace, command.key)
        created = now_us if old is None else old.created_us
        return ItemStored(command.namespace, command.key, command.value, created, now_us)

    def store(self, record: ItemStored, lsn: int) -> None:
        """Apply a record."""
        namespace = self._namespaces.get(record.namespace)
        if namespace is None:
            namespace = self._namespaces[record.namespace] = _Namespace()
            if self._order is not None:
                self._order.add(record.namespace)
        old = namespace.items.get(record.key)
        if old is not None:
            self._drop(old)
        else:
            self._count += 1
            if namespace.order is not None:
                namespace.order.add(record.key)
        kind, data = record.value
        updated = record.updated_us
        # one number for both times of what was never updated: a number is an object
        created = updated if record.created_us == updated else record.created_us
        item = _Item(intern(kind), data, shared(len(data)), lsn, created, updated)
        namespace.items[record.key] = item
        self._values.keep(item)
        self.bytes += item.size

    def delete(self, record: ItemDeleted) -> None:
        """Apply a record."""
        namespace = self._namespaces.get(record.namespace)
        if namespace is None or record.key not in namespace.items:
            return
        self._drop(namespace.items.pop(record.key))
        self._count -= 1
        if namespace.order is not None:
            namespace.order.remove(record.key)
        if not namespace.items:
            del self._namespaces[record.namespace]
            if self._order is not None:
                self._order.remove(record.namespace)

    def values_of(self, record: ItemStored) -> Iterator[tuple[Value, bytes]]:
        """The value that is stored where a record put its own, with the record's bytes."""
        item = self._find(record.namespace, record.key)
        if item is not None:
            yield item, record.value[1]

    def _find(self, namespace: tuple[str, ...], key: str) -> _Item | None:
        found = self._namespaces.get(namespace)
        return None if found is None else found.items.get(key)

    def _drop(self, item: _Item) -> None:
        self.bytes -= item.size
        self._values.drop(item)

    # ------------------------------------------------------------------ reads

    def has(self, namespace: tuple[str, ...], key: str) -> bool:
        """Whether an item is stored."""
        return self._find(namespace, key) is not None

    def get(self, namespace: tuple[str, ...], key: str) -> ItemRow | None:
        """Fetch one item."""
        item = self._find(namespace, key)
        return None if item is None else self._row(namespace, key, item)

    def search(self, query: SearchItems) -> ItemPage:
        """One page of the items below a prefix that match the filter."""
        matches = compile_filter(query.filter) if query.filter else None
        room = min(query.limit, MAX_PAGE)
        rows: list[ItemRow] = []
        skipped = size = 0
        if not room:
            return ItemPage((), None, 0)
        last: tuple[tuple[str, ...], str] | None = None

        def page(*, more: bool) -> ItemPage:
            return ItemPage(tuple(rows), ItemPosition(*last) if more and last else None, skipped)

        for scanned, (namespace, key, item) in enumerate(self._below(query.prefix, query.after)):
            if matches is not None and item.data is None:
                if scanned:
                    return page(more=True)
                self._look_ahead(query)
                return page(more=False)  # nobody gets it: the query is asked again
            if matches is None or matches(*self._values.blob(item)):
                if skipped < query.offset:
                    skipped += 1
                else:
                    size += item.size
                    if rows and size > PAGE_BYTES:
                        return page(more=True)
                    rows.append(self._row(namespace, key, item))
            last = (namespace, key)
            if len(rows) == room or (matches is not None and scanned + 1 >= MAX_SCAN):
                return page(more=True)
        return page(more=False)

    def _look_ahead(self, query: SearchItems) -> None:
        """Miss the cold values that a filter will look at next."""
        most, most_bytes = MAX_AHEAD
        for _, _, item in self._below(query.prefix, query.after):
            if item.data is None:
                self._values.miss(item)
                count, size = self._values.missed
                if count >= most or size >= most_bytes:
                    return

    def list_namespaces(self, query: ListNamespaces) -> NamespacePage:
        """The namespaces that match every condition, cut to the depth asked for, unique."""
        found: list[tuple[str, ...]] = []
        wanted = query.offset + query.limit
        last: tuple[str, ...] | None = None
        prefix = _common_prefix(query.conditions)
        for namespace in self._namespaces_from(prefix, prefix):
            if len(found) >= wanted:
                break
            if all(_match(condition, namespace) for condition in query.conditions):
                cut = namespace[: query.max_depth]
                if cut != last:  # sorted input: equal cuts are neighbours
                    found.append(cut)
                    last = cut
        return NamespacePage(tuple(found[query.offset :]))

    def _namespaces_from(
        self, prefix: tuple[str, ...], first: tuple[str, ...]
    ) -> Iterator[tuple[str, ...]]:
        """The namespaces below a prefix, in order, from the first one on."""
        if self._order is None:
            self._order = SortedList(self._namespaces)
        for namespace in self._order.irange(minimum=first):
            if namespace[: len(prefix)] != prefix:
                return
            yield namespace

    def _below(
        self, prefix: tuple[str, ...], after: ItemPosition | None
    ) -> Iterator[tuple[tuple[str, ...], str, _Item]]:
        first = max(prefix, after.namespace) if after else prefix
        for namespace in self._namespaces_from(prefix, first):
            begun = after is not None and namespace == after.namespace
            start = after.key if begun and after else ""
            for key, item in self._namespaces[namespace].from_key(start, inclusive=not begun):
                yield namespace, key, item

    def _row(self, namespace: tuple[str, ...], key: str, item: _Item) -> ItemRow:
        return ItemRow(namespace, key, self._values.blob(item), item.created_us, item.updated_us)


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
