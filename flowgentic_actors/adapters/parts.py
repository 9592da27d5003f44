"""Long lists are stored in parts, which the versions of a list share.

LangGraph hands over a whole list with each of its versions, `messages` with every step. Most of it
is stored already, so only the parts that are new or changed travel.

A part is some items in a row, serialized together. Its name is made from the digest of its bytes,
so one name never means two values, whoever writes. To the shard parts are channels, whose names
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

import threading
from binascii import a2b_base64, b2a_base64
from collections import OrderedDict
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any, Final, NamedTuple, TypeAlias
from zlib import crc32

import msgspec

from flowgentic_actors.engine.commands import PutCheckpoint
from flowgentic_actors.engine.model import Blob, Version
from flowgentic_actors.engine.thread_queries import HIDDEN
from flowgentic_actors.errors import JournalDamagedError

MARK: Final = HIDDEN
"""A channel of every checkpoint that has lists in parts: one look tells. It has no value."""

KIND: Final = "fga.parts"
"""The type of a manifest's blob."""

SPLIT: Final = 8 << 10
"""Lists of fewer bytes are stored whole."""

PART: Final = 64 << 10
"""Bytes up to which parts are put together."""

_TINY = 1 << 10  # bytes below which a part is not worth its place: what follows is put to it
_FAN = 4  # so many small parts in a row become one
_FRAGMENTS = 32  # parts that a list may have beyond those that its size accounts for
_SCAN = 4 * PART  # bytes of single items that are looked at for where known parts go on
_DIGEST = 16
_CHECKPOINTS = 4  # of each namespace, whose lists are remembered
_REMEMBERED = 50_000  # parts, some 250 bytes each

Dumps: TypeAlias = Callable[[Any], Blob]


