"""Items by namespace, in order, so that a prefix search costs no more than its answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from sys import intern

from msgspec.structs import replace
from sortedcontainers import SortedList

from flowgentic_actors.engine.commands import DeleteItem, PutItem
from flowgentic_actors.engine.expiry import Expiry, ItemPlace
from flowgentic_actors.engine.model import ItemPosition
from flowgentic_actors.engine.records import (
    ItemDeleted,
    ItemRecord,
    ItemsExpired,
    ItemsRefreshed,
    ItemStored,
)
from flowgentic_actors.engine.replies import Conflict
from flowgentic_actors.engine.values import Value, Values, shared
from flowgentic_actors.engine.vectors import Vectors, check_vectors


class StoredItem(Value, gc=False):
    """An item's value and times; `updated_us` is its version as well."""

    created_us: int
    updated_us: int


class _Namespace:
    """The items of one namespace."""

    __slots__ = ("items", "order")

    def __init__(self) -> None:
        self.items: dict[str, StoredItem] = {}
        # The keys in order, from the first search on: a shard that is being recovered, or is
        # never searched, does not pay for it.
        self.order: SortedList[str] | None = None

    def keys_from(self, key: str, *, inclusive: bool) -> Iterator[str]:
        if self.order is None:
            self.order = SortedList(self.items)
        return self.order.irange(minimum=key, inclusive=(inclusive, True))


