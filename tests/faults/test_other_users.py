"""Another user of the machine tries every path that our programs open, with real users.

`ann` uses the memory and `mallory` attacks it. Both are processes forked from this one, which have
all modules already: other users may not be able to run this Python. A whole distributed cluster is
this process's own, root's.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import multiprocessing
import os
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from msgspec import Raw

from flowgentic_actors import ClusterHandle, MemoryCluster, UntrustedPathError
from flowgentic_actors.actors.link import SupervisorLink
from flowgentic_actors.actors.spec import ActorSpec, ChildSpec
from flowgentic_actors.cluster import socket_folders
from flowgentic_actors.cluster.opener.rendezvous import Rendezvous
from flowgentic_actors.cluster.persistence.cluster_folders import (
    descriptor_of,
    find_memory,
    root_folder,
)
from flowgentic_actors.cluster.persistence.snapshot import snapshot
from flowgentic_actors.cluster.persistence.stored_memory import StoredMemory
from flowgentic_actors.environment import StepRank
from flowgentic_actors.errors import FlowgenticError
from flowgentic_actors.secret import Secret
from flowgentic_actors.storage import private_files
from flowgentic_actors.storage.disk import RealDisk
from flowgentic_actors.storage.lock import FileLock
from flowgentic_actors.storage.private_files import (
    TRUSTED_VARIABLE,
    make_folder,
    make_folders,
    open_log,
    overwrite,
    read_private,
    trusted_path,
    write_private,
)
from flowgentic_actors.wire.addresses import connect, dial
from tests.support.counter import supervisor_settings

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: to become two other users"),
    # Newer Pythons warn of forks while there are threads; what is forked here starts its own.
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]

ANN, MALLORY = 65533, 65532
SECRET = b"s" * 32
RACE = 1.5


class User:
    """A process of another user that does what it is told."""

    def __init__(self, uid: int) -> None:
        self._here, there = multiprocessing.Pipe()
        fork = multiprocessing.get_context("fork")
        self._process = fork.Process(target=_be, args=(uid, there), daemon=True)
        self._process.start()
        there.close()

    def begins(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._here.send((function, arguments))

    def has_done(self) -> Any:
        assert self._here.poll(60), "it hangs"
        done, error = self._here.recv()
        if error is not None:
            raise error
        return done

    def does(self, function: Callable[..., Any], *arguments: Any) -> Any:
        self.begins(function, *arguments)
        return self.has_done()

    def end(self) -> None:
        self._here.send(None)
        self._process.join(10)
        self._here.close()
        assert self._process.exitcode == 0


def _be(uid: int, orders: Connection) -> None:
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
    os.chdir("/")
    os.umask(0o022)
    while order := orders.recv():
        function, arguments = order
        try:
            orders.send((function(*arguments), None))
        except Exception as error:
            # Some of ours, and of the operating system's, cannot be made anew of their text.
            kind = UntrustedPathError if _is_refusal(error) else OSError
            orders.send((None, kind(str(error))))
    os._exit(0)


def _is_refusal(error: Exception) -> bool:
    return isinstance(error, (UntrustedPathError, FlowgenticError))


@pytest.fixture(scope="module")
def users(scratch: Path) -> Iterator[tuple[User, User]]:
    for _ in range(2):  # all that is imported late, which the others may not be able to
        open_memory(scratch / "memory")
        "".encode("ascii")
    shutil.rmtree(scratch / "memory")
    both = User(ANN), User(MALLORY)
    yield both
    for user in both:
        user.end()


@pytest.fixture
def ann(users: tuple[User, User]) -> User:
    return users[0]


@pytest.fixture
def mallory(users: tuple[User, User]) -> User:
    return users[1]


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder as /tmp, where everybody may make files."""
    folder = Path(tempfile.mkdtemp(prefix="fga-shared-", dir="/tmp"))
    folder.chmod(0o1777)
    yield folder
    shutil.rmtree(folder)


# ---------------------------------------------------------------------- a cluster that is open


