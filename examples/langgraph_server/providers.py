"""What `langgraph.json` names. The server loads this file once for each; they share the memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from agent_memory import memory
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.store.base import BaseStore


@asynccontextmanager
async def checkpointer() -> AsyncIterator[BaseCheckpointSaver[str]]:
    """For `"checkpointer"`; on a thread, since opening the memory blocks."""
    yield (await asyncio.to_thread(memory)).checkpointer


@asynccontextmanager
async def store() -> AsyncIterator[BaseStore]:
    """For `"store"`."""
    yield (await asyncio.to_thread(memory)).store
