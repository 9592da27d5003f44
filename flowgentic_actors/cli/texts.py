"""The texts that the demo studies: found below a folder."""

from __future__ import annotations

import os
import sysconfig
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from flowgentic_actors.cli.research import read_text

DEFAULT_PACKAGES = ("asyncio", "concurrent", "email", "http", "json", "logging")
"""Packages of Python's standard library that are read when no folder is given."""

_SUFFIXES = frozenset({".md", ".py", ".rst", ".txt"})
_PASSED_BY = frozenset({"__pycache__", "node_modules", "site-packages"})
_MAX_CHARACTERS = 4 * 2**20  # All that is read of a folder, so that the demo stays a demo.


class Texts(NamedTuple):
    """The texts below a folder, as paths relative to it, and why others are left out."""

    root: Path
    files: list[str]
    left_out: Counter[str]


def find_texts(folder: Path | None) -> Texts:
    """Find the texts to study: UTF-8 files ending in .md, .py, .rst or .txt, at most 4 MiB in all.

    Hidden folders and folders of installed packages are passed by.

    Raises:
        NotADirectoryError: If `folder` is not a folder.
        OSError: If it cannot be looked at.
    """
    root = (folder or Path(sysconfig.get_path("stdlib"))).absolute()
    if not root.is_dir():
        raise NotADirectoryError(f"there is no folder {root}")
    found = Texts(root, [], Counter())
    tops = [root] if folder else [root / package for package in DEFAULT_PACKAGES]
    room = _MAX_CHARACTERS
    for path in (path for top in tops for path in _walk(top, found.left_out)):
        text, problem = read_text(path)
        name = path.relative_to(root).as_posix()
        if len(text) > room:
            found.left_out["or more beyond 4 MiB"] += 1
            break
        if problem or not name.isprintable():  # A name that is not UTF-8 holds lone surrogates.
            found.left_out[problem or "unprintable name"] += 1
            continue
        room -= len(text)
        found.files.append(name)
    return found


def _walk(top: Path, left_out: Counter[str]) -> Iterator[Path]:
    unreadable = lambda _: left_out.update(["unreadable"])  # noqa: E731
    for where, folders, names in os.walk(top, onerror=unreadable):
        folders[:] = sorted(f for f in folders if f not in _PASSED_BY and not f.startswith("."))
        for path in (Path(where, name) for name in sorted(names)):
            if path.suffix.lower() in _SUFFIXES:
                yield path
            else:
                left_out["of another kind"] += 1


def reasons_left_out(texts: Texts) -> str:
    """Why some texts are left out, in brackets; empty if none is."""
    listed = ", ".join(f"{count} {reason}" for reason, count in sorted(texts.left_out.items()))
    return f"(left out: {listed})" if listed else ""
