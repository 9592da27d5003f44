"""A bare Dragon DDict beside the memories: bytes without pickle, from one process.

The process runs in a Dragon runtime of its own and times itself. Dragon can hang past every
timeout of its own: what does not answer in time is killed, and the run goes on without it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

from flowgentic_actors.actors.process_group import HostProcess
from flowgentic_actors.bench.peers import PeerError
from flowgentic_actors.dragon.host_launcher import start_runtime
from flowgentic_actors.environment import dragon_launcher
from flowgentic_actors.python import python_command

OPEN_TIMEOUT: Final = 60.0
"""Seconds that Dragon and the DDict may take to come up."""

TURN_TIMEOUT: Final = 30.0
"""Seconds that the operations of one turn may take."""

_END_TIMEOUT = 15.0
_LOOK = 0.1
_CHILD = "flowgentic_actors.bench.raw_ddict_child"


class RawDDict:
    """The handle of the process that has the DDict."""

    durability = "none: memory of the node's Dragon processes; raw bytes, no LangGraph"

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def times(self, kind: str, size: int, count: int) -> list[float]:
        """Time a number of operations with values of a size; returns their seconds.

        Raises:
            PeerError: If the process does not answer in time, or tells of an error.
        """
        self._writer.write(msgspec.json.encode((kind, size, count)) + b"\n")
        answer = await self.answer(TURN_TIMEOUT)
        if "error" in answer:
            raise PeerError(f"the DDict failed: {answer['error']}")
        times: list[float] = answer["times"]
        return times

    async def answer(self, timeout: float) -> dict[str, Any]:
        """Await one line of the process."""
        try:
            async with asyncio.timeout(timeout):
                line = await self._reader.readline()
        except TimeoutError:
            raise PeerError(f"Dragon did not answer within {timeout:g} s") from None
        if not line:
            raise PeerError("the process with the DDict has ended")
        answer: dict[str, Any] = msgspec.json.decode(line)
        return answer

    async def close(self) -> None:
        """Tell the process to end."""
        with contextlib.suppress(OSError):
            self._writer.write(b"null\n")
            self._writer.close()
            await self._writer.wait_closed()


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[RawDDict]:
    """A DDict in a runtime of its own, with its files in a folder."""
    if await asyncio.to_thread(dragon_launcher) is None:
        raise PeerError("there is no command `dragon`: reinstall dragonhpc")
    connected: asyncio.Future[RawDDict] = asyncio.get_running_loop().create_future()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if connected.done():
            writer.close()
        else:
            connected.set_result(RawDDict(reader, writer))

    address, log = folder / "s", folder / "log"
    server = await asyncio.start_unix_server(accept, address, limit=1 << 24)
    async with server:
        command = python_command(_CHILD, str(address))
        process = await asyncio.to_thread(start_runtime, command, folder, log)
        memory: RawDDict | None = None
        try:
            memory = await _first(connected, process)
            await memory.answer(OPEN_TIMEOUT)
            yield memory
        except PeerError as error:
            raise PeerError(f"{error}; Dragon's log ends: {await _tail(log)}") from error
        finally:
            if memory is not None:
                await memory.close()
            await asyncio.shield(asyncio.to_thread(_end, process))


async def _first(connected: asyncio.Future[RawDDict], process: HostProcess) -> RawDDict:
    """Wait for the process to connect; raise when Dragon ends or is silent before."""
    until = time.monotonic() + OPEN_TIMEOUT
    while not connected.done():
        if not process.running():
            raise PeerError(f"Dragon ended before it came up: it {process.ending()}")
        if time.monotonic() > until:
            raise PeerError(f"Dragon did not come up within {OPEN_TIMEOUT:g} s")
        await asyncio.wait([connected], timeout=_LOOK)
    return connected.result()


def _end(process: HostProcess) -> None:
    process.wait(_END_TIMEOUT)
    process.kill()


async def _tail(log: Path) -> str:
    try:
        text = await asyncio.to_thread(log.read_text, errors="replace")
    except OSError:
        return ""
    return " ".join(text.split())[-200:]
