"""Limits of commands, enforced where a command is made, in every mode.

The types say what a command may hold (`engine.model`), and decoding enforces it on the other side
of a socket. A shard in this process decodes nothing: what it took beyond the limits could neither
be sent to an actor nor be read from a journal again. So callers check what they are about to ask.

What a filter may hold is checked where it is about to be used, by the shard (`check_filter`).

What names a thread to read, or anything to delete, is not limited in length: a local memory of an
earlier version may hold it.
"""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Meta, Struct, inspect

from flowgentic_actors.engine.model import (
    MAX_ENTRIES,
    Channels,
    Facets,
    Namespace,
    Text,
)
from flowgentic_actors.errors import InvalidRequestError

S = TypeVar("S", bound=Struct)

MAX_CONDITIONS: Final = 256
"""Most conditions of an item filter, see `check_filter`: each is tried on every candidate."""

MAX_LEVELS: Final = 32
"""Most levels of maps and lists within each other in an item filter."""

_INT64: Final = 2**63


class CheckpointHead(Struct, array_like=True, gc=False):
    """The fields of a `PutCheckpoint` without values."""

    thread_id: Text
    checkpoint_ns: Text
    checkpoint_id: Text
    parent_id: Text | None
    metadata: Facets
    channel_versions: Channels
    deltas: Annotated[tuple[Text, ...], Meta(max_length=MAX_ENTRIES)]


class WritesHead(Struct, array_like=True, gc=False):
    """The fields of a `PutWrites` without values."""

    thread_id: Text
    checkpoint_ns: Text
    checkpoint_id: Text
    task_id: Text
    task_path: Text
    channel: list[Text]


class CheckpointPlace(Struct, array_like=True, gc=False):
    """A place at which a checkpoint can be stored."""

    thread_id: Text
    checkpoint_ns: Text
    checkpoint_id: Text | None


class ItemPlace(Struct, array_like=True, gc=False):
    """A place at which an item can be stored, and the paths that are embedded."""

    namespace: Namespace
    key: Text
    index: Annotated[tuple[Text, ...], Meta(max_length=MAX_ENTRIES)] = ()


def plain(value: object) -> str:
    """Encode a subclass of `str`, such as a `StrEnum`, as plain text: ids and labels may be one."""
    if isinstance(value, str):
        return str.__str__(value)
    raise TypeError(f"{type(value).__name__} is nothing that a command may hold")


encode = msgspec.msgpack.Encoder(enc_hook=plain).encode

UNFIT: Final = (msgspec.ValidationError, UnicodeEncodeError, TypeError, OverflowError)
"""Errors of encoding, or of decoding into a type of this module, for values beyond the limits."""


decode_checkpoint: Final = msgspec.msgpack.Decoder(CheckpointHead).decode
decode_writes: Final = msgspec.msgpack.Decoder(WritesHead).decode


def check(fields: S) -> S:
    """Refuse a value that cannot be sent or stored.

    Args:
        fields: A command without values, or a struct of this module.

    Returns:
        What would arrive.

    Raises:
        InvalidRequestError: If it is beyond a limit; the text names the field.
    """
    try:
        arrived: S = _decoder(type(fields)).decode(encode(fields))
    except UNFIT as error:
        raise refusal(fields, error) from None
    return arrived


def check_text(name: str, text: str) -> str:
    """Refuse text that cannot be stored; see `check`."""
    if fault := _fault(_TEXT, text, name):
        raise InvalidRequestError(fault)
    return text


def check_filter(conditions: dict[str, Any]) -> None:
    """Refuse an item filter that would take too long for each candidate.

    A condition is what is compared with a field: a value, or a list with all values in it. A map
    or list within a list counts as well. So does an empty one.

    Raises:
        InvalidRequestError: If it has too many conditions, or too many levels.
    """
    count = _conditions(conditions, 1)
    if count > MAX_CONDITIONS:
        raise InvalidRequestError(f"filter: {count:,} conditions, at most {MAX_CONDITIONS:,}")


