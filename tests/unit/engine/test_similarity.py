"""The scores of searches by similarity: exact, and a function of query and vector alone."""

from __future__ import annotations

import math
import os
import random
import struct
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from itertools import islice
from signal import SIGILL

import numpy as np
import pytest

from flowgentic_actors.engine.expiry import ItemPlace
from flowgentic_actors.engine.similarity import Metric
from tests.support.ranking import METRICS, digest, floats, kept, place

KERNELS = ("Prescott", "Sandybridge", "SkylakeX")
"""Processors that OpenBLAS has code for; not every machine can run all of it."""

Found = list[tuple[float, ItemPlace]]


def numbers(data: bytes) -> list[Fraction]:
    return [Fraction(x) for (x,) in struct.iter_unpack("<f", data)]


def exact(query: bytes, data: bytes, metric: Metric) -> float:
    """A score by rational arithmetic."""
    ours, theirs = numbers(query), numbers(data)
    inner = sum((a * b for a, b in zip(ours, theirs, strict=True)), Fraction(0))
    if metric == "inner_product":
        return float(inner)
    if metric == "l2":
        square = sum(((a - b) * (a - b) for a, b in zip(ours, theirs, strict=True)), Fraction(0))
        return -root(square)
    norms = sum((a * a for a in ours), Fraction(0)) * sum((b * b for b in theirs), Fraction(0))
    if not norms:
        return 0.0
    return math.copysign(root(inner * inner / norms), inner)


def root(square: Fraction) -> float:
    """A square root, also of what is smaller or larger than any float."""
    shift = (square.numerator.bit_length() - square.denominator.bit_length()) // 2
    return math.ldexp(math.sqrt(Fraction(square) / Fraction(4) ** shift), shift)


def clustered(rng: random.Random, count: int, dims: int) -> Iterator[list[float]]:
    """Vectors of which many are nearly the same, and some exactly."""
    centres = [[rng.gauss(0, 1) for _ in range(dims)] for _ in range(3)]
    for _ in range(count):
        spread = rng.choice((0.0, 0.0, 1e-7, 1e-6, 1e-4, 0.1))
        yield [x + spread * rng.gauss(0, 1) for x in rng.choice(centres)]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("seed", range(3))
def test_the_order_is_that_of_exact_arithmetic(metric: Metric, seed: int) -> None:
    rng = random.Random(seed)
    rows = {place(n): [floats(row)] for n, row in enumerate(clustered(rng, 400, 7))}
    # as large and as small as 32-bit floats can be
    for number, scale in enumerate((0.0, 1e-45, 1e-40, 1e-20, 1e20, 1e38, -1e38), 400):
        rows[place(number)] = [floats([scale, 0, scale, -scale, 0, 0, scale])]
    query = floats([rng.gauss(0, 1) for _ in range(7)])

    found = list(kept(rows).ranked(query, metric, None))

    assert found == sorted(found, key=lambda each: (-each[0], each[1]))
    assert {where for _, where in found} == set(rows)
    for score, where in found:
        assert score == pytest.approx(exact(query, rows[where][0], metric), rel=1e-12, abs=1e-14)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("scale", [1e-44, 1e-30, 1.0, 1e30, 3e38])
def test_a_query_of_any_size_has_exact_scores(metric: Metric, scale: float) -> None:
    rows = {place(n): [floats([n - 2, 1, scale])] for n in range(5)}
    query = floats([scale, scale / 2, -scale])
    for score, where in kept(rows).ranked(query, metric, None):
        assert score == pytest.approx(exact(query, rows[where][0], metric), rel=1e-12, abs=1e-300)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dims", [1, 3, 64, 384])
def test_a_score_does_not_depend_on_the_other_items(metric: Metric, dims: int) -> None:
    rng = random.Random(dims)
    rows = {place(n): [floats(row)] for n, row in enumerate(clustered(rng, 150, dims))}
    query = floats(next(clustered(rng, 1, dims)))

    together = {where: score for score, where in kept(rows).ranked(query, metric, None)}

    alone = {where: kept({where: data}) for where, data in rows.items()}
    for where, one in alone.items():
        assert list(one.ranked(query, metric, None)) == [(together[where], where)]
    # as two shards, whose answers are merged by score and place
    halves = [kept(dict(list(rows.items())[start::2])) for start in (0, 1)]
    merged = [found for half in halves for found in half.ranked(query, metric, None)]
    whole = list(kept(rows).ranked(query, metric, None))
    assert sorted(merged, key=lambda each: (-each[0], each[1])) == whole
    # and with what was put and removed in between
    changed = kept({place(n + 1000): [query] for n in range(90)} | rows)
    for number in range(90):
        changed.drop(place(number + 1000))
    assert list(changed.ranked(query, metric, None)) == whole
    some = [name for name in {where[0] for where in rows} if name != ("n1",)]
    assert list(changed.ranked(query, metric, some)) == [f for f in whole if f[1][0] != ("n1",)]


@pytest.mark.parametrize("metric", METRICS)
def test_none_of_the_best_is_lost_among_near_and_equal_ones(metric: Metric) -> None:
    dims, rng = 256, np.random.default_rng(3)
    base = rng.normal(size=dims)
    rows = {
        place(n): [floats(base + step * rng.normal(size=dims))]
        for n, step in enumerate([0.0] * 500 + [1e-7] * 1000 + [1e-3] * 1000)
    }
    query = floats(base)
    vectors = kept(rows)

    every = list(vectors.ranked(query, metric, None))

    assert every == sorted(every, key=lambda each: (-each[0], each[1]))
    assert len(every) == len(rows)
    assert list(islice(vectors.ranked(query, metric, None), 10)) == every[:10]


@pytest.mark.parametrize("metric", METRICS)
def test_a_ranking_goes_on_behind_any_item(metric: Metric) -> None:
    rng = random.Random(5)
    rows = {place(n): [floats(row)] for n, row in enumerate(clustered(rng, 120, 5))}
    rows |= {place(n): [*rows[place(n)], *rows[place(n + 1)]] for n in range(0, 60, 2)}
    query = floats([rng.gauss(0, 1) for _ in range(5)])
    vectors = kept(rows)
    every = list(vectors.ranked(query, metric, None))
    assert len(every) == len(rows)
    for number, each in enumerate(every):
        assert list(vectors.ranked(query, metric, None, after=each)) == every[number + 1 :]


def test_equal_vectors_have_a_cosine_of_one() -> None:
    rng = random.Random(1)
    for _ in range(200):
        vector = [rng.gauss(0, 10) for _ in range(rng.randrange(1, 40))]
        vectors = kept({place(0): [floats(vector)], place(1): [floats([-x for x in vector])]})
        assert [s for s, _ in vectors.ranked(floats(vector), "cosine", None)] == [1.0, -1.0]
        assert next(vectors.ranked(floats(vector), "l2", None))[0] == 0.0


def test_scores_are_the_same_on_every_processor() -> None:
    code = "from tests.support.ranking import digest; print(digest())"
    running = {
        kernel: subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, "OPENBLAS_CORETYPE": kernel, "OPENBLAS_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for kernel in KERNELS
    }
    answers = {kernel: process.communicate(timeout=60)[0] for kernel, process in running.items()}
    for kernel, process in running.items():
        if process.returncode == -SIGILL:  # this machine has no such instructions
            del answers[kernel]
    assert set(answers.values()) == {digest() + "\n"}
    assert len(answers) > 1
