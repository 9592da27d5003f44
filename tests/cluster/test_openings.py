"""Openings that fail: at once, with the reason first, and with nothing left behind."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import signal
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from flowgentic_actors import MemoryCluster
from flowgentic_actors.actors.spawn import ACTOR_MODULE
from flowgentic_actors.cluster.client.host_client import describe
from flowgentic_actors.cluster.nodes.node_pool import AGENT_MODULE
from flowgentic_actors.cluster.opener import opening
from flowgentic_actors.cluster.opener.host_watchdog import HOST_MODULE
from flowgentic_actors.cluster.opener.rendezvous import Rendezvous
from flowgentic_actors.errors import ClusterNotFoundError, ClusterOpenError, FlowgenticError
from tests.conftest import SETTINGS, mode_params
from tests.support.counter import until
from tests.support.processes import ROOT
from tests.support.small_disk import small_disk

pytestmark = pytest.mark.anyio

AT_ONCE = 8.0
"""Seconds for what takes one, on a busy machine; waiting for what never comes takes 10 and more."""


async def fails_to_open(**settings: Any) -> str:
    """What the error says."""
    with pytest.raises(ClusterOpenError) as caught:
        async with MemoryCluster(**{**SETTINGS["subprocess"], **settings}):
            pass
    return str(caught.value)


async def test_a_scratch_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    assert "scratch=" in await fails_to_open(scratch=file)
    assert "scratch=" in await fails_to_open(scratch=tmp_path / "missing")
    mine = tmp_path / f"flowgentic-{os.geteuid()}"
    mine.mkdir(mode=0o755)
    mine.chmod(0o755)
    assert "mode 0755: only its owner" in await fails_to_open(scratch=tmp_path)
    assert [path.name for path in mine.iterdir()] == []


async def test_a_host_that_does_not_start_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "python").symlink_to("/bin/false")
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    assert "host did not start: its process ended with exit code 1" in await fails_to_open()
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    assert "/nowhere/python" in await fails_to_open()


# ---------------------------------------------------------------------- at once, with the reason


@pytest.fixture
def breaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Have the processes of one kind break at their start."""

    def break_(module: str, how: str) -> None:
        code = f"""
            import os, sys
            if any({module!r} in argument for argument in sys.orig_argv):
                {how}
        """
        (tmp_path / "sitecustomize.py").write_text(textwrap.dedent(code))
        monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")

    return break_


EXITS = "print('broken on purpose', file=sys.stderr, flush=True); os._exit(1)"


