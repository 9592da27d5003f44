"""Commands that start Python processes with this one's interpreter and `sys.path`."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from flowgentic_actors.errors import ClusterOpenError

PATH_VARIABLE: Final = "FLOWGENTIC_SYS_PATH"
"""Holds the `sys.path` for the processes of a cluster, as `python_environ` writes it."""

_BOOT: Final = (
    "import json, os, signal, sys; os.umask(0o077); signal.signal(signal.SIGCHLD, signal.SIG_DFL); "
    "sys.path.insert(0, {root!a}); import {package}; "
    "told = os.environ.get({variable!r}); "
    "sys.path[:] = [os.fsdecode(p.encode('latin-1')) for p in json.loads(told)] if told else "
    "sys.path[1:]; {root!a} in sys.path or sys.path.append({root!a}); "
    "from {module} import main; sys.exit(main())"
)
_RESTORE: Final = (
    "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_DFL); "
    "os.execv(sys.argv[1], sys.argv[1:])"
)
_INTERPRETER: Final = re.compile(r"(python|pypy|graalpy)[\w.-]*", re.IGNORECASE)


def interpreter() -> str:
    """Path of the interpreter to start processes with.

    In a program that embeds Python, or is frozen, `sys.executable` is that program, or nothing: the
    interpreter of the same environment is used then.

    Raises:
        ClusterOpenError: If there is none.
    """
    told = sys.executable or ""
    if _INTERPRETER.fullmatch(Path(told).name):
        return told
    for candidate in _interpreters():
        if candidate.is_file() and os.access(candidate, os.X_OK):
            return str(candidate)
    raise ClusterOpenError(
        f"sys.executable is {told or None!r}, which is no Python interpreter (it embeds Python, or "
        f"is frozen), and there is none in {sys.prefix}: actors and compaction need one. "
        f"Set sys.executable to a Python {sys.version_info[0]}.{sys.version_info[1]} before the "
        "cluster is opened (uWSGI: py-sys-executable)"
    )


def _interpreters() -> Iterator[Path]:
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    for prefix in dict.fromkeys((sys.prefix, sys.exec_prefix, sys.base_prefix)):
        for name in (version, "python3", "python"):
            yield Path(prefix, "bin", name)


def python_command(module: str, *arguments: str) -> list[str]:
    """The command that runs `module.main()` in a new Python, as this package and no other copy.

    The package's own parent folder is first on the path while the package is found, so a source
    checkout beside an installed copy works; from then on the path is what `python_environ` tells,
    and without it the interpreter's own. Signals whose child is gone are delivered, also where this
    process ignores them: `subprocess` needs that. Its umask is 077.

    Raises:
        ClusterOpenError: If there is no interpreter.
    """
    root = str(Path(__file__).parents[1])
    package = module.partition(".")[0]
    boot = _BOOT.format(root=root, package=package, module=module, variable=PATH_VARIABLE)
    utf8 = f"utf8={sys.flags.utf8_mode}"  # or paths would mean something else there
    return [interpreter(), "-X", utf8, "-P", "-c", boot, *arguments]


def python_environ(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """An environment in which what `python_command` starts has this process's `sys.path`.

    What this process has put into `PYTHONPATH` for its children follows behind.
    """
    told = [entry for entry in environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    path = dict.fromkeys(_absolute([*sys.path, *told]))
    encoded = [os.fsencode(entry).decode("latin-1") for entry in path]
    return {**environ, PATH_VARIABLE: json.dumps(encoded)}


def _absolute(path: Iterable[str]) -> Iterator[str]:
    """Make entries of `sys.path` absolute, for another working directory."""
    for entry in path:
        with suppress(FileNotFoundError):  # nothing is in a working directory that was removed
            yield os.path.abspath(entry)  # noqa: PTH100


def told_of_children(command: list[str]) -> list[str]:
    """A command whose program is notified of the ends of its children.

    An ignored SIGCHLD is inherited: the kernel then reaps the children of the program, which cannot
    read their exit codes.
    """
    if signal.getsignal(signal.SIGCHLD) is not signal.SIG_IGN:
        return command
    return [interpreter(), "-I", "-S", "-c", _RESTORE, *command]
