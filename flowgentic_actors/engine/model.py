"""Types that commands, records and replies share, with the limits that decoding enforces."""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias

from msgspec import Meta, Struct

MAX_TEXT: Final = 65_536
"""Most characters of an id, a label, a key, or the name of a channel or a field."""

MAX_LABELS: Final = 64
"""Most labels of a namespace."""

MAX_FILTER: Final = 65_536
"""Most bytes of an encoded item filter."""

MAX_ENTRIES: Final = 65_536
"""Most channels of a checkpoint, fields of its metadata, or ids in one request."""

Text: TypeAlias = Annotated[str, Meta(max_length=MAX_TEXT)]
"""Thread ids, checkpoint ids, namespace labels, keys: any text of reasonable length."""

Blob: TypeAlias = tuple[Annotated[str, Meta(max_length=256)], bytes]
"""A value as its serializer left it: (type, bytes). Never looked into, save by item filters."""

Version: TypeAlias = int | float | Annotated[str, Meta(max_length=256)]
"""A channel's version (see LangGraph's `get_next_version`)."""

Namespace: TypeAlias = Annotated[tuple[Text, ...], Meta(max_length=MAX_LABELS)]
Scalar: TypeAlias = bool | int | float | str | None
Channels: TypeAlias = Annotated[dict[Text, Version], Meta(max_length=MAX_ENTRIES)]
Blobs: TypeAlias = Annotated[dict[Text, Blob], Meta(max_length=MAX_ENTRIES)]
Facets: TypeAlias = Annotated[dict[Text, Scalar], Meta(max_length=MAX_ENTRIES)]
Limit: TypeAlias = Annotated[int, Meta(ge=0, le=2**53)]

Micros: TypeAlias = Annotated[int, Meta(ge=0, le=2**62)]
"""Microseconds: a duration, or a time since the Unix epoch, UTC."""

PAGE_BYTES = 1 << 20
"""A page of a listing holds at most this many bytes of values, or a single larger one."""


class Write(Struct, array_like=True, frozen=True, gc=False):
    """One pending write of a task.

    Attributes:
        index: Its position among the task's writes, negative for special channels
            (LangGraph's `WRITES_IDX_MAP`).
        channel: The channel written to.
        value: The value as (type, bytes).
    """

    index: int
    channel: Text
    value: Blob


class Position(Struct, array_like=True, frozen=True, order=True, gc=False):
    """The position where a listing of checkpoints stopped; the next page begins after it."""

    checkpoint_id: str
    thread_id: str
    checkpoint_ns: str


class ItemPosition(Struct, array_like=True, frozen=True, order=True, gc=False):
    """The position where a search stopped; the next page begins after it."""

    namespace: tuple[str, ...]
    key: str


class ThreadPosition(Struct, array_like=True, frozen=True, order=True, gc=False):
    """The position where a listing of threads stopped; the next page begins after it."""

    updated_us: int
    thread_id: str


class Vector(Struct, array_like=True, frozen=True, gc=False):
    """The embedding of one text of an item.

    Attributes:
        path: Where in the item's value the text is.
        data: Its components, 32-bit floats, little-endian.
    """

    path: Text
    data: Annotated[bytes, Meta(max_length=4 * 65_536)]


class NamespacePosition(Struct, array_like=True, frozen=True, gc=False):
    """The position where a listing of namespaces stopped; the next page begins after it.

    Attributes:
        namespace: The last one that was looked at.
        given: Whether what it is when it is cut was given, or passed over, already.
    """

    namespace: tuple[str, ...]
    given: bool


class RankPosition(Struct, array_like=True, frozen=True, gc=False):
    """The position where a search by similarity stopped; the next page begins after it.

    Attributes:
        item: The last item that was looked at.
        score: Its score, None once those without one are looked at.
    """

    item: ItemPosition
    score: float | None
