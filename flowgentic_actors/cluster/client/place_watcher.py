"""Threads that poll the host: for the shard map, and for events to warn of.

Calls that block need to know where the shards are, too, so it cannot be the event loop's work.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

import msgspec

from flowgentic_actors.cluster.protocol.host import (
    Acknowledged,
    EventsReply,
    GetEvents,
    GetShardMap,
    ShardMap,
)
from flowgentic_actors.errors import ClusterClosedError, RequestError
from flowgentic_actors.secret import Secret
from flowgentic_actors.wire.addresses import Address
from flowgentic_actors.wire.blocking_connection import BlockingPool

_WAIT: Final = 1.0  # for news; the thread ends within it once it is not wanted any more
_PATIENCE: Final = 4.0
_PAUSE: Final = 0.2
_EVENTS_PAUSE: Final = 2.0  # between two questions for events, which are short

logger = logging.getLogger(__name__)
users_logger = logging.getLogger("flowgentic_actors")

_encode = msgspec.msgpack.Encoder().encode
_answers: msgspec.msgpack.Decoder[ShardMap | Acknowledged] = msgspec.msgpack.Decoder(
    ShardMap | Acknowledged
)
_decode = _answers.decode


class ShardMapWatcher:
    """Polls the host for the shard map, until closed.

    Args:
        host: Where the host is.
        secret: The cluster's secret.
        max_bytes: Largest message.
        version: What is known already.
        on_places: Called on the thread when it is not so any more.
    """

    def __init__(
        self,
        host: Address,
        secret: Secret[bytes],
        max_bytes: int,
        *,
        version: int,
        on_places: Callable[[ShardMap], None],
    ) -> None:
        self._pool = BlockingPool(host, secret, "the host", max_bytes, 1)
        self._version = version
        self._on_places = on_places
        self._closed = threading.Event()
        threading.Thread(target=self._run, name="flowgentic:places", daemon=True).start()

    def close(self) -> None:
        """Stop polling."""
        self._closed.set()
        self._pool.close()

    def _run(self) -> None:
        body = _encode(GetShardMap(self._version, _WAIT))
        while not self._closed.is_set():
            try:
                shard_map = _decode(self._pool.request(body, _WAIT + _PATIENCE))
            except ClusterClosedError:
                return
            except RequestError as error:
                logger.info("the host does not tell where the shards are: %s", error)
                time.sleep(_PAUSE)
                continue
            if isinstance(shard_map, Acknowledged):
                continue  # all is as it was
            if shard_map.version < self._version:
                time.sleep(_PAUSE)  # a host that has just taken over, and does not know them yet
            elif shard_map.version > self._version and not self._closed.is_set():
                self._version = shard_map.version
                self._on_places(shard_map)
                body = _encode(GetShardMap(self._version, _WAIT))


class EventLogger:
    """Logs the cluster's warnings in this program, until closed.

    For programs that attached; in the opener's, the host's keeper does that.

    Args:
        host: Where the host is.
        secret: The cluster's secret.
        max_bytes: Largest message.
        name: The cluster's name.
    """

    def __init__(self, host: Address, secret: Secret[bytes], max_bytes: int, name: str) -> None:
        self._pool = BlockingPool(host, secret, "the host", max_bytes, 1)
        self._name = name
        self._closed = threading.Event()
        threading.Thread(target=self._run, name="flowgentic:events", daemon=True).start()

    def close(self) -> None:
        """Stop polling."""
        self._closed.set()
        self._pool.close()

    def _run(self) -> None:
        start, is_new = 0, False  # what happened before this program attached is no news
        while not self._closed.is_set():
            try:
                answer = self._pool.request(_encode(GetEvents(start, 0.0)), _PATIENCE)
            except ClusterClosedError:
                return
            except RequestError as error:
                logger.info("the host does not tell its events: %s", error)
            else:
                for event in msgspec.msgpack.decode(answer, type=EventsReply).events:
                    start = event.number + 1
                    if is_new and not self._closed.is_set():
                        event.log(self._name, users_logger)
                is_new = True
            self._closed.wait(_EVENTS_PAUSE)
