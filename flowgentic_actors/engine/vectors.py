"""The vectors of items: exact similarity, by one product with a matrix.

Vectors of one size are the rows of one matrix, normalised, so a product with a query's vector is
the cosine similarity of all. Measured, that is fast enough for any shard that fits into memory: see
docs/explanation/search.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from flowgentic_actors.engine.expiry import ItemPlace
from flowgentic_actors.engine.model import Vector
from flowgentic_actors.errors import InvalidRequestError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Indices = NDArray[np.int64]

FLOAT: Final = 4
"""Bytes of a component."""

_SMALLEST: Final = 64  # rows of a new matrix
_SPARSE: Final = 4  # a part of the rows smaller than one in so many is copied out first
_FEW: Final = 32  # items fewer than one in so many are named one by one
_FIRST_RANKS: Final = 64


def check_vectors(vectors: Iterable[Vector]) -> None:
    """Make sure that vectors can be kept.

    Raises:
        InvalidRequestError: If one is not made of 32-bit floats, or is not finite.
    """
    import numpy as np  # noqa: PLC0415 - only where there are vectors

    for vector in vectors:
        if not vector.data or len(vector.data) % FLOAT:
            raise InvalidRequestError(
                f"the vector of {vector.path!r} has {len(vector.data)} bytes: not 32-bit floats"
            )
        if not np.isfinite(np.frombuffer(vector.data, "<f4")).all():
            raise InvalidRequestError(
                f"the vector of {vector.path!r} has a component that is infinite or no number"
            )


class Vectors:
    """The vectors of all items of a shard, by size."""

    def __init__(self) -> None:
        self._matrices: dict[int, _Matrix] = {}

    def __bool__(self) -> bool:
        return bool(self._matrices)

    @property
    def total_bytes(self) -> int:
        """Bytes of all vectors."""
        return sum(matrix.total_bytes for matrix in self._matrices.values())

    def put(self, place: ItemPlace, vectors: tuple[Vector, ...]) -> None:
        """Keep an item's vectors in place of those that it had."""
        self.drop(place)
        for vector in vectors:
            size = len(vector.data)
            matrix = self._matrices.get(size)
            if matrix is None:
                matrix = self._matrices[size] = _Matrix(size // FLOAT)
            matrix.add(place, vector.data)

    def drop(self, place: ItemPlace) -> None:
        """Forget an item's vectors."""
        for size, matrix in list(self._matrices.items()):
            matrix.drop(place)
            if not matrix.total_bytes:
                del self._matrices[size]

    def restore(self, is_stored: Callable[[ItemPlace], bool]) -> None:
        """Be consistent again after `put` or `drop` was interrupted.

        What it was about is either not stored, or has to be put once more.

        Args:
            is_stored: Whether there is an item at a place; vectors of others are dropped.
        """
        restored = {size: matrix.restored(is_stored) for size, matrix in self._matrices.items()}
        self._matrices = {size: matrix for size, matrix in restored.items() if matrix.total_bytes}

    def size_of(self, place: ItemPlace) -> int:
        """Bytes of an item's vectors."""
        return sum(m.rows_of(place) * size for size, m in self._matrices.items())

    def has(self, place: ItemPlace, size: int) -> bool:
        """Whether an item has a vector of a size in bytes."""
        matrix = self._matrices.get(size)
        return matrix is not None and matrix.rows_of(place) > 0

    def ranked(
        self, vector: bytes, namespaces: Iterable[tuple[str, ...]] | None
    ) -> Iterator[tuple[float, ItemPlace]]:
        """The items that have a vector of the same size, most similar first.

        Args:
            vector: What to compare with.
            namespaces: Where to look; None for everywhere.

        Yields:
            (score, place) of each, ordered by score, then place.
        """
        matrix = self._matrices.get(len(vector))
        return iter(()) if matrix is None else matrix.ranked(vector, namespaces)


class _Group:
    """The rows of one namespace's items, by key; rows know it by its number."""

    __slots__ = ("keys", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        self.keys: dict[str, list[int]] = {}


class _Matrix:
    """Rows of one size; those that are free hold zeros, and belong to number 0."""

    def __init__(self, dims: int) -> None:
        import numpy as np  # noqa: PLC0415 - only where there are vectors

        self._rows: Floats = np.zeros((_SMALLEST, dims), np.float32)
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
        import numpy as np  # noqa: PLC0415

        vector = np.frombuffer(data, "<f4").astype(np.float64)
        norm = np.linalg.norm(vector)
        self._keep(place, vector / norm if norm else 0.0)

    def _keep(self, place: ItemPlace, values: Any) -> None:
        row = self._free.pop() if self._free else self._new_row()
        self._rows[row] = values
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
        """Another one with the rows of the items that are stored."""
        other = _Matrix(int(self._rows.shape[1]))
        for values, place in zip(self._rows, self._places, strict=False):  # the last may have none
            if place is not None and is_stored(place):
                other._keep(place, values)
        return other

    def _new_row(self) -> int:
        import numpy as np  # noqa: PLC0415

        row = len(self._places)
        self._places.append(None)
        if row == len(self._rows):
            self._rows = np.concatenate([self._rows, np.zeros_like(self._rows)])
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
        self, vector: bytes, namespaces: Iterable[tuple[str, ...]] | None
    ) -> Iterator[tuple[float, ItemPlace]]:
        rows = self._rows_of(namespaces)
        return self._in_order(rows, self._scores(vector, rows))

    def _rows_of(self, namespaces: Iterable[tuple[str, ...]] | None) -> Indices:
        import numpy as np  # noqa: PLC0415

        used = len(self._places)
        if namespaces is None:
            return np.arange(used, dtype=np.int64)
        groups = [group for ns in namespaces if (group := self._groups.get(ns)) is not None]
        if sum(len(group.keys) for group in groups) * _FEW < used:
            keys = chain.from_iterable(group.keys.values() for group in groups)
            return np.fromiter(chain.from_iterable(keys), np.int64)
        wanted = np.zeros(len(self._groups) + len(self._free_numbers) + 1, bool)
        wanted[[group.number for group in groups]] = True
        return np.flatnonzero(wanted[self._numbers[:used]])

    def _scores(self, vector: bytes, rows: Indices) -> Floats:
        import numpy as np  # noqa: PLC0415

        query = np.frombuffer(vector, "<f4").astype(np.float64)
        norm = np.linalg.norm(query)
        unit = (query / norm if norm else query).astype(np.float32)
        used = len(self._places)
        if len(rows) * _SPARSE < used:
            return self._rows[rows] @ unit
        scores: Floats = (self._rows[:used] @ unit)[rows]
        return scores

    def _in_order(self, rows: Indices, scores: Floats) -> Iterator[tuple[float, ItemPlace]]:
        """Sort as much as is asked for: first the best few, then ever more."""
        import numpy as np  # noqa: PLC0415

        seen: set[ItemPlace] = set()
        wanted = _FIRST_RANKS
        while len(rows):
            if wanted < len(rows):
                # All that are as good as the last wanted one: ties stay together.
                least = np.partition(scores, len(scores) - wanted)[len(scores) - wanted]
                chosen = scores >= least
            else:
                chosen = np.ones(len(rows), bool)
            best = [
                (-float(score), place)
                for score, row in zip(scores[chosen], rows[chosen], strict=True)
                if (place := self._places[row]) is not None
            ]
            best.sort()
            for negative, place in best:
                if not self._several or place not in seen:
                    if self._several:
                        seen.add(place)
                    yield -negative, place
            rows, scores = rows[~chosen], scores[~chosen]
            wanted *= 8