@pytest.mark.parametrize(
    ("umask", "settings"),
    [
        (0o000, {"n_nodes": 2, "replicas": 2, "ack": "replica"}),
        (0o000, {"persist_path": "deep/memory"}),
        (0o077, {"persist_path": "deep/memory"}),
    ],
    ids=["nodes", "persist", "persist-077"],
)
def test_nobody_else_gets_at_what_a_cluster_has(
    shared: Path, mallory: User, umask: int, settings: dict[str, Any]
) -> None:
    if "persist_path" in settings:
        settings = settings | {"persist_path": shared / settings["persist_path"]}
    scratch = shared / "scratch"
    scratch.mkdir()
    scratch.chmod(0o1777)
    before = os.umask(umask)
    try:
        with MemoryCluster(
            mode="distributed", spawner="subprocess", scratch=scratch, **settings
        ) as memory:
            memory.store.put(("team",), "key", {"text": "secret"})
            paths = [path for path in sorted(shared.rglob("*")) if path != scratch]
            assert {"cluster.json", "host.spec", "host.sock", "host.log", "memory"} <= {
                path.name for path in paths
            }
            assert mallory.does(attack, [shared, *paths]) == []
            assert [oct(p.lstat().st_mode) for p in paths if _is_open(p)] == []
            assert memory.store.get(("team",), "key") is not None
    finally:
        os.umask(before)


def _is_open(path: Path) -> bool:
    """Whether a mode lets others in; those of links and sockets do not count."""
    found = path.lstat()
    checked = stat.S_ISDIR(found.st_mode) or stat.S_ISREG(found.st_mode)
    return checked and bool(found.st_mode & 0o077)


def attack(paths: list[Path]) -> list[str]:
    """Everything that can be done to a path from outside; what succeeded."""
    shared, *paths = paths
    mine = shared / "mallorys"
    mine.mkdir()
    done = []
    for path in paths:
        attempts: dict[str, Callable[[], object]] = {
            "list": partial(os.listdir, path),
            "read": partial(os.open, path, os.O_RDONLY | os.O_NONBLOCK),
            "write": partial(os.open, path, os.O_WRONLY | os.O_NONBLOCK),
            "cut": partial(os.truncate, path, 0),
            "connect": partial(_connect, path),
            "rename": partial(os.rename, path, mine / "moved"),
            "replace": partial(_replace, mine, path),
            "link": partial(os.link, path, mine / "linked"),
            "remove": partial(os.unlink, path),
            "make in it": partial(os.mkdir, path / "mallorys"),
            "link in it": partial(os.symlink, mine, path / "mallorys-link"),
            "change": partial(os.chmod, path, 0o777),
        }
        for what, attempt in attempts.items():
            with contextlib.suppress(OSError):
                attempt()
                done.append(f"{what} {path}")
    shutil.rmtree(mine)
    return done


def _connect(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(path))


def _replace(mine: Path, path: Path) -> None:
    mallorys = mine / "mallorys"
    mallorys.write_text("{}")
    mallorys.replace(path)


# ---------------------------------------------------------------------- what was there before


def plant(kind: str, path: Path) -> None:
    """Something of this user's at a path that another program is going to use."""
    there = path.parent / f"{path.name}-mallorys"
    match kind:
        case "folder 0777":
            path.mkdir()
            bait(path)
            path.chmod(0o777)
        case "folder 0755":
            path.mkdir(mode=0o755)
            bait(path)
        case "link":
            there.mkdir()
            bait(there)
            there.chmod(0o777)
            path.symlink_to(there)
        case "link to ann's":
            path.symlink_to(path.parent / "anns")
        case "dangling link":
            path.symlink_to(there / "nowhere")
        case "file":
            path.write_text("{}")
            path.chmod(0o666)
        case "socket":
            with socket.socket(socket.AF_UNIX) as sock:
                sock.bind(str(path))
        case "pipe":
            os.mkfifo(path)
            path.chmod(0o666)


def bait(folder: Path) -> None:
    """What programs look for in a folder."""
    for name in ("manifest.json", "cluster.json"):
        (folder / name).write_text("{}")


KINDS = [
    "folder 0777",
    "folder 0755",
    "link",
    "link to ann's",
    "dangling link",
    "file",
    "socket",
    "pipe",
]


