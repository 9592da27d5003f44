"""Log line about the memory that a cluster opens: a new one, or its content."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Final

from flowgentic_actors.cluster.client.remote import RemoteClient
from flowgentic_actors.errors import RequestError

_COUNTED: Final = 1.0  # seconds in which actors tell what they hold
_POLL: Final = 0.05

logger = logging.getLogger("flowgentic_actors")


def tell_new(path: object) -> None:
    """Log that a new memory was made."""
    logger.info("new memory at %s", path)


def tell_found(path: object, name: str, threads: int, items: int) -> None:
    """Log the content of a memory that was opened again.

    Args:
        path: Its folder.
        name: The cluster that had it before.
        threads: Threads in it.
        items: Store items in it.
    """
    logger.info(
        "found memory of cluster %s at %s, %d threads, %d items", name, path, threads, items
    )


async def count_and_tell(client: RemoteClient, path: object, name: str) -> None:
    """Log the content of a distributed cluster's reopened memory, as its actors report it.

    Args:
        client: Reaches the cluster.
        path: Its memory's folder.
        name: The cluster that had it before.
    """
    deadline = time.monotonic() + _COUNTED
    try:
        actors = (await client.status()).actors
        while not any(actor.journal_bytes for actor in actors) and time.monotonic() < deadline:
            await asyncio.sleep(_POLL)
            actors = (await client.status()).actors
    except RequestError as error:
        logger.info("found memory of cluster %s at %s; how much is unknown: %s", name, path, error)
        return
    tell_found(path, name, sum(a.threads for a in actors), sum(a.items for a in actors))
