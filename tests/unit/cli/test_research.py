"""The research team of the demo, on LangGraph's own in-memory saver and store."""

import asyncio
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import RunnableConfig, RunnableLambda
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.store.memory import InMemoryStore

from flowgentic_actors.cli import research
from flowgentic_actors.cli.models import NoModelError, load_model

TIDES = '''"""How the tides are computed."""


class Tide:
    """High and low water at one harbour.

    The moon pulls harder than the sun does.
    """

    # Spring tides follow the full moon
    # by about two days.
    async def height(self):
        text = "not a note"
        return text  # not a note either, whatever it says


def moor():
    pass
'''
HARBOUR = """Harbour handbook
================

Boats wait outside the harbour until the tide is high.

# Fees

Every boat pays four coins
for each night.

```
# not a heading
```
"""
FILES = {
    "code/tides.py": TIDES,
    "harbour.md": HARBOUR,
    "harbour_md": "A file whose name is nearly another's.",
    "log.txt": "Nothing happened today.\r\n\r\nA lantern was stolen.\r\n",
    "broken.py": "def (:\n\nThe gulls are loud at dawn.\n",
}
QUESTION = "How much does a boat pay for the night?"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text.encode())
    return tmp_path


def notes_on(file: str) -> dict[str, Any]:
    return dict(research.take_notes(file, FILES[file]))


def passages_of(file: str) -> list[tuple[int, str, str]]:
    notes = notes_on(file)
    return [(n["line"], n["about"], n["text"]) for k, n in notes.items() if k.startswith("passage")]


async def study(
    root: Path, files: list[str], question: str = QUESTION, readers: int = 2
) -> tuple[dict[str, Any], InMemoryStore, list[Any]]:
    store = InMemoryStore()
    graph = research.build_research_team().compile(checkpointer=InMemorySaver(), store=store)
    config: RunnableConfig = {"configurable": {"thread_id": "t"}}
    given = research.new_study(root, files, question, readers)
    events = [e async for e in graph.astream(given, config, stream_mode="custom")]
    state = await graph.aget_state(config)
    assert state.next == ()
    return state.values, store, events


def test_notes_on_python_cite_the_lines_of_docstrings_and_comments() -> None:
    assert passages_of("code/tides.py") == [
        (1, "", "How the tides are computed."),
        (5, "Tide", "High and low water at one harbour."),
        (7, "Tide", "The moon pulls harder than the sun does."),
        (10, "Tide", "Spring tides follow the full moon by about two days."),
    ]
    assert [(n["line"], n["about"]) for n in notes_on("code/tides.py")["outline"]["names"]] == [
        (4, "Tide"),
        (12, "Tide.height"),
        (17, "moor"),
    ]


def test_notes_on_markdown_cite_paragraphs_under_their_heading() -> None:
    assert [(n["line"], n["about"]) for n in notes_on("harbour.md")["outline"]["names"]] == [
        (1, "Harbour handbook"),
        (6, "Fees"),
    ]
    assert passages_of("harbour.md")[:2] == [
        (4, "Harbour handbook", "Boats wait outside the harbour until the tide is high."),
        (8, "Fees", "Every boat pays four coins for each night."),
    ]


def test_python_that_does_not_parse_is_read_as_prose() -> None:
    assert (3, "", "The gulls are loud at dawn.") in passages_of("broken.py")


def test_the_summary_names_important_terms() -> None:
    text = "The lantern is lit.\n\nA lantern was sold.\n\nThe dog is old.\n"
    summary = dict(research.take_notes("a.txt", text))["summary"]
    assert summary["text"] == "The lantern is lit."
    assert summary["terms"][0] == "lantern"


def test_long_lines_and_control_characters_are_tamed() -> None:
    notes = research.take_notes("a.txt", "\x1b[31mred " + "word " * 500)
    texts = [value["text"] for key, value in notes if key.startswith("passage")]
    assert len(texts) > 5
    assert all(len(text) <= 400 and text.isprintable() for text in texts)
    assert " ".join(texts).count("word") == 500


