"""A memory in which somebody put values that run code where they are decoded to any type."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flowgentic_actors import MemoryCluster, TypeNotAllowedError
from flowgentic_actors.cli.main import main
from tests.conftest import settings_of
from tests.support.faces import checkpoint_of, config_of
from tests.support.forged_values import FORGED, Ran, ran

pytestmark = pytest.mark.anyio

__all__ = ["ran"]  # the fixture


@dataclass
class Person:
    name: str


@pytest.fixture(params=["inline", "inline-journal", "subprocess"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """A mode's settings, with a folder of the memory where the mode has one."""
    kept = {} if request.param == "inline" else {"persist_path": tmp_path / "memory"}
    return settings_of(request.param) | kept


async def poison(memory: MemoryCluster, ran: Ran) -> None:
    """Store what runs code, wherever a value can be."""
    saver, bad = memory.checkpointer, FORGED["an argument"](ran)
    for thread, values, metadata in (
        ("parent", {"a": bad}, {}),
        ("value", {"a": bad}, {}),
        ("list", {"a": ["x" * 1000] * 20 + [bad]}, {}),
        ("metadata", {"a": 1}, {"note": bad}),
        ("writes", {"a": 1}, {}),
    ):
        checkpoint = checkpoint_of(values)
        stored = await saver.aput(
            config_of(thread),
            checkpoint,
            metadata,  # type: ignore[arg-type]
            checkpoint["channel_versions"],
        )
        if thread == "parent":
            await saver.aput(stored, checkpoint_of({}), {}, {})
    await saver.aput_writes(stored, [("a", FORGED["an import"](ran))], "task")
    await saver.acopy_thread("value", "copy")
    await memory.store.aput(("n",), "bad", {"a": 1, "b": bad})
    await memory.cache.aset({(("n",), "bad"): (bad, None)})


def readers(memory: MemoryCluster) -> dict[str, Callable[[], Awaitable[object]]]:
    """All ways to get at it."""
    saver, store = memory.checkpointer, memory.store

    async def listed() -> object:
        return [found async for found in saver.alist(None)]

    async def history() -> object:
        return await saver.aget_delta_channel_history(config=config_of("parent"), channels=["a"])

    return {
        **{
            thread: lambda thread=thread: saver.aget_tuple(config_of(thread))  # type: ignore[misc]
            for thread in ("value", "list", "metadata", "writes", "copy")
        },
        "listing": listed,
        "history": history,
        "blocking": lambda: asyncio.to_thread(saver.get_tuple, config_of("value")),
        "item": lambda: store.aget(("n",), "bad"),
        "search": lambda: store.asearch(("n",), filter={"a": 1}),
        "cache": lambda: memory.cache.aget([(("n",), "bad")]),
    }


async def expect_refusals(memory: MemoryCluster, ran: Ran, *, cached: bool = True) -> None:
    for name, read in readers(memory).items():
        if cached or name != "cache":
            with pytest.raises(TypeNotAllowedError, match="allowed_types"):
                print(name, await read())
    assert not ran


async def test_a_strict_reader_runs_nothing_of_it(
    settings: dict[str, Any], ran: Ran, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with MemoryCluster(**settings, allowed_types=()) as memory:
        await poison(memory, ran)
        await expect_refusals(memory, ran)
    if "persist_path" not in settings:
        return
    path, copy = settings["persist_path"], tmp_path / "copy"

    assert await asyncio.to_thread(main, ["snapshot", str(path), str(copy)]) == 0
    for arguments in ([], ["--json"], ["--thread", "writes"], ["--thread", "list"]):
        assert await asyncio.to_thread(main, ["dump", str(copy), "--values", *arguments]) == 0
    assert "os.environ" in capsys.readouterr().out  # told, and not done
    async with MemoryCluster(**settings_of("inline"), persist_path=copy, allowed_types=()) as again:
        await expect_refusals(again, ran, cached=False)


async def test_each_program_that_attaches_decides_for_itself(ran: Ran) -> None:
    mode = settings_of("subprocess")
    async with (
        MemoryCluster(**mode) as trusting,
        MemoryCluster.attach(trusting.handle, allowed_types=[Person]) as strict,
    ):
        await trusting.store.aput(("n",), "good", {"a": Person("ada")})
        await poison(trusting, ran)
        await expect_refusals(strict, ran)
        good = await strict.store.aget(("n",), "good")
        assert good is not None
        assert good.value == {"a": Person("ada")}

        await trusting.store.aget(("n",), "bad")
        assert ran
    async with (
        MemoryCluster(**mode, allowed_types=()) as owner,
        MemoryCluster.attach(owner.handle) as other,
    ):
        await owner.store.aput(("n",), "good", {"a": Person("ada")})
        with pytest.raises(TypeNotAllowedError, match="Person"):
            await owner.store.aget(("n",), "good")
        assert (await other.store.asearch(("n",)))[0].value == {"a": Person("ada")}
