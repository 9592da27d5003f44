"""What the DDict tier is made of, without Dragon: processes, room, the mended waits, the watch."""

from __future__ import annotations

import asyncio
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from flowgentic_actors.actors import spawn
from flowgentic_actors.dragon import spawner as spawner_module
from flowgentic_actors.dragon.ddict import generation
from flowgentic_actors.dragon.ddict.client import DDictClient
from flowgentic_actors.dragon.ddict.tier import MOST_FAILED, MOST_WAITING, DDictShard
from flowgentic_actors.dragon.ddict_processes import end_leftovers, make_folder, started_at
from flowgentic_actors.dragon.fixes import sitecustomize, with_fixes
from flowgentic_actors.dragon.shared_memory import check_shm, pool_bytes
from flowgentic_actors.errors import SharedMemoryError, TierBusyError, TierFullError, TierLostError
from tests.conftest import NEEDS_DRAGON
from tests.support.counter import alive, until

SLEEP = "import time; time.sleep(100)"

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and pidfds")


@pytest.fixture
def sleepers() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []

    def start(folder: Path, code: str = SLEEP, **environ: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=folder, env={**os.environ, **environ}
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


# ---------------------------------------------------------------------- processes


@linux
def test_what_works_in_a_ddicts_folder_is_ended_and_nothing_else(
    tmp_path: Path, sleepers: Callable[..., subprocess.Popen[bytes]]
) -> None:
    first, second = make_folder(tmp_path), make_folder(tmp_path)
    (first / "ddict_orc_x").touch()
    ours = [sleepers(first), sleepers(first), sleepers(second)]
    other = sleepers(tmp_path)
    os.kill(ours[1].pid, signal.SIGSTOP)
    assert end_leftovers(tmp_path) == 2
    assert all(process.wait(1) == -signal.SIGKILL for process in ours)
    assert other.poll() is None
    assert list(tmp_path.iterdir()) == []
    assert end_leftovers(tmp_path) == 0


@linux
def test_a_process_ends_with_its_owner(
    tmp_path: Path, sleepers: Callable[..., subprocess.Popen[bytes]]
) -> None:
    folder = make_folder(tmp_path)
    owner = sleepers(tmp_path)
    name = f"{owner.pid}:{started_at(owner.pid)}"
    environ = with_fixes(os.environ) | {sitecustomize.OWNER_VARIABLE: name}
    process = sleepers(folder, **environ)
    time.sleep(0.3)
    assert process.poll() is None
    owner.kill()
    owner.wait()
    assert process.wait(10) == -signal.SIGKILL


@linux
def test_a_process_whose_owner_has_ended_does_not_begin(
    tmp_path: Path, sleepers: Callable[..., subprocess.Popen[bytes]]
) -> None:
    # Its pid is in use again, by a process that was started at another time.
    name = f"{os.getpid()}:{int(started_at(os.getpid())) - 1}"
    environ = with_fixes(os.environ) | {sitecustomize.OWNER_VARIABLE: name}
    assert sleepers(tmp_path, **environ).wait(10) == -signal.SIGKILL


# ---------------------------------------------------------------------- the environment


def test_the_users_own_sitecustomize_still_runs(
    tmp_path: Path, sleepers: Callable[..., subprocess.Popen[bytes]]
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.users_own = 7")
    environ = with_fixes({"PYTHONPATH": str(tmp_path)})
    assert with_fixes(environ) == environ
    process = sleepers(tmp_path, "import sys; sys.exit(sys.users_own)", **environ)
    assert process.wait(20) == 7


def test_a_second_copy_of_the_package_runs_nothing_twice(
    tmp_path: Path, sleepers: Callable[..., subprocess.Popen[bytes]]
) -> None:
    """A checkout beside an installed package, also where somebody else put both on the path."""
    mine = Path(sitecustomize.__file__).parent
    copy = tmp_path / "flowgentic_actors" / "dragon" / "fixes"
    shutil.copytree(mine, copy)
    path = with_fixes({"PYTHONPATH": str(copy)})["PYTHONPATH"]
    assert path == str(mine)
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.runs = getattr(sys, 'runs', 0) + 1")
    both = os.pathsep.join(map(str, [mine, copy, mine, copy, tmp_path]))
    assert sleepers(tmp_path, "import sys; sys.exit(sys.runs)", PYTHONPATH=both).wait(20) == 1


class _Queue:
    """As `dragon.native.queue.Queue` in 0.15.0, as far as it matters."""

    closed = False

    def __init__(self) -> None:
        self.items: list[int] = []
        self.asked = 0

    def _poll(self, timeout: float | None = None) -> bool:
        self.asked += 1
        return bool(self.items)

    def poll(self, timeout: float = 0) -> Any:
        return self._poll(timeout=timeout)

    def get(
        self, block: bool = True, timeout: float | None = None, *, stream_channel: Any = None
    ) -> int:
        if not self.items:
            raise queue.Empty
        return self.items.pop()


def test_waits_nap_instead_of_spinning() -> None:
    module: Any = ModuleType("queue_of_dragon")
    module.Queue = type("Queue", (_Queue,), {"poll": _Queue.poll, "get": _Queue.get})
    sitecustomize.mend(module)
    waiting = module.Queue()
    began = time.monotonic()
    assert not waiting.poll(timeout=0.2)
    assert 0.2 <= time.monotonic() - began < 2
    assert waiting.asked < 30
    with pytest.raises(queue.Empty):
        waiting.get(timeout=0.1)
    threading.Timer(0.1, waiting.items.append, [5]).start()
    assert waiting.get(timeout=5) == 5


def test_another_queue_is_left_alone() -> None:
    module: Any = ModuleType("queue_of_dragon")
    module.Queue = queue.SimpleQueue
    sitecustomize.mend(module)
    assert module.Queue is queue.SimpleQueue


async def _recv(self: object, interval: float = 0.1) -> float:
    return interval


def test_what_waits_for_messages_of_other_nodes_waits_in_longer_slices() -> None:
    module: Any = ModuleType("client_of_dragon")
    module.Client = type("Client", (), {"recv": _recv})
    sitecustomize.lengthen(module)
    assert asyncio.run(module.Client().recv()) >= 0.5
    assert asyncio.run(module.Client().recv(0.25)) == 0.25

    async def other(self: object, patience: float = 0.3) -> float:
        return patience

    module.Client = type("Client", (), {"recv": other})
    sitecustomize.lengthen(module)
    assert asyncio.run(module.Client().recv()) == 0.3


def test_a_launcher_prefers_the_node_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Node:
        def __init__(self, name: str) -> None:
            self.name = name

    class NetworkConfig:
        def __init__(self, *names: str) -> None:
            self.network_config = {str(n): Node(name) for n, name in enumerate(names)}
            self.chosen: str | None = "nobody"

        def _select_primary(self, primary_hostname: str | None = None) -> None:
            self.chosen = primary_hostname

    module: Any = ModuleType("launcher_of_dragon")
    module.NetworkConfig = NetworkConfig
    monkeypatch.setenv(sitecustomize.PRIMARY_VARIABLE, "b")
    sitecustomize.prefer(module)
    for names, told, chosen in [
        (("a", "b"), None, "b"),
        (("a", "b"), "a", "a"),  # the user's own choice
        (("a", "c"), None, None),  # Dragon's way
        (("b", "b"), None, None),
    ]:
        config = NetworkConfig(*names)
        config._select_primary(told)
        assert config.chosen == chosen


@NEEDS_DRAGON[1]
def test_the_workaround_is_still_needed() -> None:
    version = sitecustomize._installed()
    code = (
        "import sys\nfrom dragon.native.queue import Queue\n"
        "from flowgentic_actors.dragon.fixes.sitecustomize import expected\n"
        "sys.exit(0 if expected(Queue) else 3)"
    )
    root = str(Path(__file__).parents[3])
    same = subprocess.call([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": root})
    as_known = same == 0
    assert version == sitecustomize.FIXED_VERSION or not as_known, (
        f"dragonhpc {version} has the Queue that spins in {sitecustomize.FIXED_VERSION}: measure "
        "its poll(timeout) and, if it still returns at once, raise FIXED_VERSION"
    )
    assert as_known, (
        f"dragonhpc {version} has another Queue: if its poll(timeout) waits, mend() in "
        "dragon/fixes/sitecustomize.py can go"
    )


# ---------------------------------------------------------------------- a runtime that hangs


@pytest.mark.anyio
async def test_when_dragon_starts_nothing_any_more_plain_children_are_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hung = threading.Event()
    monkeypatch.setattr(spawner_module, "start_dragon_process", lambda *_, **__: hung.wait())
    code = "import os, sys; sys.exit(9 if 'DRAGON_MY_PUID' in os.environ else 7)"
    command = [sys.executable, "-c", code]
    monkeypatch.setattr(spawn, "python_command", lambda *_: command)
    monkeypatch.setenv("DRAGON_MY_PUID", "1")
    told: list[str] = []
    spawner = spawner_module.DragonSpawner(
        lambda kind, _actor, _detail: told.append(kind), patience=0.1
    )
    for _ in range(2):
        child = await spawner.spawn(tmp_path / "spec", tmp_path / "log", 10.0)
        assert child.pid is not None
        await until(lambda pid=child.pid: not alive(pid))  # type: ignore[misc]
        assert child.reap() == 7
    hung.set()
    assert told == ["dragon_hung"]


# ---------------------------------------------------------------------- room


def test_too_little_shared_memory_says_what_to_change(tmp_path: Path) -> None:
    free = check_shm(1, folder=tmp_path)
    with pytest.raises(SharedMemoryError) as refused:
        check_shm(free * 2, folder=tmp_path)
    for part in ("store_total_mem", "checkpoint_total_mem", "managers_per_node", "hot_memory"):
        assert part in str(refused.value)
    assert f"needs {-(-free * 2 // 2**20)} MiB" in str(refused.value)


def test_a_pool_takes_more_than_its_values() -> None:
    assert pool_bytes(1 << 30, 2) > pool_bytes(1 << 30, 1) > 1 << 30


# ---------------------------------------------------------------------- with a fake DDict


class _FakeDict(DDictClient):
    """A DDict in this process, which does not return while it is told to hang."""

    hang = threading.Event()
    hangs_at_the_end = False
    destroyed = 0

    def make(self, total_bytes: int, folder: Path, timeout: float) -> None:
        self._clients = [_FakeClient() for _ in range(self._managers)]

    def destroy(self) -> None:
        _FakeDict.destroyed += 1
        self._clients[0][b""] = b"hang" if _FakeDict.hangs_at_the_end else b""

    def forget(self) -> None:
        pass


class _FakeClient(dict[bytes, bytes]):
    def __setitem__(self, key: bytes, value: bytes) -> None:
        if value == b"broken":
            raise RuntimeError("no such channel")
        while value == b"hang" and _FakeDict.hang.is_set():
            time.sleep(0.01)
        super().__setitem__(key, value)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(generation, "DDictClient", _FakeDict)
    monkeypatch.setattr(
        generation, "open_processes", lambda folder: [os.pidfd_open(os.getpid()) for _ in range(3)]
    )
    monkeypatch.setattr(generation, "wake", lambda pidfds: None)
    _FakeDict.hang.set()
    _FakeDict.hangs_at_the_end = False
    _FakeDict.destroyed = 0
    yield
    _FakeDict.hang.clear()


class _Shard:
    def __init__(self, folder: Path, **settings: Any) -> None:
        self.events: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self.ddict = DDictShard(
            **{"total_bytes": 8 << 20, "managers": 1, "timeout": 0.2} | settings,
            folder=folder,
            on_event=lambda name, detail: self.events.put_nowait((name, detail)),
        )

    async def ready(self) -> None:
        while (await asyncio.wait_for(self.events.get(), 10))[0] != "ddict_ready":
            pass


@linux
@pytest.mark.anyio
@pytest.mark.usefixtures("fake")
async def test_values_are_kept_until_it_is_full(tmp_path: Path) -> None:
    shard = _Shard(tmp_path)
    with pytest.raises(TierLostError):
        await shard.ddict.put(1, b"early")
    shard.ddict.start()
    await shard.ready()
    await shard.ddict.put(1, b"one")
    assert await shard.ddict.get(1) == b"one"
    assert await shard.ddict.get(2) is None
    for key in range(6):
        await shard.ddict.put(10 + key, bytes((1 << 20) - 100))
    with pytest.raises(TierFullError):
        await shard.ddict.put(20, bytes(1 << 20))
    await shard.ddict.delete([10, 99])
    await shard.ddict.put(20, bytes((1 << 19) + 1))
    assert await shard.ddict.get(10) is None
    assert shard.ddict.stats()["ddict_full"] == 1
    assert shard.ddict.generation == 1
    shard.ddict.close()
    assert await shard.ddict.wait_closed()
    assert not os.listdir(tmp_path)  # noqa: PTH208


@linux
@pytest.mark.anyio
@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("value", [b"hang", b"broken"])
async def test_a_ddict_that_hangs_or_breaks_is_replaced(tmp_path: Path, value: bytes) -> None:
    shard = _Shard(tmp_path)
    shard.ddict.start()
    await shard.ready()
    await shard.ddict.put(1, b"one")
    calls: list[asyncio.Future[Any]] = [shard.ddict.put(2, value)]
    calls += [shard.ddict.get(1) for _ in range(5)]
    done, _ = await asyncio.wait(calls, timeout=5)
    assert len(done) == len(calls)
    assert all(isinstance(call.exception(), TierLostError) for call in calls)
    assert shard.events.get_nowait()[0] == "ddict_lost"
    await shard.ready()
    assert shard.ddict.generation == 2
    assert await shard.ddict.get(1) is None
    shard.ddict.close()
    assert await shard.ddict.wait_closed()


@linux
@pytest.mark.anyio
@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("ready", [True, False])
async def test_at_the_end_dragon_destroys_it_and_nothing_is_killed(
    tmp_path: Path, ready: bool
) -> None:
    shard = _Shard(tmp_path)
    shard.ddict.start()
    if ready:
        await shard.ready()
    assert await shard.ddict.end(5.0)
    assert _FakeDict.destroyed == 1
    with pytest.raises(TierLostError):
        await shard.ddict.get(1)
    shard.ddict.close()
    assert await shard.ddict.wait_closed()
    assert shard.events.empty()
    assert not os.listdir(tmp_path)  # noqa: PTH208


@linux
@pytest.mark.anyio
@pytest.mark.usefixtures("fake")
async def test_an_end_that_hangs_is_not_waited_for(tmp_path: Path) -> None:
    shard = _Shard(tmp_path)
    shard.ddict.start()
    await shard.ready()
    _FakeDict.hangs_at_the_end = True
    call = shard.ddict.put(1, b"hang")
    assert not await shard.ddict.end(0.3)
    assert isinstance(call.exception(), TierLostError)
    shard.ddict.close()
    assert await shard.ddict.wait_closed()
    assert not os.listdir(tmp_path)  # noqa: PTH208


@linux
@pytest.mark.anyio
@pytest.mark.usefixtures("fake")
async def test_no_more_calls_wait_than_may(tmp_path: Path) -> None:
    shard = _Shard(tmp_path, timeout=5.0)
    shard.ddict.start()
    await shard.ready()
    calls = [shard.ddict.put(1, b"hang")]
    calls += [shard.ddict.put(1, b"x") for _ in range(MOST_WAITING)]
    assert isinstance(calls[-1].exception(), TierBusyError)
    shard.ddict.close()
    assert all(isinstance(call.exception(), TierLostError) for call in calls[:-1])
    assert await shard.ddict.wait_closed()


@linux
@pytest.mark.anyio
async def test_what_never_comes_up_is_not_tried_for_ever(
    tmp_path: Path, fake: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "open_processes", lambda folder: [])
    shard = _Shard(tmp_path)
    shard.ddict.start()
    for _ in range(MOST_FAILED):
        name, detail = await asyncio.wait_for(shard.events.get(), 10)
        assert name == "ddict_lost"
        assert "expected" in detail
    assert await asyncio.wait_for(shard.events.get(), 10) == (
        "ddict_given_up",
        f"{MOST_FAILED} in a row did not come up",
    )
    shard.ddict.close()
    assert await shard.ddict.wait_closed()
