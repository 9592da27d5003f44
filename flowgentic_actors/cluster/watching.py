"""Hearing from the host where the shards are, on a thread: calls that block need it, too."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

import msgspec

from flowgentic_actors.cluster.protocol import Done, GetPlaces, Places
from flowgentic_actors.errors import ClusterClosedError, RequestError
from flowgentic_actors.wire.addresses import Address
from flowgentic_actors.wire.blocking import BlockingPool

_WAIT: Final = 1.0  # for news; the thread ends within it once it is not wanted any more
_PATIENCE: Final = 4.0
_PAUSE: Final = 0.2

logger = logging.getLogger(__name__)

_encode = msgspec.msgpack.Encoder().encode
_answers: msgspec.msgpack.Decoder[Places | Done] = msgspec.msgpack.Decoder(Places | Done)
_decode = _answers.decode


class PlaceWatch:
    """Asks the host again and again, until it is closed.

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
        secret: bytes,
        max_bytes: int,
        *,
        version: int,
        on_places: Callable[[Places], None],
    ) -> None:
        self._pool = BlockingPool(host, secret, "the host", max_bytes, 1)
        self._version = version
        self._on_places = on_places
        self._closed = threading.Event()
        threading.Thread(target=self._run, name="flowgentic:places", daemon=True).start()

    def close(self) -> None:
        """Ask no more."""
        self._closed.set()
        self._pool.close()

    def _run(self) -> None:
        body = _encode(GetPlaces(self._version, _WAIT))
        while not self._closed.is_set():
            try:
                places = _decode(self._pool.request(body, _WAIT + _PATIENCE))
            except ClusterClosedError:
                return
            except RequestError as error:
                logger.info("the host does not tell where the shards are: %s", error)
                time.sleep(_PAUSE)
                continue
            if isinstance(places, Done):
                continue  # all is as it was
            if places.version < self._version:
                time.sleep(_PAUSE)  # a host that has just taken over, and does not know them yet
            elif places.version > self._version and not self._closed.is_set():
                self._version = places.version
                self._on_places(places)
                body = _encode(GetPlaces(self._version, _WAIT))
