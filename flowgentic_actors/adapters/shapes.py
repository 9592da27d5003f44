"""Checks of the types of namespaces and values.

A string is a sequence of characters, and `dict()` accepts a list of pairs: without a check, either
would be stored as something else than was meant.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from langgraph.store.base import InvalidNamespaceError, ListNamespacesOp, Op, PutOp

from flowgentic_actors.errors import InvalidRequestError


def check_namespace(namespace: object) -> None:
    """Refuse what is no sequence of labels.

    Raises:
        InvalidNamespaceError: If it is a text, or nothing that holds labels.
    """
    if isinstance(namespace, (str, bytes)):
        raise InvalidNamespaceError(
            f"a namespace is a tuple of labels, and {namespace!r:.100} is a text: write "
            f"({namespace!r:.100},), with a comma"
        )
    if not isinstance(namespace, Iterable):
        raise InvalidNamespaceError(
            f"a namespace is a tuple of labels, such as ('users', 'ada'), not {namespace!r:.100}"
        )


def not_a_dict(op: PutOp) -> InvalidRequestError:
    """The error of a put whose value is no dict."""
    hint = ": give its model_dump()" if hasattr(type(op.value), "model_dump") else ""
    return InvalidRequestError(
        f"the value of {op.key!r:.100} in {op.namespace!r:.200} must be a dict, and is a "
        f"{type(op.value).__name__}{hint}. Nothing was stored"
    )


def check_shapes(ops: Iterable[Op]) -> None:
    """Refuse operations whose namespaces are of a wrong type. Runs before each batch.

    Raises:
        InvalidNamespaceError: If one is a text, or nothing that holds labels.
    """
    for op in ops:
        if type(op) is ListNamespacesOp:
            _check_conditions(op.match_conditions)
            continue
        try:
            namespace = op[0]  # all other operations begin with it
        except (TypeError, IndexError):
            continue  # no operation at all, which is refused where it would be carried out
        if type(namespace) is not tuple:
            check_namespace(namespace)


def _check_conditions(conditions: Any) -> None:
    for condition in conditions or ():
        check_namespace(condition.path)