class Part(NamedTuple):
    """Some items of a list, as they are stored.

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


Piece: TypeAlias = tuple[Part, Blob]


class LongList(NamedTuple):
    """A list in parts.

    Attributes:
        version: Its channel's version, LangGraph's.
        place: The version at which its manifest is stored.
        parts: Its parts, in order.
    """

    version: Version
    place: str
    parts: tuple[Part, ...]

    @property
    def size(self) -> int:
        """Its bytes."""
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


def _name_of(blob: Blob) -> str:
    kind, data = blob
    digest = sha256(kind.encode() + b"\0")
    digest.update(data)
    return _name(digest.digest()[:_DIGEST])


# ---------------------------------------------------------------------- cutting


def cut(
    value: list[Any], dumps: Dumps, base: Sequence[Part] = (), average: float = 1
) -> list[Piece]:
    """Cut a list into parts, along those of an earlier version of it.

    Args:
        value: The list.
        dumps: Serializes.
        base: Parts of an earlier version.
        average: Bytes of an item, about, where there is no earlier version.
    """
    if base:
        average = sum([part.size for part in base]) / sum([part.items for part in base])
    cutter = _Cutter(value[:], dumps, max(average, 1))  # others may go on with the list
    index = 0
    while index < len(base):
        if cutter.keep(base[index]):
            index += 1
        elif (found := cutter.find(base, index)) is not None:
            end, index = found
            cutter.add(end)
        else:
            break
    cutter.add(len(value))
    cutter.put_together()
    return cutter.pieces


class _Cutter:
    """Cuts a list from its beginning to its end."""

    __slots__ = ("_at", "_average", "_dumps", "_scan", "_value", "pieces")

    def __init__(self, value: list[Any], dumps: Dumps, average: float) -> None:
        self._value = value
        self._dumps = dumps
        self._average = average
        self._at = 0  # items before this one are in pieces
        self._scan = _SCAN
        self.pieces: list[Piece] = []

    def keep(self, part: Part) -> bool:
        """Go on with a known part, if these are its items still."""
        end = self._at + part.items
        if end > len(self._value):
            return False
        blob = self._dumps(self._value[self._at : end])
        if _name_of(blob) != part.name:
            return False
        self.pieces.append((part, blob))
        self._at = end
        return True

    def find(self, base: Sequence[Part], index: int) -> tuple[int, int] | None:
        """Where the list may go on with a known part, after one that does not come next.

        Returns:
            Position in the list and index of the known part.
        """
        if index + 1 == len(base):
            return None
        end = self._at + base[index].items
        if end < len(self._value) and self._head(end) == base[index + 1].head:
            return end, index + 1  # items were changed in place
        heads = {base[later].head: later for later in range(len(base) - 1, index, -1)}
        for position in range(self._at, len(self._value)):
            if self._scan <= 0:
                return None
            data = self._dumps(self._value[position])[1]
            self._scan -= len(data)
            if (later := heads.get(crc32(data))) is not None:
                return position, later
        return None

    def add(self, end: int) -> None:
        """Go on with new parts, to a position."""
        count = end - self._at
        step = count if count * self._average <= 2 * PART else int(PART / self._average) or 1
        while self._at < end:
            stop = min(end, self._at + step)
            blob = self._dumps(self._value[self._at : stop])
            count, size = stop - self._at, len(blob[1])
            fitting = count * PART // (size or 1) or 1
            if size > 2 * PART and count > 1:
                step = fitting
                continue
            self.pieces.append((self._part(blob, count, self._head(self._at)), blob))
            self._at = stop
            step = min(2 * step, fitting)

    def put_together(self) -> None:
        """Make larger parts of small ones at the end, and anew what has become too many pieces."""
        pieces = self.pieces
        while len(pieces) > 1:
            number = 2 if pieces[-2][0].size < _TINY else _FAN
            last = [part for part, _ in pieces[-number:]]
            size = sum([part.size for part in last])
            if len(last) < number or size > PART or (number > 2 and 2 * last[0].size > size):
                break
            count = sum([part.items for part in last])
            blob = self._dumps(self._value[self._at - count : self._at])
            pieces[-number:] = [(self._part(blob, count, last[0].head), blob)]
        if len(pieces) > _FRAGMENTS and len(pieces) > _FRAGMENTS + 8 * self._size() // PART:
            self._average = max(self._size() / len(self._value), 1)
            pieces.clear()
            self._at = 0
            self.add(len(self._value))

    def _size(self) -> int:
        return sum([part.size for part, _ in self.pieces])

    def _head(self, position: int) -> int:
        return crc32(self._dumps(self._value[position])[1])

    @staticmethod
    def _part(blob: Blob, count: int, head: int) -> Part:
        return Part(_name_of(blob), count, len(blob[1]), head)


# ---------------------------------------------------------------------- sending


class Outgoing:
    """How the channel values of a checkpoint travel, where some of them are long lists.

    Args:
        command: The checkpoint with values as they are, and LangGraph's versions.
        values: Its channel values.
        new: The channels whose values are new with it.
        dumps: Serializes.
        known: Lists of earlier checkpoints by channel, the most likely first; those are in none of
            the command's blobs.
    """

    def __init__(
        self,
        command: PutCheckpoint,
        values: Mapping[str, Any],
        new: Container[str],
        dumps: Dumps,
        known: Mapping[str, Sequence[LongList]],
    ) -> None:
        self._command = command
        self._values = values
        self._dumps = dumps
        self._whole: dict[str, Blob] = {}
        self._cut: dict[str, tuple[LongList, Blob, list[Piece]]] = {}
        self._kept: dict[str, LongList] = {}
        self._present: list[str] = []
        self._stored: set[str] = set()
        # A channel whose name might be taken for a part's: nothing of such a checkpoint is cut.
        self._may_cut = not any(channel.startswith(HIDDEN) for channel in command.versions)
        for channel, blob in command.blobs.items():
            self._add(channel, (), blob)
        for channel in command.present:
            lists = known.get(channel, ())
            if channel in new and lists:
                self._add(channel, lists[0].parts)
            elif self._may_cut and (same := _at_version(lists, command.versions[channel])):
                self._kept[channel] = same
            else:
                self._present.append(channel)

    def _add(self, channel: str, base: Sequence[Part], blob: Blob | None = None) -> None:
        """Send a channel's value, in parts if that is worth it."""
        value, dumps = self._values[channel], self._dumps
        if (
            type(value) is not list
            or len(value) < 2
            or channel in self._command.deltas
            or not self._may_cut
            or (blob is not None and len(blob[1]) < SPLIT)
            # A serializer that gives other bytes each time, an encrypting one say, shares nothing.
            or dumps(value[0]) != dumps(value[0])
        ):
            self._whole[channel] = blob or dumps(value)
            return
        pieces = cut(value, dumps, base, len(blob[1]) / len(value) if blob else 1)
        parts = tuple([part for part, _ in pieces])
        stored = {part.name for part in base}
        shared = [part.name for part in parts if part.name in stored]
        if sum([part.size for part in parts]) < SPLIT:
            self._whole[channel] = blob or dumps(value)
            return
        version = self._command.versions[channel]
        digests = b"".join([a2b_base64(part.name[1:] + "==") for part in parts])
        manifest = _Manifest(version, [p.items for p in parts], [p.head for p in parts], digests)
        told = (KIND, _encode(manifest))
        self._cut[channel] = LongList(version, _name_of(told), parts), told, pieces
        self._stored.update(shared)

    def command(self) -> PutCheckpoint:
        """The command to send."""
        versions, blobs = dict(self._command.versions), dict(self._whole)
        present = dict.fromkeys(self._present)
        for channel, (found, manifest, pieces) in self._cut.items():
            versions[channel] = found.place
            blobs[channel] = manifest
            for part, blob in pieces:
                versions[part.name] = 0
                if part.name in self._stored:
                    present[part.name] = None
                else:
                    blobs[part.name] = blob
        for channel, found in self._kept.items():
            versions[channel] = found.place
            present[channel] = None
            for part in found.parts:
                versions[part.name] = 0
                present[part.name] = None
        if self._cut or self._kept:
            versions[MARK] = 0
        return msgspec.structs.replace(
            self._command,
            versions=versions,
            blobs=blobs,
            present=tuple([name for name in present if name not in blobs]),
        )

    def send_again(self, missing: Iterable[str]) -> None:
        """Send what the shard does not have, and then all of the lists that were cut."""
        names = set(missing)
        lost = {
            channel
            for channel, found in self._kept.items()
            if channel in names or any(part.name in names for part in found.parts)
        }
        lost.update(channel for channel in self._present if channel in names)
        self._present = [channel for channel in self._present if channel not in names]
        self._stored.clear()
        for channel in lost:
            self._kept.pop(channel, None)
            self._add(channel, (), self._dumps(self._values[channel]))

    def lists(self) -> dict[str, LongList]:
        """The checkpoint's lists that are in parts."""
        return {**self._kept, **{channel: found for channel, (found, _, _) in self._cut.items()}}


