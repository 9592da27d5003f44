"""Similarity scores that depend on the two vectors alone.

A matrix product is fast, but its last bits depend on the processor, on the library, and on the
other rows. It therefore only tells which rows can be among the best: between two bounds that
hold for every order of summation, with and without fused operations. The score itself is computed
from products of 64-bit floats that are exact, summed in a fixed order: the same bits in every
mode, for each number of shards, on every processor.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Doubles = NDArray[np.float64]
    Exponents = NDArray[np.int32]

Metric: TypeAlias = Literal["cosine", "l2", "inner_product"]
"""What a score is: the cosine of the angle, the distance with a minus sign, or the inner product.
A higher score is more similar, as in LangGraph's `PostgresStore`."""

_ROUNDING: Final = 2.0**-23  # of a 32-bit product and sum, twice what it can be
_EXTRA: Final = 16  # such roundings of a product with a matrix beside those of each component
_DOUBLE_ROUNDING: Final = 2.0**-40  # of everything that is computed with 64 bits, amply
_BLOCK: Final = 1 << 18  # components whose exact products are computed at once: they fit a cache


def scaled(data: bytes) -> tuple[Floats, float, int]:
    """A vector divided by the power of two that brings its largest component to [0.5, 1).

    Products of such vectors neither overflow nor vanish, and no bit of theirs is lost.

    Args:
        data: Its components, 32-bit floats, little-endian.

    Returns:
        The scaled vector, its norm (to some bits of a 64-bit float), and the exponent.
    """
    import numpy as np  # noqa: PLC0415 - only where there are vectors

    vector = np.frombuffer(data, "<f4")
    exponent = math.frexp(float(np.abs(vector).max()))[1]
    vector = np.ldexp(vector, -exponent)
    wide = vector.astype(np.float64)
    return vector, math.sqrt(wide @ wide), exponent


class Query:
    """A query vector that rows of a matrix are compared with.

    Args:
        data: Its components, 32-bit floats, little-endian.
        metric: What a score is.

    Attributes:
        unit: The vector that the rows are to be multiplied with for `bounds`.
    """

    def __init__(self, data: bytes, metric: Metric) -> None:
        import numpy as np  # noqa: PLC0415

        self._metric = metric
        vector, norm, self._exponent = scaled(data)
        self._vector = vector.astype(np.float64)
        self._norm = norm
        self.unit: Floats = (self._vector / (norm or 1.0)).astype(np.float32)

    def bounds(
        self, products: Floats, norms: Doubles, exponents: Exponents
    ) -> tuple[Doubles, Doubles]:
        """Lower and upper bounds of the score of each row.

        Args:
            products: Of the scaled rows with `unit`, 32 bits, summed in any order.
            norms: Of the scaled rows.
            exponents: By which they are scaled.
        """
        import numpy as np  # noqa: PLC0415

        margin = (len(self._vector) + _EXTRA) * _ROUNDING
        if self._metric == "cosine":
            cosines = products / np.maximum(norms, 0.5)  # a scaled vector's norm, unless it is zero
            return cosines - margin, cosines + margin
        lengths, length = np.ldexp(norms, exponents), math.ldexp(self._norm, self._exponent)
        margins = margin * length * lengths
        inner = np.ldexp(length * products.astype(np.float64), exponents)
        if self._metric == "inner_product":
            return inner - margins, inner + margins
        squares = lengths * lengths + length * length
        distances, slack = squares - 2 * inner, 2 * margins + _DOUBLE_ROUNDING * squares
        return -np.sqrt(np.maximum(distances + slack, 0)), -np.sqrt(
            np.maximum(distances - slack, 0)
        )

    def scores(self, rows: Floats, exponents: Exponents) -> Doubles:
        """The score of each row.

        Args:
            rows: Scaled vectors.
            exponents: By which they are scaled.
        """
        import numpy as np  # noqa: PLC0415

        size = max(1, _BLOCK // len(self._vector))
        blocks = [
            self._scores(rows[start : start + size], exponents[start : start + size])
            for start in range(0, len(rows), size)
        ]
        return np.concatenate(blocks) if blocks else np.empty(0)

    def _scores(self, rows: Floats, exponents: Exponents) -> Doubles:
        import numpy as np  # noqa: PLC0415

        wide = rows.astype(np.float64)
        if self._metric == "l2":
            vector = np.ldexp(self._vector, self._exponent)
            difference = np.ldexp(wide, exponents[:, np.newaxis]) - vector
            distances: Doubles = 0.0 - np.sqrt(_sums(difference * difference))
            return distances
        inner = _sums(wide * self._vector)
        if self._metric == "inner_product":
            return np.ldexp(inner, exponents + self._exponent)
        own = _sums(self._vector[np.newaxis] ** 2)
        norms = np.sqrt(_sums(wide * wide) * own)  # of equal vectors exactly their product
        return np.clip(np.divide(inner, norms, out=np.zeros_like(inner), where=norms > 0), -1, 1)


def _sums(terms: Doubles) -> Doubles:
    """The sum of each row, by halves, so that the order of additions is fixed."""
    width = terms.shape[1]
    while width > 1:
        half = (width + 1) // 2
        terms[:, : width - half] += terms[:, half:width]
        width = half
    return terms[:, 0]
