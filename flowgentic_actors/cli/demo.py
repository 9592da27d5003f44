"""`flowgentic-actors demo`: a research team studies a folder, and its memory is checked.

The demo writes down every note that the memory acknowledges and every checkpoint that LangGraph
makes. In distributed mode it kills a busy memory actor half-way. At the end it reads everything
back and compares.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import signal
import textwrap
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from anyio import to_thread
from langchain_core.runnables import RunnableConfig
from langgraph.graph.state import CompiledStateGraph
from langgraph.store.base import BaseStore
from langgraph.types import StateSnapshot
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from flowgentic_actors import MemoryCluster
from flowgentic_actors.cli.models import NoModelError, load_model
from flowgentic_actors.cli.research import (
    Answer,
    ReadingReport,
    Study,
    all_notes,
    build_research_team,
    digest,
    new_study,
)
from flowgentic_actors.cli.texts import Texts, find_texts, reasons_left_out
from flowgentic_actors.cluster.persistence.manifest import read_manifest
from flowgentic_actors.cluster.protocol.status import ClusterStatus
from flowgentic_actors.config_values import user_path
from flowgentic_actors.environment import inside_dragon, scheduler_job
from flowgentic_actors.errors import FlowgenticError, PersistError

DEFAULT_QUESTION = "What happens to a task when it is cancelled?"
"""The question about them."""
_AT_ONCE = 64
_MANY = 10_000
_THREAD: RunnableConfig = {"configurable": {"thread_id": "research-team"}}

_Graph = CompiledStateGraph[Study, None, Study, Study]
_NoteId = tuple[tuple[str, ...], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """The options of the demo."""

    folder: Path | None = None
    """Folder to study, with all below it; None for packages of Python's standard library."""

    mode: Literal["local", "distributed", "auto"] = "auto"
    """Mode of the `MemoryCluster`. In distributed mode an actor is killed half-way."""

    spawner: Literal["auto", "dragon", "subprocess"] = "auto"
    """Who starts the actors of a distributed cluster."""

    question: str = ""
    """What to answer. Empty for a fitting one: `DEFAULT_QUESTION`, or the most common terms."""

    readers: int = 4
    """Readers that work at a time, from 1 to 64."""

    persist: Path | None = None
    """Folder that keeps the memory; an interrupted study can be resumed from it."""

    resume: bool = False
    """Go on with the study in `persist`, with its folder, question and readers."""

    model: str = ""
    """LangChain's id of a chat model that writes the answer, such as `openai:gpt-4o-mini`."""

    def __post_init__(self) -> None:
        if self.resume and self.persist is None:
            raise ValueError("--resume needs --persist PATH, where the interrupted study is")
        if self.resume and (self.folder is not None or self.question):
            raise ValueError("--resume goes on with the study's own folder and question: give none")
        if not 1 <= self.readers <= 64:
            raise ValueError(f"readers must be from 1 to 64, not {self.readers}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the demo's command-line arguments: `DemoOptions(**vars(arguments))` takes them."""
    add = parser.add_argument
    add("folder", nargs="?", type=user_path, help="texts to study (default: some of Python's own)")
    add("--mode", choices=("local", "distributed", "auto"), default="auto")
    add("--spawner", choices=("auto", "dragon", "subprocess"), default="auto")
    add("--question", default="", help="what to answer from the notes")
    add("--readers", type=int, default=4, help="readers at a time, 1 to 64 (default: 4)")
    add("--persist", type=user_path, metavar="PATH", help="keep the memory in this folder")
    add("--resume", action="store_true", help="go on with the interrupted study in --persist")
    add("--model", default="", metavar="ID", help="have a chat model write the answer")


class Outage(NamedTuple):
    """An actor that the demo has killed, and the seconds until its memory answered again."""

    shard: int
    epoch: int
    pid: int
    killed_at: float
    seconds: float


@dataclass(slots=True)
class Record:
    """The acknowledged writes, recorded apart from the memory that is to be checked."""

    digests: dict[_NoteId, str] = field(default_factory=dict)
    checkpoints: set[str] = field(default_factory=set)
    reports: list[ReadingReport] = field(default_factory=list)
    outage: Outage | None = None
    found_notes: int = 0
    found_checkpoints: int = 0


async def run_demo(options: DemoOptions) -> int:
    """Run the demo and print on standard output what happens.

    Args:
        options: What to study, and in which mode.

    Returns:
        0 when all that was acknowledged has been read back unchanged, 1 when something was lost
        or the memory failed, 2 when the folder does not exist or holds no text, or when the memory
        in `persist` cannot be used for what is asked.
    """
    console = Console()
    try:
        texts = await to_thread.run_sync(find_texts, options.folder)
    except OSError as error:
        return _complain(f"Nothing to study: {error}", 2)
    if not texts.files:
        return _complain(
            f"Nothing to study: no text in {texts.root} {reasons_left_out(texts)}".strip(), 2
        )
    try:
        await to_thread.run_sync(_check_resumable, options)
        problems = await _study(options, texts, console)
    except NoModelError as error:
        return _complain(str(error), 2)
    except (UnfitError, PersistError) as error:
        return _complain(f"The memory is of no use: {error}", 2)
    except FlowgenticError as error:
        _hint(options)
        return _complain(f"The memory failed: {type(error).__name__}: {error}", 1)
    except asyncio.CancelledError:  # Ctrl-C
        _hint(options)
        raise
    for problem in problems[:5]:
        _complain(f"Not verified: {problem}", 1)
    if len(problems) > 5:
        _complain(f"Not verified: {len(problems) - 5} more of the same", 1)
    return 1 if problems else 0


class UnfitError(Exception):
    """The memory does not fit: nothing to resume, or a study that was begun already."""


def _check_resumable(options: DemoOptions) -> None:
    if options.resume and options.persist is not None:
        try:
            there = read_manifest(options.persist) is not None
        except OSError as error:
            raise UnfitError(f"cannot look at {options.persist}: {error}") from error
        if not there:
            raise UnfitError(_nothing_there(options.persist))


def _nothing_there(path: Path | None) -> str:
    return f"nothing to resume: there is no study in {path}. Begin one without --resume"


def _hint(options: DemoOptions) -> None:
    if options.persist is not None:
        again = f"flowgentic-actors demo --persist {options.persist} --resume"
        _complain(f"What was acknowledged is kept. Go on with: {again}", 1)


def _complain(message: str, code: int) -> int:
    Console(stderr=True).print(Text(message, "bold red"), soft_wrap=True)
    return code


async def _study(options: DemoOptions, texts: Texts, console: Console) -> list[str]:
    """Open the memory, do the work, check it, and return all errors."""
    start = time.perf_counter()
    model = await to_thread.run_sync(load_model, options.model) if options.model else None
    on_cluster = inside_dragon() or scheduler_job() is not None
    distributed = options.mode == "distributed" or (options.mode == "auto" and on_cluster)
    async with MemoryCluster(
        mode=options.mode,
        spawner=options.spawner,
        fallback_to_local=options.mode == "auto",
        # Two, so that one goes on answering while the other is down.
        actors_per_node=2 if distributed else 1,
        persist_path=options.persist,
        allowed_types=(),
    ) as memory:
        status = await memory.status()
        opened = time.perf_counter()
        actors = len(status.actors)
        _say(console, f"Memory is open: {status.mode} mode, {actors} actor{'s'[: actors != 1]}.")
        team = build_research_team(model)
        graph = team.compile(checkpointer=memory.checkpointer, store=memory.store)
        question = options.question or ("" if options.folder else DEFAULT_QUESTION)
        study = new_study(texts.root, texts.files, question, options.readers)
        record = Record()
        begun = await graph.aget_state(_THREAD)
        if options.resume and begun.created_at is None:
            raise UnfitError(_nothing_there(options.persist))
        if options.resume:
            study = await _find(graph, memory.store, begun, record, console)
        elif begun.created_at is not None:
            raise UnfitError(
                f"there is a study in {options.persist} already: go on with it by --resume, or "
                "give --persist another folder"
            )
        else:
            left_out = reasons_left_out(texts)
            what = f"Files to study in {texts.root}: {len(texts.files)} {left_out}".rstrip()
            _say(console, f"{what}. Readers: {options.readers}.")
        if begun.created_at is None or begun.tasks:
            kill = status.mode == "distributed"
            resumed = begun.created_at is not None
            await _watch(graph, study, memory, record, console, kill=kill, resumed=resumed)
        studied = time.perf_counter()

        problems = await _check(graph, memory.store, record)
        values = (await graph.aget_state(_THREAD)).values
        problems += await _check_reports(memory.store, values)
        answer = values.get("answer")
        if answer:
            _print_answer(console, answer)
        else:
            problems.append("the thread's last state holds no answer")
        checked = time.perf_counter()
        status = await _fresh_status(memory, len(record.digests))
        problems += await _explain_outage(memory, status, record.outage, console)
        if options.resume:
            _say(
                console,
                f"From before: {record.found_notes} notes, {record.found_checkpoints} checkpoints. "
                f"New: {len(record.digests) - record.found_notes} notes, "
                f"{len(record.checkpoints) - record.found_checkpoints} checkpoints.",
            )
        if not problems:
            _say(
                console,
                f"Nothing was lost: {len(record.digests)} notes and {len(record.checkpoints)} "
                "checkpoints were acknowledged and are there, each note with its digest.",
            )
        _print_status(console, status)
    end = time.perf_counter()
    _say(
        console,
        f"It took {end - start:.1f} s: opening {opened - start:.1f}, study {studied - opened:.1f}, "
        f"checking {checked - studied:.1f}, the rest {end - checked:.1f}.",
    )
    return problems


async def _find(
    graph: _Graph, store: BaseStore, begun: StateSnapshot, record: Record, console: Console
) -> Study:
    """Record what an interrupted study has left, and return its state."""
    async for item in all_notes(store):
        record.digests[item.namespace, item.key] = digest(item.value)
    async for snapshot in graph.aget_state_history(_THREAD):
        record.checkpoints.add(snapshot.config["configurable"]["checkpoint_id"])
    record.found_notes, record.found_checkpoints = len(record.digests), len(record.checkpoints)
    study: Study = cast("Study", begun.values)
    record.reports.extend(study.get("reports", []))
    files = study.get("files", [])
    _say(
        console,
        f"Resuming the study of {study.get('root', 'a folder')}: {len(record.reports)} of "
        f"{len(files)} files were read, {record.found_notes} notes and "
        f"{record.found_checkpoints} checkpoints are there."
        if begun.tasks  # `next` passes by those that have ended in a step that has not
        else f"The study is finished already: {record.found_notes} notes are there.",
    )
    return study


async def _check_reports(store: BaseStore, values: dict[str, Any]) -> list[str]:
    """Compare the notes that the readers reported with those in the store."""
    reports = values.get("reports", [])
    problems = [
        f"{file} was read {times} times"
        for file, times in Counter(report["file"] for report in reports).items()
        if times > 1
    ]
    there = [item.key async for item in all_notes(store)]
    reported = sum(report["notes"] for report in reports)
    if len(there) != reported:
        problems.append(f"{reported} notes were reported and {len(there)} are there")
    return problems


async def _watch(
    graph: _Graph,
    study: Study,
    memory: MemoryCluster,
    record: Record,
    console: Console,
    *,
    kill: bool,
    resumed: bool,
) -> None:
    """Run the graph, record acknowledged writes, and kill an actor half-way."""
    total = len(study.get("files", [])) or _MANY  # interrupted before its first step: not known
    config: RunnableConfig = {**_THREAD, "recursion_limit": 2 * total + 10}
    with _progress(console, total) as show:
        # A checkpoint per step, each acknowledged before the next step begins.
        events: AsyncIterator[Any] = graph.astream(
            None if resumed else study,
            config,
            stream_mode=["custom", "checkpoints"],
            durability="sync",
        )
        async for mode, event in events:
            if mode == "checkpoints":
                record.checkpoints.add(event["config"]["configurable"]["checkpoint_id"])
            elif "digest" in event:
                record.digests[event["namespace"], event["key"]] = event["digest"]
                if kill and 2 * len(record.reports) >= total - 1:
                    kill = False  # The other readers go on writing meanwhile.
                    record.outage = await _kill_one(graph, memory, record, console)
            else:
                record.reports.append(event)
            show(len(record.reports), len(record.digests))
    if kill:
        _say(console, "The work was done before an actor could be killed.")


@contextmanager
def _progress(console: Console, total: int) -> Iterator[Callable[[int, int], None]]:
    """Make a function that shows the files and notes so far: as a bar, or as lines in a log."""
    if console.is_terminal:
        columns = (
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("files, {task.fields[notes]} notes"),
        )
        with Progress(*columns, TimeElapsedColumn(), console=console) as bar:
            task = bar.add_task("", total=total, notes=0)
            yield lambda files, notes: bar.update(task, completed=files, notes=notes)
        return
    shown = 0

    def show(files: int, notes: int) -> None:
        nonlocal shown
        if files * 4 // total > shown:
            shown = files * 4 // total
            _say(console, f"{files} of {total} files read, {notes} notes kept")

    yield show


async def _kill_one(
    graph: _Graph, memory: MemoryCluster, record: Record, console: Console
) -> Outage | None:
    """Kill the busiest actor on this machine and wait until all memory answers again."""
    status = await memory.status()
    here = platform.node().split(".")[0]
    running = [
        (actor.requests, actor.pid, actor)
        for actor in status.actors
        if actor.state == "running" and actor.pid is not None and actor.pid != os.getpid()
        if actor.node.split(".")[0] == here  # A pid means nothing on another machine.
    ]
    if not running:
        _say(console, "No memory actor runs in a process on this machine: none is killed.")
        return None
    _, pid, actor = max(running, key=lambda found: found[:2])
    os.kill(pid, signal.SIGKILL)
    killed_at, start = time.time(), time.perf_counter()
    _say(
        console,
        f"Killed memory actor {actor.shard} (pid {pid}, epoch {actor.epoch}) with SIGKILL "
        f"after {actor.requests} requests, while the readers are at work.",
    )
    # One note of every namespace: some of them are in the dead actor's keeping.
    sample = {note[0]: note for note in record.digests}
    await asyncio.gather(*(memory.store.aget(*note) for note in sample.values()))
    await graph.aget_state(_THREAD)
    seconds = time.perf_counter() - start
    return Outage(actor.shard, actor.epoch, pid, killed_at, seconds)


async def _check(graph: _Graph, store: BaseStore, record: Record) -> list[str]:
    """Read back all that was acknowledged and return what is missing or different."""
    problems = []
    notes = list(record.digests.items())
    for start in range(0, len(notes), _AT_ONCE):
        batch = notes[start : start + _AT_ONCE]
        items = await asyncio.gather(*(store.aget(*note) for note, _ in batch))
        for (note, expected), item in zip(batch, items, strict=True):
            if item is None or digest(item.value) != expected:
                problems.append(f"note {note} is {'different' if item else 'lost'}")
    history = {
        snapshot.config["configurable"]["checkpoint_id"]
        async for snapshot in graph.aget_state_history(_THREAD)
    }
    lost = record.checkpoints - history
    return problems + [f"checkpoint {checkpoint} is lost" for checkpoint in sorted(lost)]


async def _fresh_status(memory: MemoryCluster, items: int) -> ClusterStatus:
    """Wait, within a bound, for a status with the counters of the last writes."""
    for _ in range(20):
        status = await memory.status()
        if sum(actor.items for actor in status.actors) >= items:
            break
        await asyncio.sleep(0.1)
    return status


async def _explain_outage(
    memory: MemoryCluster, status: ClusterStatus, outage: Outage | None, console: Console
) -> list[str]:
    """Print how the supervisor handled the killed actor; return what it failed to do."""
    if outage is None:
        return []
    actor = next(actor for actor in status.actors if actor.shard == outage.shard)
    _say(
        console,
        f"Memory actor {outage.shard} came back: epoch {outage.epoch} -> {actor.epoch}, pid "
        f"{outage.pid} -> {actor.pid}. {outage.seconds:.2f} s from SIGKILL until every reader's "
        "notes and the thread were answered for. The supervisor:",
    )
    for event in await memory.recent_events():
        if event.time >= outage.killed_at:
            after = event.time - outage.killed_at
            _say(console, f"  {after:+.2f} s  {event.kind}  {event.actor}  {event.detail}".rstrip())
    return [] if actor.epoch > outage.epoch else [f"actor {actor.shard} was not restarted"]


def _print_answer(console: Console, answer: Answer) -> None:
    _say(console, f"\nQuestion: {answer['question']}")
    if not answer["citations"]:
        _say(console, "The notes say nothing about it.")
    if "written" in answer:
        _say(console, f"{answer['written']}\n\nFrom:")
    for citation in answer["citations"]:
        about = f"  ({citation['about']})" if citation["about"] else ""
        _say(console, f"  {citation['file']}:{citation['line']}{about}")
        quote = textwrap.wrap(f'"{citation["text"]}"', max(console.width - 7, 20))
        _say(console, textwrap.indent("\n".join(quote), " " * 6))
    _say(console, "")


def _print_status(console: Console, status: ClusterStatus) -> None:
    _say(console, f"What is stored where ({status.mode} mode):")
    table = Table(box=None, pad_edge=False)
    for heading in ("actor", "node", "pid", "epoch"):
        table.add_column(heading, overflow="fold")
    for heading in ("threads", "checkpoints", "items", "blobs", "journal"):
        table.add_column(heading, justify="right", overflow="fold")
    for actor in status.actors:
        counts = (actor.threads, actor.checkpoints, actor.items)
        sizes = (decimal(actor.blob_bytes), decimal(actor.journal_bytes))
        place = (actor.shard, actor.node, actor.pid, actor.epoch)
        table.add_row(*map(str, (*place, *counts, *sizes)))
    console.print(table)


def _say(console: Console, message: str) -> None:
    # Files may hold what this terminal cannot show.
    message = message.encode(console.encoding, "replace").decode(console.encoding)
    console.print(Text(message), soft_wrap=True)