def _conditions(part: Any, level: int) -> int:
    if not isinstance(part, dict | list):
        return 1
    if level > MAX_LEVELS:
        raise InvalidRequestError(
            f"filter: more than {MAX_LEVELS} levels of maps and lists, at most {MAX_LEVELS}"
        )
    if isinstance(part, dict):
        return sum(_conditions(each, level + 1) for each in part.values()) or 1
    return sum(_conditions(e, level + 1) for e in part if isinstance(e, dict | list)) or 1


def refusal(fields: Struct, error: Exception) -> InvalidRequestError:
    """The error that names the field and the limit.

    Args:
        fields: As in `check`.
        error: The encoder's or decoder's error, whose text is used if no field is at fault.
    """
    return InvalidRequestError(_fault(_info(type(fields)), fields, "") or str(error))


@cache
def _decoder(kind: type[Struct]) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(kind)


@cache
def _info(kind: type[Struct]) -> inspect.Type:
    return inspect.type_info(kind)


_SCALARS: Final[dict[Any, tuple[Any, str]]] = {
    inspect.StrType: (str, "text"),
    inspect.BytesType: ((bytes, bytearray, memoryview), "bytes"),
    inspect.IntType: (int, "a whole number"),
    inspect.FloatType: (float, "a number"),
    inspect.BoolType: (bool, "true or false"),
    inspect.NoneType: (type(None), "None"),
}

_TEXT: Final = inspect.type_info(Text)
_ANY: Final = object, "anything"

_LABELS: Final = frozenset({"namespace", "namespaces", "prefix", "path", "keys"})
"""The fields whose entries are labels."""


def _fault(kind: Any, value: Any, name: str) -> str | None:
    """The fault of a value of a type, None if it is valid."""
    scalar = _SCALARS.get(type(kind))
    if scalar is not None:
        if not _is_a(scalar[0], value):
            found = type(value).__name__
            return f"{name}: {value!r:.100} is of type {found}, and must be {scalar[1]}"
        return _fault_of_scalar(kind, value, name)
    if isinstance(kind, inspect.Metadata):
        return _fault(kind.type, value, name)
    if isinstance(kind, inspect.UnionType):
        fitting = (k for k in kind.types if _is_a(_SCALARS.get(type(k), _ANY)[0], value))
        return _fault(next(fitting, kind.types[0]), value, name)
    parts: list[tuple[Any, Any, str]] = []
    match kind:
        case inspect.StructType():
            parts = [(f.type, getattr(value, f.name), f.name) for f in kind.fields]
        case inspect.VarTupleType() | inspect.ListType():
            parts = [(kind.item_type, item, name) for item in value]
        case inspect.TupleType():
            parts = [(k, v, name) for k, v in zip(kind.item_types, value, strict=True)]
        case inspect.DictType():
            parts = [(kind.key_type, key, name) for key in value]
            parts += [(kind.value_type, v, f"{name}[{k!r:.100}]") for k, v in value.items()]
    unit = "labels" if name in _LABELS else "entries"
    if too_many := _too_many(value, getattr(kind, "max_length", None), unit, name):
        return too_many
    return next((fault for part in parts if (fault := _fault(*part))), None)


def _is_a(kind: Any, value: object) -> bool:
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _fault_of_scalar(kind: Any, value: Any, name: str) -> str | None:
    match kind:
        case inspect.StrType():
            return _too_many(value, kind.max_length, "characters", name) or _half(value, name)
        case inspect.BytesType():
            return _too_many(value, kind.max_length, "bytes", name)
        case inspect.IntType() if not -_INT64 <= value < 2 * _INT64:
            return f"{name}: a whole number of {value.bit_length()} bits, at most 64"
    return None


def _too_many(value: Any, most: int | None, unit: str, name: str) -> str | None:
    if most is None or len(value) <= most:
        return None
    return f"{name}: {len(value):,} {unit}, at most {most:,}"


def _half(text: str, name: str) -> str | None:
    try:
        text.encode()
    except UnicodeEncodeError:
        return (
            f"{name}: {text!r:.100} holds half of a surrogate pair, which is no character and "
            "cannot be stored. It comes from text that was decoded with errors='surrogateescape', "
            "or cut in its middle"
        )
    return None
