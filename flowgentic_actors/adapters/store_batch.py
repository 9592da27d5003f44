"""A batch of store operations as one operation on shards."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from langgraph.store.base import Op, PutOp, Result, SearchOp

from flowgentic_actors.adapters.operations import Operation, each
from flowgentic_actors.adapters.store_ops import Change, Operations, Wide
from flowgentic_actors.engine.commands import GetItem, PutItem
from flowgentic_actors.engine.limits import ItemPlace
from flowgentic_actors.engine.limits import check as within_limits
from flowgentic_actors.engine.model import Vector

if TYPE_CHECKING:
    from flowgentic_actors.adapters.embedding import Embedded, Index
    from flowgentic_actors.adapters.missing_index import MissingIndex


class _Put(NamedTuple):
    """A put or delete with its serialized value, and its texts to embed."""

    number: int
    command: Change
    texts: list[tuple[str, str]]


class Batch:
    """A batch whose operations are checked and copied, so that values may change later.

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
        self._count = 0
        self._gets: list[tuple[int, GetItem]] = []
        self._wide: list[tuple[int, Op, Wide]] = []
        self._puts: dict[tuple[tuple[str, ...], str], _Put] = {}
        self.queries: list[str] = []
        for number, op in enumerate(ops):
            self._count += 1
            if isinstance(op, PutOp):
                command = operations.change_of(op.namespace, op.key, op.value, op.ttl, expected)
                place = command.namespace, command.key
                self._puts.pop(place, None)  # the last one counts, in its place
                texts = []
                if index is not None and isinstance(command, PutItem):
                    texts = index.texts(dict(op.value or {}), op.index)
                    within_limits(ItemPlace(*place, tuple([path for path, _ in texts])))
                self._puts[place] = _Put(number, command, texts)
                continue
            question = operations.question_of(op)
            if isinstance(question, GetItem):
                self._gets.append((number, question))
                continue
            self._wide.append((number, op, question))
            if isinstance(op, SearchOp) and index is not None and op.query:
                self.queries.append(op.query)
        self.documents = [text for put in self._puts.values() for _, text in put.texts]

    def plan(self, embedded: Embedded | None) -> Operation[list[Result]]:
        """Carry out reads, then puts; an operation that fails does not stop the others."""
        operations = self._operations
        reads = [number for number, _, _ in self._wide]
        reads += [number for number, _ in self._gets]
        gets = [query for _, query in self._gets]
        puts = self._puts.values()
        found: list[Any] = []
        if self._wide:
            plans: list[Operation[Any]] = [
                operations.read(q, op, embedded) for _, op, q in self._wide
            ]
            if gets:
                plans.append(operations.several(gets))
            found += yield from each(plans)
            if gets:
                found += found.pop()
        elif gets:
            found += yield from operations.several(gets)
        if puts:
            changes = [_with_vectors(put, embedded) for put in puts]
            found += yield from operations.several(changes)
        results: list[Result] = [None] * self._count
        errors: dict[int, Exception] = {}
        for number, result in zip((*reads, *(put.number for put in puts)), found, strict=True):
            if isinstance(result, Exception):
                errors[number] = result
            else:
                results[number] = result
        if errors:
            first = min(errors)
            if self._count > 1:
                others = f", and so did {len(errors) - 1} others" if len(errors) > 1 else ""
                errors[first].add_note(f"operation {first} of the batch failed{others}")
            raise errors[first]
        return results


def _with_vectors(put: _Put, embedded: Embedded | None) -> Change:
    if embedded is None or not put.texts:
        return put.command
    vectors = tuple(Vector(path, embedded.documents[text]) for path, text in put.texts)
    return msgspec.structs.replace(put.command, vectors=vectors)
