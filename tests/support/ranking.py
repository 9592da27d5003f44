"""What the tests of searches by similarity share: it imports little, for processes of their own."""

from __future__ import annotations

import hashlib
from typing import get_args

import numpy as np

from flowgentic_actors.engine.expiry import ItemPlace
from flowgentic_actors.engine.model import Vector
from flowgentic_actors.engine.similarity import Metric
from flowgentic_actors.engine.vectors import Vectors

METRICS: tuple[Metric, ...] = get_args(Metric)


def floats(vector: object) -> bytes:
    return np.asarray(vector, "<f4").tobytes()


def place(number: int) -> ItemPlace:
    return (f"n{number % 3}",), f"{number:05}"


def kept(rows: dict[ItemPlace, list[bytes]]) -> Vectors:
    vectors = Vectors()
    for where, data in rows.items():
        vectors.put(where, tuple(Vector(str(n), each) for n, each in enumerate(data)))
    return vectors


def digest() -> str:
    """Of all scores and orders of some searches."""
    found = hashlib.sha256()
    for metric in METRICS:
        for dims, count in ((3, 5), (40, 300), (384, 1200)):
            rng = np.random.default_rng(dims)
            rows = rng.normal(size=(count, dims))
            rows[count // 2 :] = rows[0] + 1e-6 * rows[count // 2 :]
            vectors = kept({place(n): [floats(row)] for n, row in enumerate(rows)})
            for score, where in vectors.ranked(floats(rows[1] + rows[0]), metric, None):
                found.update(f"{score.hex()} {where}\n".encode())
    return found.hexdigest()
