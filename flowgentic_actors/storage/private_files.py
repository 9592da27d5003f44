"""Private files and folders: this user's, and not changeable by other users.

On a machine with other users a path is only as good as each folder on the way to it: who may write
to one may put another file or folder in the place of what is in it. So a path that a user gives is
followed once, part by part, as OpenSSH's StrictModes does (`trusted_path`); what is made below it
has mode 0700 or 0600 from its first moment, whatever the umask; and a file is checked when it is
open, and read through that descriptor, so that nothing can be exchanged between look and use.

The number of hard links of a file in a folder that is only ours is not checked: no other user can
make a link there, or to anything there.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import pwd
import stat
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Final

from flowgentic_actors.errors import UntrustedPathError
from flowgentic_actors.secret import Secret, plain

TRUSTED_VARIABLE: Final = "FLOWGENTIC_TRUSTED_FOLDERS"
"""Holds folders, separated by colons, that are trusted as if only root could write to them."""

_LEAST: Final = 4096  # bytes: less takes as much of a disk
_MOST_LINKS: Final = 40  # as the Linux kernel
_OTHERS: Final = 0o077
_ACL: Final = "system.posix_acl_access"


# ---------------------------------------------------------------------- paths


def trusted_path(path: Path) -> Path:
    """Resolve all links of a path, if no other user can replace what it leads to.

    Every folder and link on the way has to belong to root or to this user, and every folder must
    not be writable by others, unless it has the sticky bit. What the path leads to is checked by
    the function that opens it. Missing parts are left as they are, but for one before a `..`, which
    takes it away. Blocks.

    Raises:
        UntrustedPathError: If it is not so; the text names the part, its owner and mode.
        OSError: If the path cannot be followed.
    """
    here = Path("/")
    left = [*reversed(path.absolute().parts[1:])]
    links = 0
    while left:
        _expect_trusted(here, here.lstat(), path)
        name = left.pop()
        if name == "..":
            here = here.parent
            continue
        there = here / name
        try:
            found = there.lstat()
        except (FileNotFoundError, NotADirectoryError) as error:
            rest = [name, *reversed(left)]
            if ".." not in rest or isinstance(error, NotADirectoryError):
                return here.joinpath(*rest)
            up = rest.index("..")
            left = [*reversed(rest[: up - 1] + rest[up + 1 :])]
            continue
        if not stat.S_ISLNK(found.st_mode):
            here = there
            continue
        _expect_trusted(there, found, path)
        links += 1
        if links > _MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
        target = there.readlink()
        if target.is_absolute():
            here = Path("/")
        left += reversed(target.parts[target.is_absolute() :])
    return here


def _expect_trusted(part: Path, found: os.stat_result, path: Path) -> None:
    foreign = found.st_uid not in (0, os.geteuid()) and not _is_roots(found.st_uid)
    fixed = stat.S_ISLNK(found.st_mode) or found.st_mode & stat.S_ISVTX
    why = "its owner" if foreign else "" if fixed else _writers(part, found)
    if not why:
        return
    if part in map(Path, os.environ.get(TRUSTED_VARIABLE, "").split(os.pathsep)):
        return
    raise UntrustedPathError(
        f"{_described(part, found)}: {why} could exchange what is at {path}. Choose a path of "
        "which every folder belongs to root or to this user and is not writable by others (chmod "
        f"go-w), or, if you trust all who may write there, name it: "
        f"{TRUSTED_VARIABLE}={part}"
    )


def check_folder(folder: Path, *, secret: bool = False) -> None:
    """Make sure that a folder is this user's, and no link. Blocks.

    Args:
        folder: The folder; the way to it is not looked at.
        secret: Whether others must not even look into it.

    Raises:
        UntrustedPathError: If it is another user's, or others may write to it.
        OSError: If it is not there.
    """
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise UntrustedPathError(
            f"{_described(folder, found)}, and is no folder: remove it, or choose another path"
        )
    _expect_own(folder, found, folder, secret=secret)


def make_folder(folder: Path, *, secret: bool = False) -> None:
    """Make one folder, mode 0700, or check the one that is there, as `check_folder`. Blocks."""
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        check_folder(folder, secret=secret)


def make_folders(
    path: Path, *, secret: bool = False, made: Callable[[Path], None] = lambda _: None
) -> Path:
    """Make a folder and all that is missing above it, each of mode 0700. Blocks.

    Args:
        path: As a user gives it.
        secret: As for `check_folder`.
        made: Told of each folder that was made.

    Returns:
        It, with all links followed.

    Raises:
        UntrustedPathError: If another user could exchange it, or write to it.
        OSError: If it cannot be made.
    """
    folder = trusted_path(path)
    missing = []
    for level in (folder, *folder.parents):
        if level.exists():
            break
        missing.append(level)
    for level in reversed(missing):
        make_folder(level)
        made(level)
    folder = trusted_path(path)  # what was missing may have been made by another user meanwhile
    check_folder(folder, secret=secret)
    return folder


# ---------------------------------------------------------------------- files


def open_private(path: Path, flags: int, *, secret: bool = False) -> int:
    """Open a file of this user, made with mode 0600 if the flags say that it is to be made. Blocks.

    Args:
        path: The file; the way to it is not looked at.
        flags: As for `os.open`. Not `O_TRUNC`, which would come before the check.
        secret: Whether others must not even read it.

    Returns:
        Its descriptor, which a child does not inherit.

    Raises:
        UntrustedPathError: If it is another user's, others may write to it, or it is a link.
        OSError: If it cannot be opened.
    """
    flags |= os.O_NOFOLLOW | os.O_CLOEXEC
    if secret:
        flags |= os.O_NONBLOCK  # a pipe in its place would let us wait
    try:
        descriptor = os.open(path, flags, 0o600)
    except OSError as error:
        with contextlib.suppress(FileNotFoundError):
            _expect_own_file(path, path.lstat(), path, secret=False, cause=error)
        raise
    try:
        _expect_own_file(path, os.fstat(descriptor), descriptor, secret=secret)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_private(path: Path, *, secret: bool = False) -> bytes:
    """Read a file of this user; see `open_private`."""
    with os.fdopen(open_private(path, os.O_RDONLY, secret=secret), "rb") as file:
        return file.read()


def open_log(path: Path) -> BinaryIO:
    """Open a log of this user, to append to; see `open_private`."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    return os.fdopen(open_private(path, flags), "ab", buffering=0)


