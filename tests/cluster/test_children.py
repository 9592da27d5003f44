"""What the processes of a cluster inherit from the program that opens it, and what not."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flowgentic_actors import MemoryCluster
from flowgentic_actors.cluster.socket_folders import socket_folder
from flowgentic_actors.errors import ClusterOpenError
from flowgentic_actors.python import interpreter
from tests.conftest import SETTINGS, mode_params
from tests.support.processes import python

pytestmark = pytest.mark.anyio


@pytest.fixture
def shows_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """The path that an actor has, once one has started."""
    # The actor's program imports this one where it finds it, which here it does by the path alone.
    (tmp_path / "uvloop.py").write_text(
        "import asyncio, json, pathlib, sys\n"
        "pathlib.Path(__file__).with_name('seen').write_text(json.dumps(sys.path))\n"
        "run, new_event_loop = asyncio.run, asyncio.new_event_loop\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "last: é")])
    return lambda: json.loads((tmp_path / "seen").read_text())


@pytest.mark.parametrize("mode", ["subprocess", "nodes"])
async def test_actors_and_nodes_have_the_openers_path_in_its_order(
    mode: str, shows_path: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path[:-1], "relative", sys.path[-1]])
    async with MemoryCluster(**SETTINGS[mode]) as memory:
        await memory.store.aput(("a",), "k", {})
    wanted = list(dict.fromkeys(str(Path.cwd() / entry) for entry in sys.path))
    assert [entry for entry in shows_path() if entry in wanted] == wanted


@pytest.mark.parametrize("mode", mode_params("subprocess", "nodes", "dragon", slow=("dragon",)))
async def test_a_working_directory_that_was_removed_is_not_needed(
    mode: str,
    tmp_path: Path,
    shows_path: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted = list(dict.fromkeys(entry for entry in sys.path if entry))
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    gone.rmdir()
    async with MemoryCluster(**SETTINGS[mode]) as memory:
        await memory.store.aput(("a",), "k", {})
        assert await memory.store.aget(("a",), "k") is not None
    assert [entry for entry in shows_path() if entry in wanted] == wanted


@pytest.mark.parametrize("told", ["/usr/bin/uwsgi", "", None])
async def test_a_program_that_embeds_python_uses_its_environments_interpreter(
    told: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", told)
    if told is None:
        async with MemoryCluster(**SETTINGS["subprocess"]) as memory:
            await memory.store.aput(("a",), "k", {})
    assert Path(await asyncio.to_thread(interpreter)).is_relative_to(sys.prefix)
    for prefix in ("prefix", "exec_prefix", "base_prefix"):
        monkeypatch.setattr(sys, prefix, str(tmp_path))
    with pytest.raises(ClusterOpenError, match=f"sys.executable is {told or None!r}.*uWSGI"):
        await MemoryCluster(**SETTINGS["subprocess"]).__aenter__()


@pytest.mark.parametrize("mode", ["subprocess", "nodes"])
async def test_a_scratch_folder_too_long_for_sockets_is_used_through_a_short_one(
    mode: str, tmp_path: Path
) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    async with MemoryCluster(**SETTINGS[mode], scratch=long, name="long") as memory:
        folder = Path((await memory.status()).folder)
        assert folder.is_relative_to(long)
        sockets = socket_folder(folder)
        for path in (sockets, sockets.parent):
            assert path.stat().st_mode & 0o077 == 0
        memory.store.put(("a",), "k", {"v": 1})
        async with MemoryCluster.attach("long", scratch=long) as attached:
            item = await attached.store.aget(("a",), "k")
            assert item is not None
    assert not any(path.exists() for path in (folder, sockets))


async def test_the_short_folder_is_refused_where_others_could_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "working directory"
    here.mkdir()
    (here / "file").touch()
    monkeypatch.chdir(here)
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr("flowgentic_actors.cluster.socket_folders._SHORT", tmp_path)
    (tmp_path / f"flowgentic-sockets-{os.geteuid()}").symlink_to(long)
    with pytest.raises(ClusterOpenError, match="is no folder"):
        await MemoryCluster(**SETTINGS["subprocess"], scratch=long).__aenter__()
    assert (here / "file").exists()  # a cluster that has no folder yet cleans up nothing


PROGRAM = """
    import asyncio, json, os, signal, sys, time
    from flowgentic_actors import MemoryCluster

    settings, persist, kill = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3]
    if persist:
        settings |= {"persist_path": persist, "segment_bytes": 65536}

    async def main():
        async with MemoryCluster(**settings) as memory:
            for number in range(300 if persist else 3):
                await memory.store.aput(("a",), "k", {"n": number, "v": "x" * 500})
            if kill:
                os.kill((await memory.status()).actors[0].pid, signal.SIGKILL)
            item = await memory.store.aget(("a",), "k")
            while persist and not (await memory.status()).actors[0].compactions:
                await asyncio.sleep(0.05)
            began = time.monotonic()
        print(item.value["n"], "closed slowly" if time.monotonic() - began > 8 else "closed")

    asyncio.run(main())
"""


def run(mode: str, persist: str = "", kill: str = "", before: str = "", **environ: str) -> str:
    """What a program prints that opens a memory, and uses it."""
    program = f"{before}\n{textwrap.dedent(PROGRAM)}"
    options: dict[str, Any] = {"stderr": -1, "start_new_session": True}
    arguments = json.dumps(SETTINGS[mode]), persist, kill
    with pytest.MonkeyPatch.context() as patched:
        for name, value in environ.items():
            patched.setenv(name, value)
        with python(program, *arguments, **options) as process:
            out, err = process.communicate(timeout=90)
    assert process.returncode == 0, err
    return out.strip() + err.replace("\n", " ") * ("not end in order" in err)


@pytest.mark.parametrize("mode", mode_params("inline", "subprocess", "dragon", slow=("dragon",)))
async def test_a_program_that_ignores_the_ends_of_children_loses_nothing_by_it(
    mode: str, tmp_path: Path
) -> None:
    ignore = "import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN)"
    persist = str(tmp_path / "memory") if mode == "inline" else ""
    told = run(mode, persist=persist, kill="" if mode == "inline" else "yes", before=ignore)
    assert told == ("299 closed" if persist else "2 closed")


@pytest.mark.parametrize("mode", ["inline", "subprocess"])
async def test_paths_beyond_ascii_work_in_the_c_locale(
    mode: str, tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONUTF8", raising=False)
    folder = tmp_path / "gespeichert-ü"
    deep = scratch / "é"
    deep.mkdir(exist_ok=True)
    try:
        settings = {"LC_ALL": "C", "TMPDIR": str(deep)}
        assert run(mode, persist=str(folder / "memory"), **settings) == "299 closed"
    finally:
        (deep / f"flowgentic-{os.geteuid()}" / ".lock").unlink(missing_ok=True)
