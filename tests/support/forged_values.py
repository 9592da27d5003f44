"""Stored values that would run code when they are decoded."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ormsgpack
import pytest


def ext(code: int, *parts: Any) -> ormsgpack.Ext:
    """An object in LangGraph's encoding: (module, name, arguments)."""
    return ormsgpack.Ext(code, ormsgpack.packb(parts))


class Ran:
    """Code to be run by stored values, true once it was."""

    def __init__(self, folder: Path) -> None:
        self.name = f"RAN_{id(self)}"
        self.code = f"import os; os.environ[{self.name!r}] = 'yes'"
        self.module = self.name.lower()
        (folder / f"{self.module}.py").write_text(f"{self.code}; x = id")

    def __bool__(self) -> bool:
        return self.name in os.environ


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ran]:
    monkeypatch.syspath_prepend(str(tmp_path))
    ran = Ran(tmp_path)
    yield ran
    os.environ.pop(ran.name, None)


def keywords(ran: Ran) -> dict[str, Any]:
    return {"stmt": ran.code, "number": 1}


FORGED: dict[str, Callable[[Ran], Any]] = {
    "an argument": lambda ran: ext(0, "builtins", "exec", ran.code),
    "arguments": lambda ran: ext(1, "builtins", "exec", [ran.code]),
    "keywords": lambda ran: ext(2, "timeit", "timeit", keywords(ran)),
    "a pydantic 1 model": lambda ran: ext(4, "timeit", "timeit", keywords(ran)),
    "a pydantic 2 model": lambda ran: ext(5, "timeit", "timeit", keywords(ran), ""),
    "an import": lambda ran: ext(0, ran.module, "x", 1),
    "within a set": lambda ran: ext(0, "builtins", "set", [FORGED["an argument"](ran)]),
    "within a message": lambda ran: ext(
        5, "langchain_core.messages.ai", "AIMessage", {"content": [FORGED["keywords"](ran)]}, ""
    ),
    "within a delta's snapshot": lambda ran: ormsgpack.Ext(
        7, ormsgpack.packb([FORGED["arguments"](ran)])
    ),
    "far within": lambda ran: {"a": [{"b": [1, FORGED["an argument"](ran)]}]},
}
"""Values that run code when they are decoded to any type."""
