"""Work of a shard's actor beside its requests."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

logger = logging.getLogger(__name__)


def begin(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Begin work; a defect that ends it is logged, and the shard goes on without it."""
    task = asyncio.ensure_future(work)
    task.add_done_callback(_log_defect)
    return task


def _log_defect(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("%s ended for good", task.get_coro(), exc_info=error)
