"""A research team as a LangGraph graph: a lead, readers that work in parallel, a librarian.

The lead hands out one file to each reader, round after round. A reader takes notes and keeps them
in the store under `("research", <reader>, <folders and name of the file>)`. When every file has
been read, the librarian searches all notes and answers the question with passages quoted by file
and line: the same files and question always give the same notes and passages. A model, if there is
one, puts what was found into words.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import operator
import re
import textwrap
import tokenize
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, NotRequired, TypedDict

from anyio import to_thread
from langchain_core.runnables import Runnable
from langgraph.graph import START, StateGraph
from langgraph.runtime import Runtime
from langgraph.store.base import BaseStore, SearchItem
from langgraph.types import Command, Send

from flowgentic_actors.cli.models import write_answer

NOTES = ("research",)
"""Namespace under which all notes are kept."""

_MAX_FILE_BYTES = 512 * 1024
_PASSAGE_LENGTH = 400
_TITLE_LENGTH = 100
_CITATIONS = 5
_PAGE = 200
_WEIGHTS = {"docstring": 1.0, "text": 1.0, "comment": 0.8, "heading": 0.5, "definition": 0.5}
_NAMES = ("heading", "definition")
_UNSAID = frozenset(
    re.findall(
        r"\w+",
        """about after all also am an and any are as at be because been before being both but by can
        could did do does done each for from had happen happened happens has have he here how if in
        into is it its may me more most my no not of on only or other our out over said say says
        she should so some such than that the their them then there these they this those through
        to under up us was we were what when where which while who whom whose why will with would
        you your""",
    )
)
_DOCSTRING = re.compile(r"""(?s)[a-zA-Z]{0,2}(\"""|'''|"|')(.*)\1""")
_HEADING = re.compile(r"#{1,6}\s+(.+?)\s*#*")
_WORD = re.compile(r"[^\W\d_]{2,}")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_RULE = re.compile(r"([^\w\s])\1{2,}\s*")


class ReadingReport(TypedDict):
    """The report of a reader to the lead about one file; without `problem` if it was read."""

    reader: str
    file: str
    notes: int
    problem: str


class Citation(TypedDict):
    """A passage with its place (line numbers start at 1) and the name or heading above it."""

    file: str
    line: int
    about: str
    text: str


class Answer(TypedDict):
    """The question as it was understood, and the best passages first; none if nothing matches.

    `written` is what a model made of them.
    """

    question: str
    citations: list[Citation]
    written: NotRequired[str]


class Study(TypedDict, total=False):
    """The state of the graph, whole in every checkpoint, so that a run can resume from any."""

    root: str
    files: list[str]
    question: str
    team: list[str]
    handed_out: int
    reports: Annotated[list[ReadingReport], operator.add]
    answer: Answer


class ReadingAssignment(TypedDict):
    """One file for one reader; `file` is relative to `root`, with forward slashes."""

    reader: str
    root: str
    file: str


class NoteKept(TypedDict):
    """A note that the store has acknowledged, and the digest of its value.

    `new` is false when it was there already: a reader that was interrupted writes no note twice.
    """

    namespace: tuple[str, ...]
    key: str
    digest: str
    new: bool


class Passage(NamedTuple):
    """Some text of a file, the line where it starts, and the name or heading it belongs to."""

    line: int
    kind: str
    about: str
    text: str


def new_study(root: Path, files: Sequence[str], question: str = "", readers: int = 4) -> Study:
    """Return the input of the graph.

    Args:
        root: Folder that `files` are relative to.
        files: The files to read, with forward slashes.
        question: What to answer; empty for a question about the most common terms.
        readers: How many readers work at a time, at least 1.

    Raises:
        ValueError: If `readers` is less than 1.
    """
    if readers < 1:
        raise ValueError(f"a research team needs at least one reader, not {readers}")
    team = [f"reader-{number}" for number in range(1, readers + 1)]
    return Study(root=str(root), files=list(files), question=question, team=team, handed_out=0)