def _at_version(lists: Iterable[LongList], version: Version) -> LongList | None:
    return next((found for found in lists if found.version == version), None)


# ---------------------------------------------------------------------- reading


class Found(NamedTuple):
    """What is stored of a checkpoint, seen as LangGraph sees it.

    Attributes:
        versions: Versions of its channels.
        blobs: Values of the channels that are stored whole.
        lists: Those that are in parts.
    """

    versions: dict[str, Version]
    blobs: dict[str, Blob]
    lists: dict[str, LongList]


def find(versions: dict[str, Version], blobs: dict[str, Blob]) -> Found:
    """Tell a checkpoint's channels from the parts of its lists.

    Args:
        versions: What the checkpoint names.
        blobs: The values there.

    Raises:
        JournalDamagedError: If a part is not there.
    """
    lists = {
        channel: read_manifest(channel, versions[channel], blob[1], blobs)
        for channel, blob in blobs.items()
        if blob[0] == KIND
    }
    if not lists:
        return Found(versions, blobs, lists)
    whole = {c: b for c, b in blobs.items() if c[:1] != HIDDEN and c not in lists}
    own = {
        channel: lists[channel].version if channel in lists else version
        for channel, version in versions.items()
        if channel[:1] != HIDDEN
    }
    return Found(own, whole, lists)