@pytest.mark.parametrize(
    ("module", "how", "settings", "reason"),
    [
        (ACTOR_MODULE, EXITS, {}, "shard-0 does not start.*broken on purpose"),
        (HOST_MODULE, EXITS, {}, "host did not start.*exit code 1.*broken on purpose"),
        (
            HOST_MODULE,
            "sys.modules['anyio'] = None",
            {},
            "host did not start.*ModuleNotFoundError.*anyio",
        ),
        (
            AGENT_MODULE,
            EXITS,
            {"n_nodes": 2, "replicas": 2},
            "needs a second node: node-1 ended with exit code 1.*broken on purpose",
        ),
    ],
)
async def test_a_process_that_breaks_at_its_start_is_told_at_once(
    module: str,
    how: str,
    settings: dict[str, Any],
    reason: str,
    breaks: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    breaks(module, how)
    began = time.monotonic()
    told = await fails_to_open(**settings)
    assert time.monotonic() - began < AT_ONCE
    assert re.search(reason, told), told
    assert "open_timeout" not in told
    assert "\n" not in told
    assert ("broken on purpose" if how == EXITS else "Traceback") in caplog.text


async def test_a_second_node_that_is_not_there_is_told_at_once() -> None:
    began = time.monotonic()
    told = await fails_to_open(replicas=2)
    assert time.monotonic() - began < AT_ONCE
    assert told.startswith("replicas=2 needs a second node")


@pytest.mark.parametrize("mode", mode_params("inline", "subprocess", "dragon", slow=("dragon",)))
async def test_a_damaged_journal_is_named_and_not_the_deadline(
    mode: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "memory"
    async with MemoryCluster(mode="local", persist_path=path) as memory:
        for number in range(20):
            await memory.store.aput(("a",), str(number), {"v": "x" * 100})
    (journal,) = path.glob("generation-1/shard-0/*.sealed")
    data = bytearray(journal.read_bytes())
    data[1000:1100] = b"\xff" * 100
    journal.write_bytes(data)

    began = time.monotonic()
    with pytest.raises(FlowgenticError) as caught:
        async with MemoryCluster(**SETTINGS[mode], persist_path=path):
            pass
    assert time.monotonic() - began < AT_ONCE or mode == "dragon"
    told = str(caught.value)
    assert f"{journal}: the entry at byte" in told
    assert "open_timeout" not in told
    assert "\n" not in told
    assert mode == "inline" or "the log of its host ends with" in caplog.text
    if mode == "subprocess":  # Dragon may write an actor's last output too late for that
        assert "Traceback" in caplog.text


@pytest.mark.parametrize(
    ("module", "timeout", "reason"),
    [
        (HOST_MODULE, 1, r"host did not come up within 1 s \(setting: open_timeout\)"),
        (
            ACTOR_MODULE,
            5,
            r"after 5 s \(setting: open_timeout\): shard-0 does not serve yet",
        ),
    ],
)
async def test_an_opening_that_times_out_names_the_cause_and_the_setting(
    module: str, timeout: float, reason: str, breaks: Any
) -> None:
    breaks(module, "import time; time.sleep(60)")
    began = time.monotonic()
    told = await fails_to_open(open_timeout=timeout)
    assert time.monotonic() - began < timeout + AT_ONCE
    assert re.match(f"the cluster.*{reason}", told), told


# ---------------------------------------------------------------------- nothing is left


async def test_an_attaching_that_is_given_up_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def describe_slowly(*arguments: Any) -> Any:
        time.sleep(0.5)
        return describe(*arguments)

    async with MemoryCluster(**SETTINGS["subprocess"], name="attached"):
        monkeypatch.setattr(opening, "describe", describe_slowly)
        before = threads()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await MemoryCluster.attach("attached").__aenter__()
        await until(lambda: threads() <= before)


async def test_a_first_rank_that_cannot_tell_the_others_closes_its_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = {"JOB_ID": "78", "STEP_ID": "0", "PROCID": "0", "NTASKS": "2"}
    for name, value in step.items():
        monkeypatch.setenv(f"SLURM_{name}", value)

    def announce(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Rendezvous, "announce", announce)
    told = await fails_to_open(rendezvous=tmp_path / "meeting", name="told-nobody")
    assert "No space left on device" in told
    assert str(tmp_path / "meeting") in told
    with pytest.raises(ClusterNotFoundError):
        await MemoryCluster.attach("told-nobody").__aenter__()


async def test_what_a_signals_handler_raises_in_an_opening_is_not_taken_for_its_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def ring(*_: object) -> None:
        raise TimeoutError("the time is over")

    before = signal.signal(signal.SIGALRM, ring)
    monkeypatch.setattr(
        "flowgentic_actors.cluster.opener.opening.inside_dragon",
        lambda: signal.raise_signal(signal.SIGALRM),
    )
    try:
        with pytest.raises(TimeoutError, match="the time is over"):
            await MemoryCluster(mode="local").__aenter__()
    finally:
        signal.signal(signal.SIGALRM, before)


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("flowgentic")}


async def test_a_full_scratch_folder_is_told_with_its_setting(scratch: Path) -> None:
    program = """
        import asyncio, sys
        from flowgentic_actors import MemoryCluster
        from flowgentic_actors.errors import ClusterOpenError

        async def main():
            await MemoryCluster(
                mode="distributed", spawner="subprocess", scratch=sys.argv[1]
            ).__aenter__()

        try:
            asyncio.run(main())
        except ClusterOpenError as error:
            print(error)
    """
    for size in ("4k", "20k"):  # not even a folder; no room for an actor
        with small_disk(scratch, size) as disk:
            run = disk.run("-c", textwrap.dedent(program), str(disk.path), timeout=30)
        assert "No space left on device" in run.stdout, run.stderr
        assert re.search(r"setting: scratch|scratch=", run.stdout)