class Items:
    """All items of a shard.

    Args:
        values: Keeps their values.
        searchable: Whether their vectors are kept to be searched.

    Attributes:
        shown: Whether searches and listings find the items of a namespace; None for all.
    """

    def __init__(self, values: Values, *, searchable: bool) -> None:
        self._values = values
        self._searchable = searchable
        self._namespaces: dict[tuple[str, ...], _Namespace] = {}
        self._order: SortedList[tuple[str, ...]] | None = None  # of namespaces, likewise
        self._expiry = Expiry()
        self._count = 0
        self.vectors = Vectors()
        self.bytes = 0
        self.shown: Callable[[tuple[str, ...]], bool] | None = None

    def __len__(self) -> int:
        return self._count

    # ------------------------------------------------------------------ writes, decided

    def plan_put(self, command: PutItem, now_us: int) -> ItemStored | Conflict:
        """Decide what storing an item would record: the creation time survives an update.

        Raises:
            InvalidRequestError: If its vectors cannot be kept.
        """
        old = self.find((command.namespace, command.key), now_us)
        if (
            command.expected is not None
            and (conflict := _conflict(old, command.expected)) is not None
        ):
            return conflict
        if command.vectors:
            check_vectors(command.vectors)
        return ItemStored(
            command.namespace,
            command.key,
            command.value,
            now_us if old is None else old.created_us,
            now_us,
            now_us + command.ttl_us if command.ttl_us else 0,
            command.ttl_us,
            command.vectors,
        )

    def takes(self, command: PutItem) -> bool:
        """Whether a put is recorded as it is, without conditions; see `Shard.writes`."""
        return not (
            command.expected is not None
            or command.ttl_us
            or command.vectors
            or self._expiry.lives
            or self.vectors.total_bytes
        )

    def plan_delete(self, command: DeleteItem, now_us: int) -> ItemDeleted | Conflict | None:
        """Decide what removing an item would record."""
        place = command.namespace, command.key
        conflict = _conflict(self.find(place, now_us), command.expected)
        if conflict is not None:
            return conflict
        return ItemDeleted(*place) if self.find(place) is not None else None

    def plan_refresh(self, places: Iterable[ItemPlace], now_us: int) -> ItemsRefreshed | None:
        """Decide what a read of items would record: those whose life it extends."""
        found = tuple(place for place in places if self._expiry.gains(place, now_us))
        return ItemsRefreshed(found, now_us) if found else None

    def plan_expire(self, now_us: int, most: int) -> ItemsExpired | None:
        """Decide which items have expired, at most so many."""
        over = self._expiry.over(now_us, most)
        return ItemsExpired(tuple(over)) if over else None

    @property
    def any_expires(self) -> bool:
        """Whether any item expires."""
        return bool(self._expiry.lives)

    def next_expiry_us(self) -> int | None:
        """The time at which an item may expire next."""
        return self._expiry.next_us()

    # ------------------------------------------------------------------ writes, carried out

    def apply(self, record: ItemRecord, lsn: int) -> None:
        """Apply a record; see `Shard.apply`."""
        match record:
            case ItemStored():
                self.store(record, lsn)
            case ItemDeleted(namespace, key):
                self._delete((namespace, key))
            case ItemsRefreshed(places, time_us):
                self._expiry.refresh(places, time_us)
            case ItemsExpired(places):
                for place in places:
                    self._delete(place)

    def restore(self, places: Iterable[ItemPlace]) -> None:
        """Restore consistency after an interrupted change of items; see `Shard.redo`."""
        for place in places:
            namespace = self._namespaces.get(place[0])
            if namespace is not None:
                namespace.order = None
                if not namespace.items:
                    del self._namespaces[place[0]]
            if self.find(place) is None:
                self._expiry.forget(place)
        self._order = None
        self._expiry.restore()
        self.vectors.restore(lambda place: self.find(place) is not None)
        stored = [namespace.items.values() for namespace in self._namespaces.values()]
        self._count = sum(map(len, stored))
        sizes = sum(item.size for items in stored for item in items)
        self.bytes = sizes + self.vectors.total_bytes

    def store(self, record: ItemStored | PutItem, lsn: int, now_us: int = 0) -> None:
        """Apply the record of an item, or a put that `takes` allows, at its time."""
        name, key = record.namespace, record.key
        namespace = self._namespaces.get(name)
        if namespace is None:
            namespace = self._namespaces[name] = _Namespace()
            if self._order is not None:
                self._order.add(name)
        old = namespace.items.get(key)
        if old is not None:
            self._drop(old)
        else:
            self._count += 1
            if namespace.order is not None:
                namespace.order.add(key)
        kind, data = record.value
        if isinstance(record, PutItem):
            updated = now_us
            created = now_us if old is None else old.created_us
        else:
            updated = record.updated_us
            # one number for both times of what was never updated: a number is an object
            created = updated if record.created_us == updated else record.created_us
        item = StoredItem(intern(kind), data, shared(len(data)), lsn, created, updated)
        namespace.items[key] = item
        self._values.track(item)
        self.bytes += item.size
        if isinstance(record, PutItem):
            return
        if record.expires_us or self._expiry.lives:
            self._expiry.begin((name, key), record.expires_us, record.ttl_us)
        if self._searchable and (record.vectors or self.vectors):
            self._put_vectors(record)

    def _put_vectors(self, record: ItemStored) -> None:
        before = self.vectors.total_bytes
        self.vectors.put((record.namespace, record.key), record.vectors)
        self.bytes += self.vectors.total_bytes - before

    def _delete(self, place: ItemPlace) -> None:
        name, key = place
        namespace = self._namespaces.get(name)
        if namespace is None or key not in namespace.items:
            return
        self._drop(namespace.items.pop(key))
        self._count -= 1
        if namespace.order is not None:
            namespace.order.remove(key)
        if not namespace.items:
            del self._namespaces[name]
            if self._order is not None:
                self._order.remove(name)
        self._expiry.forget(place)
        before = self.vectors.total_bytes
        if before:
            self.vectors.drop(place)
            self.bytes += self.vectors.total_bytes - before

    def _drop(self, item: StoredItem) -> None:
        self.bytes -= item.size
        self._values.remove(item)

    # ------------------------------------------------------------------ values

    def values_of(self, record: ItemStored) -> Iterator[tuple[Value, bytes]]:
        """The stored value at a record's place, with the record's bytes."""
        item = self.find((record.namespace, record.key))
        if item is not None:
            yield item, record.value[1]

    def live_part_of(self, lsn: int, record: ItemStored) -> ItemStored | None:
        """The live part of a record, with the current life of its item."""
        place = record.namespace, record.key
        item = self.find(place)
        if item is None or item.lsn != lsn:
            return None
        life = self._expiry.life(place)
        if life is None or life.expires_us == record.expires_us:
            return record
        return replace(record, expires_us=life.expires_us)

    def growth(self, record: ItemStored) -> int:
        """The bytes by which a record would make the items larger."""
        place = record.namespace, record.key
        old = self.find(place)
        vectors = sum(len(vector.data) for vector in record.vectors) - self.vectors.size_of(place)
        return len(record.value[1]) - (old.size if old else 0) + vectors

    # ------------------------------------------------------------------ questions

    def find(self, place: ItemPlace, now_us: int = 0) -> StoredItem | None:
        """Find an item that has not expired."""
        namespace = self._namespaces.get(place[0])
        item = None if namespace is None else namespace.items.get(place[1])
        if item is not None and self._expiry.lives and self._expiry.is_over(place, now_us):
            return None
        return item

    def is_over(self, place: ItemPlace, now_us: int) -> bool:
        """Whether an item has expired."""
        return self._expiry.is_over(place, now_us)

    def has_living(self, namespace: tuple[str, ...], now_us: int) -> bool:
        """Whether a namespace has an item that has not expired."""
        keys = self._namespaces[namespace].items
        if not self._expiry.lives:
            return True
        return any(not self._expiry.is_over((namespace, key), now_us) for key in keys)

    def namespaces(
        self, prefix: tuple[str, ...], first: tuple[str, ...] | None = None
    ) -> Iterator[tuple[str, ...]]:
        """The namespaces below a prefix, in order, from the first one on."""
        if self._order is None:
            self._order = SortedList(self._namespaces)
        for namespace in self._order.irange(minimum=first or prefix):
            if namespace[: len(prefix)] != prefix:
                return
            if self.shown is None or self.shown(namespace):
                yield namespace

    def purge_invisible(self, most: int) -> Iterator[ItemsExpired | None]:
        """Yield records that remove invisible items; see `Shard.purge_invisible`."""
        for number, name in enumerate(list(self._namespaces)):
            if number % most == most - 1:
                yield None
            namespace = self._namespaces.get(name)
            if namespace is None or self.shown is None or self.shown(name):
                continue
            keys = list(namespace.items)
            for start in range(0, len(keys), most):
                yield ItemsExpired(tuple((name, key) for key in keys[start : start + most]))

    def below(
        self, prefix: tuple[str, ...], after: ItemPosition | None
    ) -> Iterator[tuple[ItemPlace, StoredItem, None]]:
        """The items below a prefix in order, expired ones included, without a score."""
        for namespace in self.namespaces(prefix, max(prefix, after.namespace) if after else prefix):
            begun = after is not None and namespace == after.namespace
            start = after.key if begun and after else ""
            found = self._namespaces[namespace]
            items = found.items
            for key in found.keys_from(start, inclusive=not begun):
                yield (namespace, key), items[key], None


def _conflict(item: StoredItem | None, expected: int | None) -> Conflict | None:
    version = item.updated_us if item is not None else 0
    return None if expected is None or expected == version else Conflict(version)