def read_manifest(channel: str, place: Version, data: bytes, blobs: Mapping[str, Blob]) -> LongList:
    """What a manifest says.

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
        parts.append(Part(name, count, len(blobs[name][1]), head))
    return LongList(manifest.version, str(place), tuple(parts))


def load(
    parts: Iterable[Part], blobs: Mapping[str, Blob], loads: Callable[[Blob], Any]
) -> list[Any]:
    """Put a list together again."""
    value: list[Any] = []
    for part in parts:
        value += loads(blobs[part.name])
    return value


# ---------------------------------------------------------------------- remembering


class _Branch:
    """The lists of the last checkpoints of a namespace, by checkpoint id; the last one at the end.

    Attributes:
        checkpoints: Them.
        weight: Most parts that any of them ever had; they share most of theirs.
    """

    __slots__ = ("checkpoints", "weight")

    def __init__(self) -> None:
        self.checkpoints: dict[str, dict[str, LongList]] = {}
        self.weight = 0

    def __bool__(self) -> bool:
        return any(self.checkpoints.values())

    def put(self, checkpoint_id: str, lists: dict[str, LongList]) -> None:
        """Make a checkpoint the last one."""
        self.checkpoints.pop(checkpoint_id, None)
        self.checkpoints[checkpoint_id] = lists
        if len(self.checkpoints) > _CHECKPOINTS:
            del self.checkpoints[next(iter(self.checkpoints))]
        self.weight = max(self.weight, sum([len(found.parts) for found in lists.values()]))


class RecentLists:
    """The lists in parts that the last checkpoints of each namespace have, as this process knows.

    What it says is stored may be gone meanwhile: the shard is always asked. Any thread may use it.
    """

    __slots__ = ("_branches", "_lock", "_parts")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._parts = 0
        # By thread and namespace, the one that was used last at the end.
        self._branches: OrderedDict[tuple[str, str], _Branch] = OrderedDict()

    def of(
        self, thread_id: str, ns: str, checkpoint_id: str | None
    ) -> Mapping[str, Sequence[LongList]]:
        """Lists of a namespace by channel: a checkpoint's first, then from the last one back."""
        if (thread_id, ns) not in self._branches:
            return _NONE
        with self._lock:
            branch = self._branches.get((thread_id, ns))
            if branch is None:
                return _NONE
            self._branches.move_to_end((thread_id, ns))
            found: dict[str, list[LongList]] = {}
            first = branch.checkpoints.get(checkpoint_id or "", _NO_LISTS)
            for lists in (first, *reversed(branch.checkpoints.values())):
                for channel, known in lists.items():
                    found.setdefault(channel, []).append(known)
            return found

    def remember(
        self, thread_id: str, ns: str, checkpoint_id: str, lists: dict[str, LongList]
    ) -> None:
        """Note what lists a checkpoint has, which is stored."""
        with self._lock:
            branch = self._branches.pop((thread_id, ns), None) or _Branch()
            self._parts -= branch.weight
            branch.put(checkpoint_id, lists)
            if branch:
                self._branches[thread_id, ns] = branch
                self._parts += branch.weight
            while self._parts > _REMEMBERED and len(self._branches) > 1:
                self._parts -= self._branches.popitem(last=False)[1].weight


_NO_LISTS: Final[dict[str, LongList]] = {}
_NONE: Final[Mapping[str, Sequence[LongList]]] = {}