def open_memory(path: Path) -> None:
    with MemoryCluster(mode="local", persist_path=path) as memory:
        memory.store.put(("team",), "key", {"text": "ann's"})


def open_below(path: Path) -> None:
    open_memory(path / "deep" / "memory")


def use_as_scratch(path: Path) -> None:
    root_folder(path)


def hold_memory(path: Path) -> None:
    stored = StoredMemory(path)
    try:
        stored.open(name="a", instance="b", shards=1, namespace_depth=2)
    finally:
        stored.close(orderly=True)


def meet(path: Path) -> None:
    Rendezvous(StepRank(0, 2, "step"), path).begin(path.parent / "anns")


def look_for_meeting(path: Path) -> None:
    Rendezvous(StepRank(1, 2, "step"), path).find(1.0)


def attach(path: Path) -> None:
    with MemoryCluster.attach(path):
        pass


def read_handle(path: Path) -> None:
    ClusterHandle("evil", str(path)).read()


def read_handle_below(path: Path) -> None:
    ClusterHandle("evil", str(path / "cluster.json")).read()


def copy_to(path: Path) -> None:
    snapshot(path.parent / "anns" / "memory", path)


def dump(path: Path) -> None:
    find_memory(str(path))


USES = [
    open_memory,
    open_below,
    use_as_scratch,
    hold_memory,
    meet,
    look_for_meeting,
    attach,
    read_handle,
    read_handle_below,
    copy_to,
    dump,
]


def prepare(shared: Path) -> None:
    make_folders(shared / "anns")
    open_memory(shared / "anns" / "memory")


def listing(path: Path) -> list[str]:
    return sorted(str(p) for p in path.rglob("*"))


@pytest.mark.parametrize("umask", [0o000, 0o077], ids=["000", "077"])
def test_nothing_of_somebody_elses_is_taken(
    shared: Path, ann: User, mallory: User, umask: int
) -> None:
    """Each kind of thing, in the place of each path; the error names it, its owner and mode."""
    ann.does(os.umask, umask)
    ann.does(prepare, shared)
    taken = []
    for number, (kind, use) in enumerate(itertools.product(KINDS, USES)):
        path = shared / f"p{number}"
        mallory.does(plant, kind, path)
        there = listing(shared)
        try:
            ann.does(use, path)
        except UntrustedPathError as error:
            no_memory = use is dump and f"{path} is not there" in str(error)
            if f"{path} belongs to user {MALLORY}, mode" not in str(error) and not no_memory:
                taken.append(f"{use.__name__} {kind}: {error}")
        except OSError as error:
            taken.append(f"{use.__name__} {kind}: {error}")
        else:
            taken.append(f"{use.__name__} takes a {kind}")
        if new := sorted(set(listing(shared)) - set(there) - {str(shared / "anns/flowgentic")}):
            taken.append(f"{use.__name__} {kind} leaves {new}")
    assert taken == []


def use_root(shared: Path) -> None:
    root_folder(shared)


def dump_by_name(shared: Path) -> None:
    find_memory("stolen", shared)


def attach_by_name(shared: Path) -> None:
    descriptor_of("stolen", shared)


def place_sockets(shared: Path) -> None:
    setattr(socket_folders, "_SHORT", shared)  # noqa: B010 - it is final elsewhere
    socket_folders.make_socket_folder(shared / ("x" * 100))


def fill(root: Path) -> None:
    """A memory and a descriptor of mallory's in a folder of clusters that ann could use."""
    if root.is_dir() and os.access(root, os.W_OK):
        memory = root / "stolen" / "memory"
        memory.mkdir(parents=True)
        (memory / "manifest.json").write_text("{}")
        (root / "stolen" / "cluster.json").write_text("{}")