@pytest.mark.parametrize("file", ["a.md", "a.py", "a.rst"])
@pytest.mark.parametrize(
    "text", ["", "\n\n", "=" * 9, "#", "# \n===\n", '"""', "(", "\\", "\t x\n y"]
)
def test_any_text_can_be_read(file: str, text: str) -> None:
    notes = dict(research.take_notes(file, text))
    assert notes["summary"]["file"] == file


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"fine", ""),
        (b"\xef\xbb\xbffine", ""),
        (b" \n", "empty"),
        (b"a\0b", "binary"),
        (b"caf\xe9", "not UTF-8"),
        (b"x" * (512 * 1024 + 1), "larger than 512 KiB"),
    ],
)
def test_reading_says_why_a_file_is_no_text(tmp_path: Path, data: bytes, problem: str) -> None:
    path = tmp_path / "file.txt"
    path.write_bytes(data)
    assert research.read_text(path) == ("" if problem else "fine", problem)


def test_reading_what_is_no_file(tmp_path: Path) -> None:
    assert research.read_text(tmp_path) == ("", "not a file")
    assert research.read_text(tmp_path / "missing.txt") == ("", "not a file")


def test_namespaces_are_valid_and_unique() -> None:
    names = ["a.b", "a_b", "a%2Eb", "a/b", "a.b/c"]
    namespaces = [research.note_namespace("reader-1", name) for name in names]
    assert len(set(namespaces)) == len(names)
    assert not any("." in label or not label for namespace in namespaces for label in namespace)


@pytest.mark.anyio
async def test_the_answer_cites_file_and_line(folder: Path) -> None:
    state, _, _ = await study(folder, list(FILES))
    assert state["answer"]["question"] == QUESTION
    assert state["answer"]["citations"][0] == {
        "file": "harbour.md",
        "line": 8,
        "about": "Fees",
        "text": "Every boat pays four coins for each night.",
    }


@pytest.mark.anyio
async def test_every_citation_stands_where_it_says(folder: Path) -> None:
    state, _, _ = await study(folder, list(FILES), "tides moon boats lantern Tide.height")
    citations = state["answer"]["citations"]
    assert len(citations) >= 4
    for citation in citations:
        lines = FILES[citation["file"]].splitlines()
        assert citation["text"].split()[0] in lines[citation["line"] - 1]


@pytest.mark.anyio
async def test_a_definition_can_be_asked_for(folder: Path) -> None:
    state, _, _ = await study(folder, list(FILES), "Where is moor defined?")
    assert state["answer"]["citations"][0]["file"] == "code/tides.py"
    assert state["answer"]["citations"][0]["line"] == 17


@pytest.mark.anyio
@pytest.mark.parametrize("question", ["", "  "])
async def test_without_a_question_the_common_terms_are_asked_for(
    folder: Path, question: str
) -> None:
    state, _, _ = await study(folder, list(FILES), question)
    assert state["answer"]["question"].startswith("What is said about ")
    assert state["answer"]["citations"]


@pytest.mark.anyio
@pytest.mark.parametrize("question", ["xyzzy", "the", "?!"])
async def test_a_question_the_notes_say_nothing_about(folder: Path, question: str) -> None:
    state, _, _ = await study(folder, list(FILES), question)
    assert state["answer"] == {"question": question, "citations": []}


@pytest.mark.anyio
async def test_each_reader_keeps_its_own_notes(folder: Path) -> None:
    state, store, _ = await study(folder, list(FILES), readers=2)
    files = {1: {"code/tides.py", "harbour_md", "broken.py"}, 2: {"harbour.md", "log.txt"}}
    for number, expected in files.items():
        items = await store.asearch(("research", f"reader-{number}"), limit=1000)
        assert {item.value["file"] for item in items} == expected
        for item in items:
            namespace = research.note_namespace(f"reader-{number}", item.value["file"])
            assert item.namespace == namespace
    counted = sum(report["notes"] for report in state["reports"])
    assert counted == len(await store.asearch(("research",), limit=1000))


@pytest.mark.anyio
async def test_events_tell_every_note_and_its_digest(folder: Path) -> None:
    state, store, events = await study(folder, list(FILES))
    notes = [event for event in events if "digest" in event]
    for note in notes:
        item = await store.aget(note["namespace"], note["key"])
        assert item is not None
        assert research.digest(item.value) == note["digest"]
    reports = [event for event in events if "digest" not in event]
    assert len(notes) == sum(report["notes"] for report in reports)
    assert sorted(r["file"] for r in reports) == sorted(r["file"] for r in state["reports"])


