"""What the package shows, and what importing it costs."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

import flowgentic_actors
from flowgentic_actors import errors

ROOT = str(Path(__file__).parents[2])


def test_everything_exported_is_there_and_nothing_else_is_public() -> None:
    exported = flowgentic_actors.__all__

    assert exported == sorted(set(exported))
    assert set(flowgentic_actors._HOMES) == set(exported)
    for name in exported:
        thing = getattr(flowgentic_actors, name)
        assert thing.__name__ == name
        assert thing.__module__ == f"flowgentic_actors.{flowgentic_actors._HOMES[name]}"
        assert thing.__doc__
    assert set(exported) <= set(dir(flowgentic_actors))


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="MemoryClutser"):
        _ = flowgentic_actors.MemoryClutser


def test_a_star_import_gives_what_is_exported() -> None:
    names: dict[str, object] = {}
    exec("from flowgentic_actors import *", names)

    assert set(flowgentic_actors.__all__) <= set(names)


def modules_after(program: str) -> set[str]:
    """Top-level packages that a fresh Python has imported after a program."""
    report = "import sys; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {ROOT!r}); {program}; {report}"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return set(done.stdout.split())


def test_importing_the_package_imports_nothing_heavy() -> None:
    heavy = {"langgraph", "langchain_core", "pydantic", "dragon", "msgspec", "anyio", "asyncio"}

    assert not modules_after("import flowgentic_actors") & heavy


PROGRAMS = [
    "cluster.host.host",
    "cluster.nodes.agent",
    "actors.process",
    "shard.replication.replica_actor",
]


@pytest.mark.parametrize("program", PROGRAMS)
def test_hosts_and_actors_start_without_what_only_their_openers_need(program: str) -> None:
    imported = modules_after(f"import flowgentic_actors.{program}")

    assert not imported & {"langgraph", "langchain_core", "pydantic", "dragon", "cryptography"}


def test_every_error_can_be_imported_from_the_package() -> None:
    classes = {name for name, _ in inspect.getmembers(errors, inspect.isclass)}

    assert classes <= set(flowgentic_actors.__all__)


def test_the_package_is_the_command_as_well() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "flowgentic_actors", "dump", "/nosuch/memory"],
        env={**os.environ, "PYTHONPATH": ROOT},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert "flowgentic-actors dump: /nosuch/memory is not there" in done.stderr


def test_every_error_has_one_root_and_its_place_in_the_tree() -> None:
    classes = [c for _, c in inspect.getmembers(errors, inspect.isclass)]

    assert all(issubclass(c, errors.FlowgenticError) for c in classes)
    for each in classes:
        assert each.__doc__
        assert each.__name__ in (errors.__doc__ or "")