def build_research_team(
    model: Runnable[Any, Any] | None = None,
) -> StateGraph[Study, None, Study, Study]:
    """Return the graph, to be compiled with a store (needed) and a checkpointer (recommended).

    Its input comes from `new_study`. Streamed with `stream_mode="custom"` it emits a `NoteKept`
    for each note and a `ReadingReport` for each file.

    Args:
        model: A chat model that writes the answer from the passages found; none is needed.
    """
    graph = StateGraph(Study)
    graph.add_node("lead", lead, destinations=("reader", "librarian"))
    graph.add_node("reader", reader, input_schema=ReadingAssignment)
    graph.add_node("librarian", librarian)
    graph.add_edge(START, "lead")
    graph.add_edge("reader", "lead")
    if model is not None:

        async def writer(state: Study) -> Study:
            answer = state["answer"]
            text = await write_answer(model, answer["question"], answer["citations"])
            return {"answer": {**answer, "written": text}}

        graph.add_node("writer", writer)
        graph.add_edge("librarian", "writer")
    return graph


async def lead(state: Study) -> Command[Literal["reader", "librarian"]]:
    """Hand the next files to the readers, one each, or the question to the librarian."""
    start, team = state["handed_out"], state["team"]
    batch = state["files"][start : start + len(team)]
    if not batch:
        return Command(goto="librarian")
    work = [
        Send("reader", ReadingAssignment(reader=name, root=state["root"], file=file))
        for name, file in zip(team, batch, strict=False)
    ]
    return Command(update={"handed_out": start + len(batch)}, goto=work)


async def reader(state: ReadingAssignment, runtime: Runtime[None]) -> Study:
    """Read one file and keep a note of every passage in the store."""
    store, file = _store_of(runtime), state["file"]
    text, problem = await to_thread.run_sync(read_text, Path(state["root"], file))
    notes = [] if problem else await to_thread.run_sync(take_notes, file, text)
    namespace = note_namespace(state["reader"], file)
    there = {item.key: digest(item.value) async for item in all_notes(store, namespace)}
    for key, value in notes:
        expected = digest(value)
        new = there.get(key) != expected
        if new:
            await store.aput(namespace, key, value, index=False)
        kept = NoteKept(namespace=namespace, key=key, digest=expected, new=new)
        runtime.stream_writer(kept)
    report = ReadingReport(reader=state["reader"], file=file, notes=len(notes), problem=problem)
    runtime.stream_writer(report)
    return {"reports": [report]}


async def librarian(state: Study, runtime: Runtime[None]) -> Study:
    """Answer the question from all notes in the store."""
    notes = [note.value async for note in all_notes(_store_of(runtime))]
    return {"answer": await to_thread.run_sync(answer_from, state["question"], notes)}


def _store_of(runtime: Runtime[None]) -> BaseStore:
    if runtime.store is None:
        raise ValueError("the research team keeps its notes in a store: compile it with store=...")
    return runtime.store


def note_namespace(reader: str, file: str) -> tuple[str, ...]:
    """Return where a reader keeps its notes on a file; no two files share a namespace."""
    # LangGraph refuses labels with a dot. Escaping, not replacing, keeps a.b and a_b apart.
    labels = (part.replace("%", "%25").replace(".", "%2E") for part in file.split("/"))
    return (*NOTES, reader, *labels)