def write_private(path: Path, data: bytes | Secret[bytes]) -> None:
    """Write a file that only this user can read, whole or not at all. Blocks."""
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)  # what an interrupted writing, or another user, left there
    descriptor = open_private(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    with os.fdopen(descriptor, "wb") as file:
        file.write(plain(data))
    temporary.replace(path)


def overwrite(path: Path, data: bytes | Secret[bytes], least: int = _LEAST) -> None:
    """Overwrite a file in place, filled up with spaces; it never gets smaller.

    That needs no room on a disk that is full, which must not keep an actor from being started
    again, or a copy from being promoted: what has to be noted for that has its room beforehand.
    Readable by this user alone. What is cut off in the middle leaves a part of both, so either
    no reader has it then, or the caller is told. Blocks.

    Args:
        path: The file; made when it is not there.
        data: What to write, without spaces at the end that mean anything.
        least: Bytes that the file has at least, from then on.

    Raises:
        UntrustedPathError: As `open_private`.
        OSError: If that is not possible. There is no room on a full disk for more than the file
            had before.
    """
    descriptor = open_private(path, os.O_WRONLY | os.O_CREAT)
    try:
        content = plain(data)
        size = os.fstat(descriptor).st_size
        if size < len(content) or not size:
            size = max(2 * len(content), least)
        rest = memoryview(content.tobytes().ljust(size))
        while rest:
            rest = rest[os.pwrite(descriptor, rest, size - len(rest)) :]
    finally:
        os.close(descriptor)


# ---------------------------------------------------------------------- owners and modes


def _expect_own_file(
    path: Path,
    found: os.stat_result,
    where: Path | int,
    *,
    secret: bool,
    cause: OSError | None = None,
) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise UntrustedPathError(
            f"{_described(path, found)}, and is no file: remove it, or choose another path"
        ) from cause
    _expect_own(path, found, where, secret=secret)


def _expect_own(path: Path, found: os.stat_result, where: Path | int, *, secret: bool) -> None:
    if found.st_uid != os.geteuid():
        raise UntrustedPathError(
            f"{_described(path, found)}, not to this one ({_user(os.geteuid())}): choose another "
            "path, or have its owner remove it"
        )
    if secret and found.st_mode & _OTHERS:
        raise UntrustedPathError(
            f"{_described(path, found)}: only its owner may read it. If what is in it is yours, "
            f"chmod go= {path}"
        )
    if writers := _writers(where, found):
        raise UntrustedPathError(
            f"{_described(path, found)}: {writers} may write to it, and could have. If all that "
            f"is in it is yours, chmod -R go-w {path}"
        )


def _writers(where: Path | int, found: os.stat_result) -> str:
    """The other users that may write to a file or folder, in words; empty for none.

    Access control lists that let others write show in the bits of the group.

    Args:
        where: Its path, or its descriptor if it is open.
        found: Its owner and mode.
    """
    if found.st_mode & stat.S_IWOTH:
        return "everybody"
    if found.st_mode & stat.S_IWGRP:
        if _has_list(where):
            return "who is in its access control list (getfacl)"
        if not _is_private(found.st_gid):
            return f"group {_group(found.st_gid)}"
    return ""


def _has_list(where: Path | int) -> bool:
    """Whether a file or folder has an access control list, on Linux."""
    if not hasattr(os, "getxattr"):
        return False
    try:
        os.getxattr(where, _ACL)  # of a link's target, where it is one: links have none
    except OSError:  # none, or none on this file system
        return False
    return True


def _is_private(gid: int) -> bool:
    """Whether a group is this user's own, without other members.

    Many systems make one for each user, and let it write: their umask is 002.
    """
    try:
        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(gid)
    except KeyError:
        return False
    own = gid == user.pw_gid and group.gr_name == user.pw_name
    return own and set(group.gr_mem) <= {user.pw_name}


def _is_roots(uid: int) -> bool:
    """Whether an id stands for users outside this user namespace, such as root.

    In containers without root's help, root's folders of the machine seem to belong to that user.
    """
    try:
        overflow = int(Path("/proc/sys/kernel/overflowuid").read_text())
        lines = Path("/proc/self/uid_map").read_text().splitlines()
    except (OSError, ValueError):  # not on this platform
        return False
    ranges = [(int(first), int(count)) for first, _, count in map(str.split, lines)]
    return uid == overflow and not any(first <= uid < first + count for first, count in ranges)


def _described(path: Path, found: os.stat_result) -> str:
    return f"{path} belongs to user {_user(found.st_uid)}, mode {stat.S_IMODE(found.st_mode):04o}"


def _user(uid: int) -> str:
    try:
        return f"{pwd.getpwuid(uid).pw_name} ({uid})"
    except KeyError:
        return str(uid)


def _group(gid: int) -> str:
    try:
        return f"{grp.getgrgid(gid).gr_name} ({gid})"
    except KeyError:
        return str(gid)
