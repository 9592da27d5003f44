"""What another user has put where our programs look is not used."""

from __future__ import annotations

import itertools
import os
import socket
import tempfile
from pathlib import Path

import pytest

from flowgentic_actors import ClusterHandle, MemoryCluster, UntrustedPathError
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
from flowgentic_actors.storage.private_files import make_folders
from tests.support.users import ANN, MALLORY, NEEDS_OTHER_USERS, User, open_memory

pytestmark = NEEDS_OTHER_USERS


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