def test_the_folders_of_clusters_are_not_somebody_elses(
    shared: Path, ann: User, mallory: User
) -> None:
    taken = []
    uses = {
        use_root: "flowgentic",
        dump_by_name: "flowgentic",
        attach_by_name: "flowgentic",
        place_sockets: "flowgentic-sockets",
    }
    for kind, (use, prefix) in itertools.product(KINDS, uses.items()):
        folder = Path(tempfile.mkdtemp(dir=shared))
        folder.chmod(0o1777)
        path = folder / f"{prefix}-{ANN}"
        mallory.does(plant, kind, path)
        mallory.does(fill, path)
        try:
            ann.does(use, folder)
        except UntrustedPathError as error:
            if f"{path} belongs to user {MALLORY}, mode" not in str(error):
                taken.append(f"{use.__name__} {kind}: {error}")
        except OSError as error:
            taken.append(f"{use.__name__} {kind}: {error}")
        else:
            taken.append(f"{use.__name__} takes a {kind}")
    assert taken == []


# ---------------------------------------------------------------------- folders on the way


def trust(folder: Path | None) -> None:
    os.environ.pop(TRUSTED_VARIABLE, None)
    if folder is not None:
        os.environ[TRUSTED_VARIABLE] = f"/elsewhere:{folder}"


@pytest.mark.parametrize(
    ("owner", "mode", "who"),
    [
        (MALLORY, 0o755, "its owner"),
        (MALLORY, 0o1777, "its owner"),
        (ANN, 0o777, "everybody"),
        (ANN, 0o2775, "group 65532"),
        (0, 0o777, "everybody"),
        (0, 0o2775, "group 65532"),
    ],
)
def test_a_folder_that_others_could_exchange_is_refused_unless_its_parent_is_trusted(
    shared: Path, ann: User, owner: int, mode: int, who: str
) -> None:
    project = shared / "project"
    memory = project / "ann" / "memory"
    memory.mkdir(parents=True, mode=0o700)
    for path in (memory, memory.parent):
        os.chown(path, ANN, ANN)
    os.chown(project, owner, MALLORY)
    project.chmod(mode)
    with pytest.raises(UntrustedPathError) as refused:
        ann.does(open_memory, memory)
    told = f"{project} belongs to user {_name(owner)}, mode {mode:04o}: {who} could exchange"
    assert told in str(refused.value)
    assert f"{TRUSTED_VARIABLE}={project}" in str(refused.value)
    ann.does(trust, project)
    try:
        ann.does(open_memory, memory)
        memory.chmod(0o770)
        os.chown(memory, ANN, MALLORY)
        with pytest.raises(UntrustedPathError, match="memory belongs to user 65533, mode 0770"):
            ann.does(open_memory, memory)  # what is trusted is the way, and nothing else
    finally:
        ann.does(trust, None)


def _name(uid: int) -> str:
    return "root (0)" if uid == 0 else str(uid)


def test_links_of_this_user_and_of_root_are_followed(shared: Path, ann: User) -> None:
    ann.does(make_folders, shared / "anns" / "memory")
    ann.does((shared / "by-ann").symlink_to, shared / "anns")
    (shared / "by-root").symlink_to("by-ann/../anns/memory")
    ann.does(open_memory, shared / "by-root")
    assert (shared / "anns" / "memory" / "manifest.json").exists()


# ---------------------------------------------------------------------- leftovers


@pytest.mark.parametrize(
    "place",
    [
        ".",
        "generation-1",
        "generation-1/shard-0",
        "manifest.json",
        "holder.lock",
        "generation-1/shard-0/journal.lock",
        "generation-1/shard-0/*.sealed",
    ],
)
def test_a_memory_in_which_others_could_write_is_refused(
    shared: Path, ann: User, place: str
) -> None:
    """As an earlier version under umask 000, or a restored copy, may have left it."""
    memory = shared / "memory"
    ann.does(open_memory, memory)
    (path,) = memory.glob(place) if "*" in place else [memory / place]
    mode, writable = stat.S_IMODE(path.stat().st_mode), 0o777 if path.is_dir() else 0o666
    path.chmod(writable)
    with pytest.raises(
        UntrustedPathError, match=f"{path} belongs to user {ANN}, mode 0{writable:o}"
    ):
        ann.does(open_memory, memory)
    path.chmod(mode)
    os.chown(path, MALLORY, MALLORY)
    if path.is_dir() or path.name == "journal.lock":
        path.chmod(0o777)
    else:
        path.chmod(0o644)
    with pytest.raises(UntrustedPathError, match=f"{path} belongs to user {MALLORY}"):
        ann.does(open_memory, memory)
    path.chmod(mode)
    os.chown(path, ANN, ANN)
    ann.does(open_memory, memory)