def digest(value: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a note, in hexadecimal, the same for equal values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


async def all_notes(
    store: BaseStore, namespace: tuple[str, ...] = NOTES
) -> AsyncIterator[SearchItem]:
    """Yield all notes below a namespace, a page at a time."""
    offset = 0
    while page := await store.asearch(namespace, limit=_PAGE, offset=offset):
        for item in page:
            yield item
        offset += len(page)


def read_text(path: Path) -> tuple[str, str]:
    """Return a file's text and an empty string, or an empty string and why it cannot be read."""
    try:
        if not path.is_file():
            return "", "not a file"
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
    except OSError:
        return "", "unreadable"
    if len(data) > _MAX_FILE_BYTES:
        return "", f"larger than {_MAX_FILE_BYTES // 1024} KiB"
    if b"\0" in data or not data.strip():
        return "", "binary" if data.strip() else "empty"
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return "", "not UTF-8"
    return text.replace("\r\n", "\n").replace("\r", "\n"), ""


def take_notes(file: str, text: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the notes on a text as pairs of key and value.

    They are a summary with the file's important terms, an outline of its names or headings, and
    one note for each passage. Every value has `file`, `line`, `kind`, `about` and `text`.
    """
    found = list(_passages(_lines(file, text)))
    names = [passage for passage in found if passage.kind in _NAMES]
    prose = [passage for passage in found if passage.kind not in _NAMES]
    first = (prose or names or [Passage(1, "text", "", "")])[0]
    summary = Passage(first.line, "summary", "", first.text)
    notes = [("summary", {"file": file, **summary._asdict(), "terms": _important_terms(prose)})]
    if names:
        outline = Passage(names[0].line, "outline", "", f"{len(names)} names")
        listed = [name._asdict() for name in names]
        notes.append(("outline", {"file": file, **outline._asdict(), "names": listed}))
    for number, passage in enumerate(prose, start=1):
        notes.append((f"passage-{number:04d}", {"file": file, **passage._asdict()}))
    return notes


def _important_terms(prose: Sequence[Passage], count: int = 8) -> list[str]:
    """Return the words used often, but not everywhere: term frequency by rarity, as in tf-idf."""
    passages = [[w for w in _words(p.text) if len(w) > 3 and w not in _UNSAID] for p in prose]
    uses = Counter(chain.from_iterable(passages))
    spread = Counter(chain.from_iterable(map(set, passages)))
    weight = {word: n * math.log((1 + len(prose)) / spread[word]) for word, n in uses.items()}
    return sorted(weight, key=lambda word: (-weight[word], word))[:count]


def _lines(file: str, text: str) -> list[Passage]:
    if file.lower().endswith(".py"):
        try:
            return list(_python_lines(text))
        except (tokenize.TokenError, SyntaxError):
            pass  # Not Python as this interpreter knows it: what it says can be read all the same.
    return list(_prose_lines(text, markdown=file.lower().endswith(".md")))


def _python_lines(text: str) -> Iterator[Passage]:
    """Yield definitions, and the lines of docstrings and of comments that stand alone."""
    scopes: list[tuple[int, str]] = []
    for statement in _statements(text):
        head = statement[0]
        line, column = head.start
        if head.type == tokenize.COMMENT:
            about = ".".join(name for indent, name in scopes if indent < column)
            yield Passage(line, "comment", about, head.string.lstrip("#:! "))
            continue
        while scopes and scopes[-1][0] >= column:
            scopes.pop()
        words = [token.string for token in statement[:3] if token.string != "async"]
        if words[0] in ("def", "class") and len(words) > 1:
            scopes.append((column, words[1]))
            yield Passage(line, "definition", ".".join(n for _, n in scopes), head.line)
        elif len(statement) == 1 and (match := _DOCSTRING.fullmatch(head.string)):
            about = ".".join(name for _, name in scopes)
            for number, content in enumerate(match[2].split("\n"), start=line):
                yield Passage(number, "docstring", about, content)


def _statements(text: str) -> Iterator[list[tokenize.TokenInfo]]:
    """Yield the tokens of each logical line; a comment on a line of its own comes alone."""
    statement: list[tokenize.TokenInfo] = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            if not token.line[: token.start[1]].strip():
                yield [token]
        elif token.type in (tokenize.NEWLINE, tokenize.ENDMARKER):
            if statement:
                yield statement
            statement = []
        elif token.type not in (tokenize.NL, tokenize.INDENT, tokenize.DEDENT):
            statement.append(token)


def _prose_lines(text: str, *, markdown: bool) -> Iterator[Passage]:
    """Yield the lines of a text with the heading above them; headings are `#` or underlined."""
    about, fenced = "", False
    for number, (line, below) in enumerate(pairwise([*text.split("\n"), ""]), start=1):
        fenced ^= line.lstrip().startswith("```")
        marked = _HEADING.fullmatch(line) if markdown and not fenced else None
        ruled = _RULE.fullmatch(below) and below[0] in "=-~^*+#"
        if marked or (ruled and line[:1].strip() and _words(line)):
            about = _printable(marked[1] if marked else line)[:_TITLE_LENGTH]
            yield Passage(number, "heading", about, about)
        elif not _RULE.fullmatch(line):
            yield Passage(number, "text", about, line)


def _passages(lines: Sequence[Passage]) -> Iterator[Passage]:
    """Join neighbouring lines of one paragraph, and leave out what says next to nothing."""
    block: Passage | None = None
    last = size = 0
    for number, kind, about, raw in lines:
        text = _printable(raw)
        fits = size + len(text) < _PASSAGE_LENGTH and number == last + 1 and kind not in _NAMES
        if block and text and fits and block[1:3] == (kind, about):
            block = block._replace(text=f"{block.text} {text}")
        else:
            yield from _worth_keeping(block)
            block = Passage(number, kind, about, text) if text else None
        last, size = number, len(block.text) if block else 0
    yield from _worth_keeping(block)


def _worth_keeping(block: Passage | None) -> Iterator[Passage]:
    fewest = {"comment": 4, "docstring": 2, "text": 2}  # Short comments explain only their line.
    if block and len(block.text.split()) >= fewest.get(block.kind, 1):
        for text in textwrap.wrap(block.text, _PASSAGE_LENGTH):
            yield block._replace(text=text)


def _printable(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def answer_from(question: str, notes: Sequence[Mapping[str, Any]]) -> Answer:
    """Return the passages of `notes` that answer `question` best, at most two of one file.

    Passages are ranked by BM25, by how many of the question's words they hold, and by kind.
    """
    question = question.strip() or _question_about(notes)
    quotable = [
        (note["file"], Passage(*(passage[field] for field in Passage._fields)))
        for note in notes
        for passage in note.get("names", [note])
        if passage["kind"] in _WEIGHTS
    ]
    scores = _scores(sorted(set(_stems(question))), [passage for _, passage in quotable])
    ranked = sorted(zip(scores, quotable, strict=True), key=lambda pair: (-pair[0], pair[1]))
    citations: list[Citation] = []
    quoted: Counter[str] = Counter()
    for score, (file, (line, _, about, text)) in ranked:
        if score > 0 and quoted[file] < 2 and not quoted[text] and len(citations) < _CITATIONS:
            quoted.update((file, text))
            citations.append(Citation(file=file, line=line, about=about, text=text))
    return Answer(question=question, citations=citations)


def _question_about(notes: Sequence[Mapping[str, Any]]) -> str:
    files = Counter(term for note in notes for term in note.get("terms", ()))
    terms = sorted(files, key=lambda term: (-files[term], term))[:3]
    return f"What is said about {', '.join(terms)}?" if terms else "What is said?"


def _scores(wanted: Sequence[str], passages: Sequence[Passage]) -> list[float]:
    bags = [Counter(_stems(f"{passage.about} {passage.text}")) for passage in passages]
    usual = sum(bag.total() for bag in bags) / max(len(bags), 1) or 1.0
    spread = {word: sum(word in bag for bag in bags) for word in wanted}
    rarity = {word: math.log(1 + (len(bags) - n + 0.5) / (n + 0.5)) for word, n in spread.items()}

    def score(passage: Passage, bag: Counter[str]) -> float:
        damping = 1.2 * (0.6 + 0.4 * bag.total() / usual)  # BM25, with k1 = 1.2 and b = 0.4
        held = [word for word in wanted if word in bag]
        total = sum(rarity[word] * bag[word] * 2.2 / (bag[word] + damping) for word in held)
        return total * len(held) / len(wanted) * _WEIGHTS[passage.kind]

    return [score(*pair) if wanted else 0.0 for pair in zip(passages, bags, strict=True)]


def _words(text: str) -> list[str]:
    """Return the words of a text in lower case; `some_name` and `someName` are two words."""
    return _WORD.findall(_CAMEL.sub(" ", text).lower())


def _stems(text: str) -> list[str]:
    """Return the stems of meaningful words: `cancelled` and `cancellation` have the same."""
    meant = (word for word in _words(text) if word not in _UNSAID)
    return [(word[:-1] if re.search(r"\w\w[^s]s$", word) else word)[:6] for word in meant]
