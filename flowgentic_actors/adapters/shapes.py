"""Checks of the types of namespaces and values.

A string is a sequence of characters, and `dict()` accepts a list of pairs: without a check, either
would be stored as something else than was meant.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from langgraph.store.base import InvalidNamespaceError, ListNamespacesOp, Op, SearchOp

from flowgentic_actors.errors import InvalidRequestError


def check_namespace(namespace: object) -> None:
    """Refuse a namespace that is no sequence of labels.

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


def not_a_dict(namespace: object, key: object, value: object) -> InvalidRequestError:
    """The error of a put whose value is not a dict."""
    hint = ": give its model_dump()" if hasattr(type(value), "model_dump") else ""
    return InvalidRequestError(
        f"the value of {key!r:.100} in {namespace!r:.200} must be a dict, and is a "
        f"{type(value).__name__}{hint}. Nothing was stored"
    )


def check_shape(op: Op) -> None:
    """Refuse a search or a listing whose namespaces are of a wrong type.

    Raises:
        InvalidNamespaceError: If one is a text, or nothing that holds labels.
    """
    if isinstance(op, SearchOp):
        if type(op.namespace_prefix) is not tuple:
            check_namespace(op.namespace_prefix)
    elif isinstance(op, ListNamespacesOp):
        conditions: Any = op.match_conditions
        for condition in conditions or ():
            check_namespace(condition.path)