def make_all(folder: Path) -> None:
    """With each of our ways to make something, under the worst umask."""
    os.umask(0)
    try:
        make_folders(folder / "one" / "two" / "three")
        make_folder(folder / "four")
        write_private(folder / "written", b"")
        overwrite(folder / "overwritten", b"")
        os.close(RealDisk().create(folder / "created", 10))
        lock = FileLock(folder / "locked")
        lock.acquire()
        lock.release()
        open_log(folder / "log").close()
    finally:
        os.umask(0o022)


def test_what_is_made_is_private_whatever_the_umask(shared: Path, ann: User) -> None:
    ann.does(make_folders, shared / "anns")
    ann.does(make_all, shared / "anns")
    made = list((shared / "anns").rglob("*"))
    assert len(made) == 9
    assert {(p.is_dir(), stat.S_IMODE(p.stat().st_mode)) for p in made} == {
        (True, 0o700),
        (False, 0o600),
    }


def leave(path: Path) -> None:
    path.write_bytes(b"mallory's, and longer than what comes")
    path.chmod(0o666)


def test_no_leftover_is_written_into(shared: Path, ann: User, mallory: User) -> None:
    """Even in a folder that everybody may write to, which the way to it would be refused for."""
    folder = shared / "open"
    folder.mkdir()
    folder.chmod(0o777)
    mallory.does(leave, folder / "note.new")
    ann.does(write_private, folder / "note", b"ann's")
    found = (folder / "note").stat()
    assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (ANN, 0o600)
    assert (folder / "note").read_bytes() == b"ann's"
    writes: dict[str, Callable[..., None]] = {"a": overwrite, "b": take_lock}
    for name, write in writes.items():
        mallory.does(leave, folder / name)
        with pytest.raises(UntrustedPathError, match="mode 0666"):
            ann.does(write, folder / name, b"ann's")
        assert (folder / name).read_bytes() == b"mallory's, and longer than what comes"


def take_lock(path: Path, _data: bytes) -> None:
    FileLock(path).acquire()


# ---------------------------------------------------------------------- races


def read_for_a_while(path: Path) -> tuple[int, int]:
    """How many reads there were, and how many of what is mallory's."""
    reads = stolen = 0
    until = time.monotonic() + RACE
    while time.monotonic() < until:
        reads += 1
        with contextlib.suppress(OSError):
            stolen += read_private(path, secret=True) != b"ann's"
    return reads, stolen


def exchange_files(folder: Path) -> None:
    """Put ann's file and another one in each other's place, again and again."""
    until = time.monotonic() + RACE + 0.5
    path, mine = folder / "file", folder / "mine"
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            path.rename(folder / "anns")
            mine.write_bytes(b"mallory's")
            mine.chmod(0o666)
            mine.rename(path)
            path.rename(mine)
            path.symlink_to(mine)
            path.unlink()
            (folder / "anns").rename(path)


def test_a_race_for_a_file_is_never_won(shared: Path, ann: User, mallory: User) -> None:
    folder = shared / "open"
    folder.mkdir()
    folder.chmod(0o777)
    ann.does(write_private, folder / "file", b"ann's")
    mallory.begins(exchange_files, folder)
    reads, stolen = ann.does(read_for_a_while, folder / "file")
    mallory.has_done()
    assert reads > 100
    assert stolen == 0


def write_for_a_while(path: Path) -> tuple[int, list[str]]:
    """How many folders could be made and written to, and which of those were not ann's alone."""
    made, wrong = 0, []
    until = time.monotonic() + RACE
    while time.monotonic() < until:
        try:
            folder = make_folders(path / "memory")
            write_private(folder / "secret", b"ann's")
        except OSError:
            continue
        made += 1
        for part in (folder / "secret", folder, folder.parent):
            found = part.lstat()
            if found.st_uid != ANN or found.st_mode & 0o077:
                wrong.append(f"{part} {found.st_uid} {found.st_mode:o}")
        shutil.rmtree(path)
    return made, wrong


