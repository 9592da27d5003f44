"""Secrets, which no output shows: a cluster's shared secret and its private key."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, Never, TypeVar, get_args, get_origin

import msgspec

T = TypeVar("T")


class Secret(Generic[T]):
    """A value that is not shown by accident: in logs, tracebacks or `repr`.

    It is in no text, log, traceback with locals, dump of fields or pickle; `reveal` gives it, for
    the expression that needs it. On the wire and in files it is as the value itself: see `revealed`
    and `concealed`.

    Attributes:
        reveal: Gives the value.
    """

    __slots__ = ("reveal",)

    def __init__(self, value: T) -> None:
        self.reveal: Callable[[], T] = lambda: value  # what lists attributes finds a function

    def __repr__(self) -> str:
        return "<secret>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and bool(self.reveal() == other.reveal())

    def __hash__(self) -> int:
        return hash(self.reveal())

    def __copy__(self) -> Secret[T]:
        return self

    def __deepcopy__(self, _: Any) -> Secret[T]:
        return self

    def __reduce_ex__(self, _: Any) -> Never:
        raise TypeError("a secret is not pickled: hand over a cluster's handle, which has none")


def revealed(value: object) -> object:
    """The `enc_hook` with which `msgspec` encodes what has secrets."""
    if isinstance(value, Secret):
        return value.reveal()
    raise NotImplementedError(f"{type(value).__name__} cannot be encoded")


def concealed(kind: type, value: Any) -> Any:
    """The `dec_hook` with which `msgspec` decodes what has secrets."""
    if get_origin(kind) is Secret:
        return Secret(msgspec.convert(value, get_args(kind)[0]))
    raise NotImplementedError(f"{kind} cannot be decoded")


def plain(data: bytes | Secret[bytes]) -> memoryview:
    """The bytes to write, as a `memoryview`, which is not shown either."""
    return memoryview(data.reveal() if isinstance(data, Secret) else data)
