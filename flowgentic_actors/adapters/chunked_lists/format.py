"""The format of chunked lists: chunks that the versions of a list share, and a manifest.

LangGraph hands over a whole list with each of its versions, `messages` with every step. Most of it
is stored already, so only the parts that are new or changed travel.

A part is some items in a row, serialized together. Its name is made from the digest of its bytes,
so one name never means two values, in any process. To the shard parts are channels, whose names
begin with NUL, and a checkpoint names those that it needs among its versions: what any checkpoint
names is kept, and the rest goes, as with all values. The list's own value is a manifest: its
version, and its parts in order. The manifest is stored at a version made from its digest: whoever
knows only the list's own version is told by the shard that there is no such value, and sends the
list again, so no checkpoint is stored without its parts.

Where the parts of a new version end is decided by those of the version before. A part is shared
when its items, serialized now, have the digest that is stored, so items that were changed in place
are found. What is appended becomes a small part; four small ones in a row become a larger one, and
so on up to `PART` bytes. So each item is written a few times and not with every version, and a list
has few parts.
"""

from __future__ import annotations

from binascii import a2b_base64, b2a_base64
from collections.abc import Callable, Iterable, Mapping
from hashlib import sha256
from typing import Any, Final, NamedTuple, TypeAlias
from uuid import uuid4

import msgspec

from flowgentic_actors.engine.model import Blob, Version
from flowgentic_actors.engine.thread_queries import HIDDEN
from flowgentic_actors.errors import JournalDamagedError

MARK: Final = HIDDEN
"""A channel of every checkpoint that has lists in parts: one look tells. It has no value."""

KIND: Final = "fga.parts"
"""The type of a manifest's blob."""

_NO_VERSION: Final = HIDDEN + "unversioned:"

_DIGEST = 16


class ListChunk(NamedTuple):
    """A chunk: some items of a list, as they are stored.

    Attributes:
        name: The channel where they are.
        items: How many they are.
        size: Their bytes.
        head: Checksum of the first one; tells where a part may begin, no more.
    """

    name: str
    items: int
    size: int
    head: int


Piece: TypeAlias = tuple[ListChunk, Blob]


class ChunkedList(NamedTuple):
    """A list in chunks.

    Attributes:
        version: Its channel's version, LangGraph's.
        place: The version at which its manifest is stored.
        parts: Its parts, in order.
    """

    version: Version
    place: str
    parts: tuple[ListChunk, ...]

    @property
    def size(self) -> int:
        """The bytes of the list."""
        return sum(part.size for part in self.parts)


class _Manifest(msgspec.Struct, array_like=True, frozen=True):
    version: Version
    counts: list[int]
    heads: list[int]
    digests: bytes


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Manifest).decode


def _name(digest: bytes) -> str:
    return HIDDEN + b2a_base64(digest, newline=False)[:22].decode("ascii")


def chunk_name(blob: Blob) -> str:
    """The name of a chunk, or the version of a manifest, from its bytes."""
    kind, data = blob
    digest = sha256(kind.encode() + b"\0")
    digest.update(data)
    return _name(digest.digest()[:_DIGEST])


def no_version() -> str:
    """A version for the value of a channel to which its checkpoint gives none.

    The shard finds the value by it as it finds any other, for histories as well. Such a checkpoint
    has the `MARK`.
    """
    return _NO_VERSION + uuid4().hex


def _is_no_version(version: Version) -> bool:
    return isinstance(version, str) and version.startswith(_NO_VERSION)


def manifest_of(version: Version, parts: tuple[ListChunk, ...]) -> Blob:
    """The manifest of a list, stored as the list's own value."""
    digests = b"".join([a2b_base64(part.name[1:] + "==") for part in parts])
    manifest = _Manifest(version, [p.items for p in parts], [p.head for p in parts], digests)
    return KIND, _encode(manifest)


class FoundLists(NamedTuple):
    """The channels of a stored checkpoint, and the chunks of their lists.

    Attributes:
        versions: Versions of its channels.
        blobs: Values of the channels that are stored whole.
        lists: Those that are in parts.
    """

    versions: dict[str, Version]
    blobs: dict[str, Blob]
    lists: dict[str, ChunkedList]


def find(versions: dict[str, Version], blobs: dict[str, Blob]) -> FoundLists:
    """Separate a checkpoint's channels from the chunks of its lists.

    Args:
        versions: What the checkpoint names.
        blobs: The values there.

    Raises:
        JournalDamagedError: If a part is not there.
    """
    lists = {
        channel: decode_manifest(channel, versions[channel], blob[1], blobs)
        for channel, blob in blobs.items()
        if blob[0] == KIND
    }
    if not lists and not any(map(_is_no_version, versions.values())):
        return FoundLists(versions, blobs, lists)
    whole = {c: b for c, b in blobs.items() if c[:1] != HIDDEN and c not in lists}
    own = {
        channel: lists[channel].version if channel in lists else version
        for channel, version in versions.items()
        if channel[:1] != HIDDEN and not _is_no_version(version)
    }
    return FoundLists(own, whole, lists)


def decode_manifest(
    channel: str, place: Version, data: bytes, blobs: Mapping[str, Blob]
) -> ChunkedList:
    """Decode a manifest.

    Args:
        channel: Whose it is.
        place: Where it is stored.
        data: Its bytes.
        blobs: The parts, and maybe more.

    Raises:
        JournalDamagedError: If a part is not there.
    """
    manifest = _decode(data)
    digests, parts = manifest.digests, []
    for number, (count, head) in enumerate(zip(manifest.counts, manifest.heads, strict=True)):
        name = _name(digests[_DIGEST * number : _DIGEST * (number + 1)])
        if name not in blobs:
            raise JournalDamagedError(
                f"a part of the list in channel {channel!r} is not stored any more, so this "
                "checkpoint cannot be read; others may be: list the thread's checkpoints "
                "(a memory that loses values is a bug: please report it)"
            )
        parts.append(ListChunk(name, count, len(blobs[name][1]), head))
    return ChunkedList(manifest.version, str(place), tuple(parts))


def load(
    parts: Iterable[ListChunk], blobs: Mapping[str, Blob], loads: Callable[[Blob], Any]
) -> list[Any]:
    """Load a list from its chunks."""
    value: list[Any] = []
    for part in parts:
        value += loads(blobs[part.name])
    return value
