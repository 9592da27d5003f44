"""A batch of store operations as one plan."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import msgspec
from langgraph.store.base import Op, PutOp, Result, SearchOp

from flowgentic_actors.adapters.plan import Plan, each
from flowgentic_actors.adapters.store_ops import Change, Operations, check
from flowgentic_actors.engine.commands import PutItem
from flowgentic_actors.engine.limits import ItemPlace
from flowgentic_actors.engine.limits import check as within_limits
from flowgentic_actors.engine.model import Vector

if TYPE_CHECKING:
    from flowgentic_actors.adapters.embedding import Embedded, Index
    from flowgentic_actors.adapters.missing_index import MissingIndex


class _Put(NamedTuple):
    """A put or delete whose value is serialized already, and what of it is to be embedded."""

    number: int
    command: Change
    texts: list[tuple[str, str]]


class Batch:
    """Operations that were looked at and copied: what becomes of their values later is no matter.

    Args:
        operations: What each comes to.
        ops: The operations.
        index: How items are embedded, None without.
        expected: Version that the items put or deleted must have.

    Attributes:
        documents: Texts of items to be embedded.
        queries: Texts of searches.

    Raises:
        InvalidRequestError: If an operation is impossible.
        InvalidNamespaceError: If a namespace is.
    """

    def __init__(
        self,
        operations: Operations,
        ops: Iterable[Op],
        *,
        index: Index | MissingIndex | None,
        expected: int | None,
    ) -> None:
        self._operations = operations
        self._ops = list(ops)
        self._puts: dict[tuple[tuple[str, ...], str], _Put] = {}
        self.queries: list[str] = []
        for number, op in enumerate(self._ops):
            if isinstance(op, PutOp):
                command = operations.change_of(op, expected)
                place = command.namespace, command.key
                self._puts.pop(place, None)  # the last one counts, in its place
                texts = []
                if index is not None and isinstance(command, PutItem):
                    texts = index.texts(dict(op.value or {}), op.index)
                    within_limits(ItemPlace(*place, tuple([path for path, _ in texts])))
                self._puts[place] = _Put(number, command, texts)
                continue
            check(op)
            if isinstance(op, SearchOp) and index is not None and op.query:
                self.queries.append(op.query)
        self.documents = [text for put in self._puts.values() for _, text in put.texts]

    def plan(self, embedded: Embedded | None) -> Plan[list[Result]]:
        """Reads first, then puts; an operation that fails keeps no other from being done."""
        results: list[Result] = [None] * len(self._ops)
        errors: dict[int, Exception] = {}
        reads = {
            number: self._operations.read(op, embedded)
            for number, op in enumerate(self._ops)
            if not isinstance(op, PutOp)
        }
        puts = {
            put.number: self._operations.change(_with_vectors(put, embedded))
            for put in self._puts.values()
        }
        for plans in (reads, puts):
            if not plans:
                continue
            found = yield from each(list(plans.values()))
            for number, result in zip(plans, found, strict=True):
                if isinstance(result, Exception):
                    errors[number] = result
                else:
                    results[number] = result
        if errors:
            first = min(errors)
            if len(self._ops) > 1:
                others = f", and so did {len(errors) - 1} others" if len(errors) > 1 else ""
                errors[first].add_note(f"operation {first} of the batch failed{others}")
            raise errors[first]
        return results


def _with_vectors(put: _Put, embedded: Embedded | None) -> Change:
    if embedded is None or not put.texts:
        return put.command
    vectors = tuple(Vector(path, embedded.documents[text]) for path, text in put.texts)
    return msgspec.structs.replace(put.command, vectors=vectors)
