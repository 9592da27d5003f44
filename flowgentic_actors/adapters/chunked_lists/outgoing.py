"""Sending of a checkpoint that has long lists."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from flowgentic_actors.adapters.chunked_lists.chunking import Dumps, cut
from flowgentic_actors.adapters.chunked_lists.format import (
    MARK,
    ChunkedList,
    ListChunk,
    Piece,
    chunk_name,
    manifest_of,
)
from flowgentic_actors.engine.commands import PutCheckpoint
from flowgentic_actors.engine.model import Blob, Version
from flowgentic_actors.engine.thread_queries import HIDDEN

SPLIT: Final = 8 << 10
"""Lists of fewer bytes are stored whole."""


class Outgoing:
    """The channel values of a checkpoint to send, with long lists in chunks.

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
        known: Mapping[str, Sequence[ChunkedList]],
    ) -> None:
        self._command = command
        self._values = values
        self._dumps = dumps
        self._whole: dict[str, Blob] = {}
        self._cut: dict[str, tuple[ChunkedList, Blob, list[Piece]]] = {}
        self._kept: dict[str, ChunkedList] = {}
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

    def _add(self, channel: str, base: Sequence[ListChunk], blob: Blob | None = None) -> None:
        """Add a channel's value, in chunks if that is worth it."""
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
        told = manifest_of(version, parts)
        self._cut[channel] = ChunkedList(version, chunk_name(told), parts), told, pieces
        self._stored.update(shared)

    def command(self) -> PutCheckpoint:
        """Build the command to send."""
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
        """Add the values that the shard lacks, with all chunks of the lists concerned."""
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

    def lists(self) -> dict[str, ChunkedList]:
        """The checkpoint's lists that are in chunks."""
        return {**self._kept, **{channel: found for channel, (found, _, _) in self._cut.items()}}


def _at_version(lists: Iterable[ChunkedList], version: Version) -> ChunkedList | None:
    return next((found for found in lists if found.version == version), None)
