"""A bare Dragon DDict beside the memories: bytes without pickle, from one process.

The process runs in a Dragon runtime of its own and times itself. Dragon can hang past every
timeout of its own: what does not answer in time is killed, and the run goes on without it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

from flowgentic_actors.actors.process_group import group_members
from flowgentic_actors.bench.peers import PeerError
from flowgentic_actors.dragon.fixes import with_fixes
from flowgentic_actors.dragon.runtime_cleanup import remove_unused, shared_memory_of
from flowgentic_actors.environment import dragon_launcher
from flowgentic_actors.python import python_command

OPEN_TIMEOUT: Final = 60.0
"""Seconds that Dragon and the DDict may take to come up."""

TURN_TIMEOUT: Final = 30.0
"""Seconds that the operations of one turn may take."""

_END_TIMEOUT = 15.0
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
    launcher = dragon_launcher()
    if launcher is None:
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
        process = await _start(launcher, folder, address, log)
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
            await asyncio.shield(_end(process))


async def _start(
    launcher: str, folder: Path, address: Path, log: Path
) -> asyncio.subprocess.Process:
    environ = await asyncio.to_thread(with_fixes, os.environ)
    # The launcher calls its own helper commands by name.
    environ["PATH"] = os.pathsep.join([str(Path(launcher).parent), environ.get("PATH", "")])
    output = await asyncio.to_thread(log.open, "ab")
    try:
        return await asyncio.create_subprocess_exec(
            launcher,
            "-s",
            *python_command(_CHILD, str(address)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=folder,
            env=environ,
            process_group=0,  # a new session would hang Dragon's launcher
        )
    finally:
        output.close()


async def _first(
    connected: asyncio.Future[RawDDict], process: asyncio.subprocess.Process
) -> RawDDict:
    """Wait for the process to connect; raise when Dragon ends or is silent before."""
    ended = asyncio.ensure_future(process.wait())
    either: list[asyncio.Future[Any]] = [connected, ended]
    try:
        await asyncio.wait(either, timeout=OPEN_TIMEOUT, return_when=asyncio.FIRST_COMPLETED)
    finally:
        ended.cancel()
    if process.returncode is not None and not connected.done():
        raise PeerError(f"Dragon ended before it came up (exit code {process.returncode})")
    if not connected.done():
        raise PeerError(f"Dragon did not come up within {OPEN_TIMEOUT:g} s")
    return connected.result()


async def _end(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_END_TIMEOUT):
            await process.wait()
    await asyncio.to_thread(_kill, process.pid)
    await process.wait()


def _kill(group: int) -> None:
    members = group_members(group)
    if members:
        segments = shared_memory_of(members)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
        remove_unused(segments)


async def _tail(log: Path) -> str:
    try:
        text = await asyncio.to_thread(log.read_text, errors="replace")
    except OSError:
        return ""
    return " ".join(text.split())[-200:]
