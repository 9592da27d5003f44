"""Progress of a run: a bar on a terminal, lines in a log."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

Phase: TypeAlias = Callable[[str], Callable[[float, str], None]]
"""Begins a phase; gives what tells which part of it is done, and what comes next."""


def say(console: Console, message: str) -> None:
    """Print a line that breaks where the terminal's does."""
    console.print(Text(message), soft_wrap=True)


@contextmanager
def progress(console: Console) -> Iterator[Phase]:
    """Yield a function that begins a phase."""
    if console.is_terminal:
        columns = (
            BarColumn(),
            TextColumn("{task.percentage:.0f} % of {task.description}: {task.fields[what]}"),
        )
        # Drawn between two turns: a thread that draws would disturb what is measured.
        with Progress(
            *columns, TimeElapsedColumn(), console=console, auto_refresh=False, transient=True
        ) as bar:
            task = bar.add_task("", total=1.0, what="")

            def begin(name: str) -> Callable[[float, str], None]:
                bar.reset(task, description=name, what="")
                return lambda done, what: bar.update(task, completed=done, what=what, refresh=True)

            yield begin
        return

    def begin_lines(name: str) -> Callable[[float, str], None]:
        shown = -1

        def show(done: float, _what: str) -> None:
            nonlocal shown
            if int(done * 10) > shown:
                shown = int(done * 10)
                say(console, f"{done:.0%} of {name}")

        return show

    yield begin_lines
