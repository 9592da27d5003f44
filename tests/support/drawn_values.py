"""Values that examples are drawn from, such as JSON has, and how many are drawn."""

from __future__ import annotations

from itertools import product
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

T = TypeVar("T")

PROFILE = settings(
    max_examples=20,
    deadline=None,
    database=None,
    # Examples share a cluster: each begins by deleting what the last one left.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def made(
    kind: type[T], *parts: st.SearchStrategy[Any], **named: st.SearchStrategy[Any]
) -> st.SearchStrategy[T]:
    """Like `st.builds`, which would also draw what has a default."""
    drawn = st.tuples(st.tuples(*parts), st.fixed_dictionaries(named))
    return drawn.map(lambda given: kind(*given[0], **given[1]))


NUMBERS = (-1, 0, 1, 1.5, 2)
OTHER_FIELDS: tuple[dict[str, Any], ...] = (
    {},
    {"text": "a"},
    {"text": "", "flag": True},
    {"text": "bc", "tags": []},
    {"tags": ["#a"], "flag": False},  # a tag is never the same as another text
    {"tags": ["#a", "#bb"]},
    {"deep": {"a": 1}},
    {"deep": {"a": 2, "b": "a"}, "text": "cab"},
    {"deep": {"a": 1.5, "b": ""}, "tags": ["#", "#abc"]},
)
VALUES = [{"n": n, **others} for n, others in product(NUMBERS, OTHER_FIELDS)]
values = st.sampled_from(VALUES)