@pytest.mark.anyio
async def test_files_that_are_no_text_are_reported_and_skipped(folder: Path) -> None:
    (folder / "bad.txt").write_bytes(b"a\0b")
    state, store, _ = await study(folder, ["bad.txt", "harbour.md", "gone.txt"])
    assert {report["file"]: report["problem"] for report in state["reports"]} == {
        "bad.txt": "binary",
        "harbour.md": "",
        "gone.txt": "not a file",
    }
    items = await store.asearch(("research",), limit=1000)
    assert {item.value["file"] for item in items} == {"harbour.md"}
    assert state["answer"]["citations"][0]["line"] == 8


@pytest.mark.anyio
async def test_readers_work_in_parallel_round_after_round(folder: Path) -> None:
    class Meeting(InMemoryStore):
        """Lets nobody write in a round before every reader of that round has come."""

        def __init__(self) -> None:
            super().__init__()
            self.come: set[str] = set()
            self.all_here = asyncio.Event()

        async def aput(self, namespace: tuple[str, ...], *args: Any, **kwargs: Any) -> None:
            self.come.add(namespace[1])
            if len(self.come) == 3:
                self.all_here.set()
            await asyncio.wait_for(self.all_here.wait(), 10)
            await super().aput(namespace, *args, **kwargs)

    saver = InMemorySaver()
    graph = research.build_research_team().compile(checkpointer=saver, store=Meeting())
    config: RunnableConfig = {"configurable": {"thread_id": "t"}}
    await graph.ainvoke(research.new_study(folder, list(FILES), QUESTION, readers=3), config)
    steps = [snapshot.next async for snapshot in graph.aget_state_history(config)][::-1]
    three, two = ("reader",) * 3, ("reader",) * 2
    assert steps == [
        ("__start__",), ("lead",), three, ("lead",), two, ("lead",), ("librarian",), (),
    ]  # fmt: skip


@pytest.mark.anyio
async def test_the_same_files_give_the_same_answer(folder: Path) -> None:
    first, second = [await study(folder, list(FILES)) for _ in range(2)]
    assert first[0] == second[0]


@pytest.mark.anyio
async def test_the_answer_does_not_depend_on_the_readers_or_the_order(folder: Path) -> None:
    few, _, _ = await study(folder, list(FILES), readers=1)
    many, _, _ = await study(folder, list(FILES)[::-1], readers=5)
    assert few["answer"] == many["answer"]


@pytest.mark.anyio
async def test_the_librarian_turns_every_page() -> None:
    store = InMemoryStore()
    for number in range(450):
        await store.aput(("research", "reader-1", "f"), f"{number:03}", {"number": number})
    await store.aput(("elsewhere",), "key", {"number": -1})
    numbers = [note.value["number"] async for note in research.all_notes(store)]
    assert sorted(numbers) == list(range(450))


@pytest.mark.anyio
async def test_without_a_store_it_says_so(folder: Path) -> None:
    graph = research.build_research_team().compile()
    with pytest.raises(ValueError, match="store"):
        await graph.ainvoke(research.new_study(folder, ["log.txt"]))


def test_a_team_needs_a_reader(folder: Path) -> None:
    with pytest.raises(ValueError, match="at least one reader"):
        research.new_study(folder, [], readers=0)


# ---------------------------------------------------------------------- a model


@pytest.mark.anyio
async def test_a_model_writes_the_answer_from_the_passages(tmp_path: Path) -> None:
    (tmp_path / "tea.txt").write_text("Tea is brewed with boiling water.\n")
    asked: list[str] = []

    def model(messages: list[BaseMessage]) -> AIMessage:
        asked.extend(str(message.content) for message in messages)
        return AIMessage("With boiling water (tea.txt:1).")

    team = research.build_research_team(RunnableLambda(model))
    graph = team.compile(store=InMemoryStore())
    study = research.new_study(tmp_path, ["tea.txt"], "How is tea brewed?")
    answer = (await graph.ainvoke(study))["answer"]
    assert answer["written"] == "With boiling water (tea.txt:1)."
    assert answer["citations"][0]["file"] == "tea.txt"
    assert "How is tea brewed?" in asked[1]
    assert "tea.txt:1\nTea is brewed with boiling water." in asked[1]


def test_a_model_that_cannot_be_had_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "langchain.chat_models", None)
    with pytest.raises(NoModelError, match="pip install langchain"):
        load_model("openai:gpt-4o-mini")

    def init(name: str) -> None:
        raise ValueError(f"no key for {name}")

    monkeypatch.setitem(sys.modules, "langchain.chat_models", SimpleNamespace(init_chat_model=init))
    with pytest.raises(NoModelError, match="no key for openai:x"):
        load_model("openai:x")
