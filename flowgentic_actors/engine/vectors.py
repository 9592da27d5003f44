"""The vectors of items: exact similarity, by one product with a matrix.

Vectors of one size are the rows of one matrix, each scaled by a power of two. Its product with a
query's vector tells which rows can be the best, for every metric; only their scores are computed
exactly. Measured, that is fast enough for any shard that fits into memory: see
docs/explanation/search.md.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from flowgentic_actors.engine.expiry import ItemPlace
from flowgentic_actors.engine.model import Vector
from flowgentic_actors.engine.similarity import Metric, Query, scaled
from flowgentic_actors.errors import InvalidRequestError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from flowgentic_actors.engine.similarity import Doubles, Exponents, Floats

    Indices = NDArray[np.int64]

FLOAT: Final = 4
"""Bytes of a component."""

_SMALLEST: Final = 64  # rows of a new matrix
_SPARSE: Final = 4  # a part of the rows smaller than one in so many is copied out first
_FEW: Final = 32  # items fewer than one in so many are named one by one
_FIRST_RANKS: Final = 64
_AT_ONCE: Final = 1 << 19
"""Components of which exact scores are computed at once, if bounds allow: some 10 ms."""


def check_vectors(vectors: Iterable[Vector]) -> None:
    """Check that vectors can be stored.

    Raises:
        InvalidRequestError: If one is not made of 32-bit floats, or is not finite.
    """
    for vector in vectors:
        check_vector(vector.data, f"the vector of {vector.path!r}")


def check_vector(data: bytes, name: str) -> None:
    """Check that a vector can be compared with others.

    Raises:
        InvalidRequestError: If it is not made of 32-bit floats, or is not finite.
    """
    import numpy as np  # noqa: PLC0415 - only where there are vectors

    if not data or len(data) % FLOAT:
        raise InvalidRequestError(f"{name} has {len(data)} bytes: not 32-bit floats")
    if not np.isfinite(np.frombuffer(data, "<f4")).all():
        raise InvalidRequestError(f"{name} has a component that is infinite or no number")


class Vectors:
    """The vectors of all items of a shard, by size."""

    def __init__(self) -> None:
        self._matrices: dict[int, _Matrix] = {}

    def __bool__(self) -> bool:
        return bool(self._matrices)

    @property
    def total_bytes(self) -> int:
        """The bytes of all vectors."""
        return sum(matrix.total_bytes for matrix in self._matrices.values())

    def put(self, place: ItemPlace, vectors: tuple[Vector, ...]) -> None:
        """Store an item's vectors, replacing those that it had."""
        self.drop(place)
        for vector in vectors:
            size = len(vector.data)
            matrix = self._matrices.get(size)
            if matrix is None:
                matrix = self._matrices[size] = _Matrix(size // FLOAT)
            matrix.add(place, vector.data)

    def drop(self, place: ItemPlace) -> None:
        """Remove an item's vectors."""
        for size, matrix in list(self._matrices.items()):
            matrix.drop(place)
            if not matrix.total_bytes:
                del self._matrices[size]

    def restore(self, is_stored: Callable[[ItemPlace], bool]) -> None:
        """Restore consistency after an interrupted `put` or `drop`.

        What it was about is either not stored, or has to be put once more.

        Args:
            is_stored: Whether there is an item at a place; vectors of others are dropped.
        """
        restored = {size: matrix.restored(is_stored) for size, matrix in self._matrices.items()}
        self._matrices = {size: matrix for size, matrix in restored.items() if matrix.total_bytes}

    def size_of(self, place: ItemPlace) -> int:
        """The bytes of an item's vectors."""
        return sum(m.rows_of(place) * size for size, m in self._matrices.items())

    def has(self, place: ItemPlace, size: int) -> bool:
        """Whether an item has a vector of a size in bytes."""
        matrix = self._matrices.get(size)
        return matrix is not None and matrix.rows_of(place) > 0

    def ranked(
        self,
        vector: bytes,
        metric: Metric,
        namespaces: Iterable[tuple[str, ...]] | None,
        after: tuple[float, ItemPlace] | None = None,
    ) -> Iterator[tuple[float, ItemPlace]]:
        """The items that have a vector of the same size, most similar first.

        Args:
            vector: What to compare with, finite.
            metric: What a score is.
            namespaces: Where to look; None for everywhere.
            after: Go on after this one.

        Yields:
            (score, place) of each, ordered by score, then place.
        """
        matrix = self._matrices.get(len(vector))
        if matrix is None:
            return iter(())
        return matrix.ranked(Query(vector, metric), namespaces, after)


class _Group:
    """The rows of one namespace's items, by key; rows refer to it by its number."""

    __slots__ = ("keys", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        self.keys: dict[str, list[int]] = {}


class _Matrix:
    """The rows of vectors of one size; free rows hold zeros, and belong to number 0."""

    def __init__(self, dims: int) -> None:
        import numpy as np  # noqa: PLC0415 - only where there are vectors

        self._rows: Floats = np.zeros((_SMALLEST, dims), np.float32)
        self._norms: Doubles = np.zeros(_SMALLEST)  # of each row
        self._exponents: Exponents = np.zeros(_SMALLEST, np.int32)  # by which it is scaled
        self._numbers: NDArray[np.int32] = np.zeros(_SMALLEST, np.int32)  # of each row's group
        self._places: list[ItemPlace | None] = []  # of each row
        self._free: list[int] = []
        self._groups: dict[tuple[str, ...], _Group] = {}
        self._free_numbers: list[int] = []
        self._several = 0  # items with more than one row

    @property
    def total_bytes(self) -> int:
        return (len(self._places) - len(self._free)) * int(self._rows.shape[1]) * FLOAT

    def rows_of(self, place: ItemPlace) -> int:
        group = self._groups.get(place[0])
        return 0 if group is None else len(group.keys.get(place[1], ()))

    def add(self, place: ItemPlace, data: bytes) -> None:
        self._keep(place, *scaled(data))

    def _keep(self, place: ItemPlace, values: Any, norm: float, exponent: int) -> None:
        row = self._free.pop() if self._free else self._new_row()
        self._rows[row], self._norms[row], self._exponents[row] = values, norm, exponent
        self._places[row] = place
        group = self._groups.get(place[0])
        if group is None:
            number = self._free_numbers.pop() if self._free_numbers else len(self._groups) + 1
            group = self._groups[place[0]] = _Group(number)
        self._numbers[row] = group.number
        rows = group.keys.setdefault(place[1], [])
        rows.append(row)
        self._several += len(rows) == 2

    def restored(self, is_stored: Callable[[ItemPlace], bool]) -> _Matrix:
        """Make another matrix with the rows of the stored items."""
        other = _Matrix(int(self._rows.shape[1]))
        for row, place in enumerate(self._places):
            if place is not None and is_stored(place):
                norm, exponent = float(self._norms[row]), int(self._exponents[row])
                other._keep(place, self._rows[row], norm, exponent)
        return other

    def _new_row(self) -> int:
        import numpy as np  # noqa: PLC0415

        row = len(self._places)
        self._places.append(None)
        if row == len(self._rows):
            self._rows = np.concatenate([self._rows, np.zeros_like(self._rows)])
            self._norms = np.concatenate([self._norms, np.zeros_like(self._norms)])
            self._exponents = np.concatenate([self._exponents, np.zeros_like(self._exponents)])
            self._numbers = np.concatenate([self._numbers, np.zeros_like(self._numbers)])
        return row

    def drop(self, place: ItemPlace) -> None:
        group = self._groups.get(place[0])
        rows = group.keys.pop(place[1], None) if group else None
        if group is None or rows is None:
            return
        self._several -= len(rows) > 1
        if not group.keys:
            del self._groups[place[0]]
            self._free_numbers.append(group.number)
        for row in rows:
            self._rows[row] = 0.0
            self._numbers[row] = 0
            self._places[row] = None
        self._free += rows

    def ranked(
        self,
        query: Query,
        namespaces: Iterable[tuple[str, ...]] | None,
        after: tuple[float, ItemPlace] | None,
    ) -> Iterator[tuple[float, ItemPlace]]:
        seen: set[ItemPlace] = set()
        past = None if after is None else (-after[0], after[1])
        for score, place in self._in_order(self._rows_of(namespaces), query, after, seen):
            if self._several:
                if place in seen:
                    continue
                seen.add(place)
            if past is None or (-score, place) > past:
                yield score, place

    def _rows_of(self, namespaces: Iterable[tuple[str, ...]] | None) -> Indices:
        import numpy as np  # noqa: PLC0415

        used = len(self._places)
        if namespaces is None:
            return np.flatnonzero(self._numbers[:used])  # 0: a free row
        groups = [group for ns in namespaces if (group := self._groups.get(ns)) is not None]
        if sum(len(group.keys) for group in groups) * _FEW < used:
            keys = chain.from_iterable(group.keys.values() for group in groups)
            return np.fromiter(chain.from_iterable(keys), np.int64)
        wanted = np.zeros(len(self._groups) + len(self._free_numbers) + 1, bool)
        wanted[[group.number for group in groups]] = True
        return np.flatnonzero(wanted[self._numbers[:used]])

    def _products(self, query: Query, rows: Indices) -> Floats:
        used = len(self._places)
        if len(rows) * _SPARSE < used:
            return self._rows[rows] @ query.unit
        products: Floats = (self._rows[:used] @ query.unit)[rows]
        return products

    def _in_order(
        self,
        rows: Indices,
        query: Query,
        after: tuple[float, ItemPlace] | None,
        passed: set[ItemPlace],
    ) -> Iterator[tuple[float, ItemPlace]]:
        """Sort lazily: first the best few, then ever more.

        Args:
            rows: Which.
            query: What with.
            after: Leave out those that certainly come before this one, not all that do.
            passed: Gets the items of rows that were left out, where one may have other rows.
        """
        import numpy as np  # noqa: PLC0415

        low, high = query.bounds(
            self._products(query, rows), self._norms[rows], self._exponents[rows]
        )
        if after is not None:
            better = low > after[0]
            if self._several:
                places = (self._places[row] for row in rows[better].tolist())
                passed.update(place for place in places if place is not None)
            rows, low, high = rows[~better], low[~better], high[~better]
        most = max(_FIRST_RANKS, _AT_ONCE // int(self._rows.shape[1]))
        found: list[tuple[float, ItemPlace]] = []  # the negative of each score: the best first
        wanted = _FIRST_RANKS
        while len(rows):
            if wanted < len(rows):
                # So many have this score or a better one; rows that cannot reach it come later.
                least = float(np.partition(low, len(low) - wanted)[len(low) - wanted])
                chosen = high >= least
            else:
                least, chosen = -np.inf, np.ones(len(rows), bool)
            exact = rows[chosen]
            scores = query.scores(self._rows[exact], self._exponents[exact])
            found += [
                (-score, place)
                for score, row in zip(scores.tolist(), exact.tolist(), strict=True)
                if (place := self._places[row]) is not None
            ]
            found.sort()
            ready = bisect_right(found, -least, key=_negative_score)
            for negative, place in found[:ready]:
                yield 0.0 - negative, place
            del found[:ready]
            rows, low, high = rows[~chosen], low[~chosen], high[~chosen]
            wanted = min(8 * wanted, most)


def _negative_score(found: tuple[float, ItemPlace]) -> float:
    return found[0]