def exchange_folders(path: Path) -> None:
    """Have a folder, a link or nothing at a path, again and again."""
    until = time.monotonic() + RACE + 0.5
    mine = path.parent / "mine"
    mine.mkdir()
    mine.chmod(0o777)
    while time.monotonic() < until:
        for take in (partial(path.symlink_to, mine), partial(path.mkdir, 0o777)):
            with contextlib.suppress(OSError):
                take()
                (path / "memory").mkdir()
            for leave_it in (path.unlink, partial(shutil.rmtree, path)):
                with contextlib.suppress(OSError):
                    leave_it()


def test_a_race_for_a_folder_is_never_won(shared: Path, ann: User, mallory: User) -> None:
    mallory.begins(exchange_folders, shared / "wanted")
    made, wrong = ann.does(write_for_a_while, shared / "wanted")
    mallory.has_done()
    assert made > 0
    assert wrong == []
    assert not list((shared / "mine").rglob("*secret*"))


def make_late(path: Path, signs: Path) -> None:
    """Make a folder, and let another user be faster after the way to it was looked at."""

    def followed(path: Path) -> Path:
        found = trusted_path(path)
        if not (signs / "looked").exists():
            (signs / "looked").touch()
            until(signs / "made")
        return found

    setattr(private_files, "trusted_path", followed)  # noqa: B010 - it is final elsewhere
    try:
        make_folders(path)
    finally:
        setattr(private_files, "trusted_path", trusted_path)  # noqa: B010


def be_faster(kind: str, path: Path, signs: Path) -> None:
    before = os.umask(0)
    until(signs / "looked")
    if kind == "folder":
        path.mkdir(0o777)
    else:
        path.symlink_to(path.parent / "anns")
    (signs / "made").touch()
    os.umask(before)


def until(path: Path) -> None:
    while not path.exists():
        time.sleep(0.001)


@pytest.mark.parametrize("kind", ["folder", "link"])
def test_a_folder_on_the_way_that_somebody_makes_meanwhile_is_refused(
    shared: Path, ann: User, mallory: User, kind: str
) -> None:
    signs = shared / "signs"
    signs.mkdir()
    signs.chmod(0o777)
    ann.does(make_folders, shared / "anns")
    path = shared / "wanted"
    mallory.begins(be_faster, kind, path, signs)
    with pytest.raises(UntrustedPathError, match=f"{path} belongs to user {MALLORY}"):
        ann.does(make_late, path / "deep" / "memory", signs)
    mallory.has_done()


# ---------------------------------------------------------------------- servers


def serve(path: Path, clients: int) -> list[bytes]:
    """Listen where ann's server would; what each client has sent."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        path.chmod(0o777)
        server.listen()
        server.settimeout(20)
        return [_all_of(server.accept()[0]) for _ in range(clients)]


def _all_of(sock: socket.socket) -> bytes:
    with sock:
        sock.settimeout(5)
        data = b""
        with contextlib.suppress(OSError):
            while more := sock.recv(4096):
                data += more
        return data


def dial_blocking(path: str) -> None:
    connect(path, Secret(SECRET), 2.0).close()


def dial_async(path: str) -> None:
    async def run() -> None:
        (await dial(asyncio.get_running_loop(), path)).close()

    asyncio.run(run())


def link_to_supervisor(path: str) -> None:
    spec = ActorSpec(
        child=ChildSpec(name="actor", factory="", arguments=Raw(b"{}"), address=""),
        epoch=1,
        supervisor=path,
        secret=Secret(SECRET),
        settings=supervisor_settings(),
    )
    SupervisorLink(spec).await_admission()


def test_nothing_is_sent_to_a_server_of_somebody_elses(
    shared: Path, ann: User, mallory: User
) -> None:
    dials = [dial_blocking, dial_async, link_to_supervisor]
    path = shared / "host.sock"
    mallory.begins(serve, path, len(dials))
    while not path.exists():
        time.sleep(0.01)
    time.sleep(0.1)  # until it listens
    for dial_it in dials:
        with pytest.raises(UntrustedPathError, match=f"runs as user {MALLORY}"):
            ann.does(dial_it, str(path))
    assert mallory.has_done() == [b"", b"", b""]
