"""What proves that somebody may use a cluster is in nothing that is printed, logged or pickled."""

from __future__ import annotations

import copy
import dataclasses
import io
import pickle
from pathlib import Path
from traceback import TracebackException
from typing import Any

import msgspec
import pytest
from pydantic import ValidationError
from rich import inspect
from rich.console import Console
from rich.pretty import pretty_repr
from rich.traceback import Traceback

from flowgentic_actors import MemoryCluster
from flowgentic_actors.cluster.client.attaching import find_cluster, kept
from flowgentic_actors.cluster.opener.rendezvous import FirstRank, Note
from flowgentic_actors.cluster.protocol.handle import ClusterHandle, Descriptor
from flowgentic_actors.environment import DESCRIPTOR_VARIABLE
from flowgentic_actors.errors import ClusterNotFoundError
from flowgentic_actors.secret import Secret, concealed, revealed
from flowgentic_actors.wire.certificates import new_identity
from flowgentic_actors.wire.handshake import ServerHandshake, knock

WORD = "open sesame"
SECRET = Secret(WORD.encode())


class Plain(msgspec.Struct):
    secret: bytes
    key: str


class Kept(msgspec.Struct):
    secret: Secret[bytes]
    key: Secret[str]


@dataclasses.dataclass
class Settings:
    name: str
    secret: Secret[bytes]


DESCRIPTOR = Descriptor(name="a", host="/a/host.sock", secret=SECRET, max_message_bytes=1)


def shown(thing: object) -> str:
    """All that prints it."""
    console = Console(file=io.StringIO(), width=200)
    inspect(thing, console=console, all=True)
    assert isinstance(console.file, io.StringIO)
    return f"{thing} {thing!r} {pretty_repr(thing)} {[thing]} {console.file.getvalue()}"


@pytest.mark.parametrize(
    "thing",
    [
        SECRET,
        Secret(WORD),
        Kept(SECRET, Secret(WORD)),
        DESCRIPTOR,
        Note(first=FirstRank(machine="a", pid=1, started=1), descriptor=DESCRIPTOR),
        Settings("a", SECRET),
        dataclasses.asdict(Settings("a", SECRET)),
        msgspec.structs.asdict(DESCRIPTOR),
        copy.copy(SECRET),
    ],
)
def test_nothing_shows_it(thing: object) -> None:
    assert WORD not in shown(thing)
    assert "<secret>" in shown(thing)


def test_a_private_key_is_not_shown() -> None:
    identity = new_identity()
    assert "PRIVATE" not in shown(identity)
    assert "PRIVATE" not in shown(identity.key)
    assert "PRIVATE" in identity.key.reveal()


def test_a_traceback_with_locals_does_not_show_it() -> None:
    def fail(secret: Secret[bytes], descriptor: Descriptor) -> None:
        handshake = ServerHandshake(secret)
        handshake.feed(knock(secret))

    console = Console(file=io.StringIO(), width=200)
    try:
        fail(SECRET, DESCRIPTOR)
    except Exception as error:
        console.print(Traceback.from_exception(type(error), error, None, show_locals=True))
        console.print(
            Traceback.from_exception(
                type(error), error, error.__traceback__, show_locals=True, locals_max_string=10_000
            )
        )
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "handshake = " in text
    assert "<secret>" in text
    assert WORD not in text


def test_an_exported_handle_is_not_shown_by_who_attaches_with_it(tmp_path: Path) -> None:
    path = tmp_path / "cluster.json"
    DESCRIPTOR.write(path)
    export = ClusterHandle("a", str(path)).export()
    memory = MemoryCluster.attach(f"  {export}\n")
    inside = export[20:60]
    assert inside not in f"{vars(memory)} {shown(memory)}"
    found = find_cluster(kept(f"  {export}\n"), None)
    assert found.descriptor == DESCRIPTOR
    cut = Secret(export[:-1])
    with pytest.raises(ClusterNotFoundError, match="cut or mistyped") as raised:
        find_cluster(cut, None)
    console = Console(file=io.StringIO(), width=200)
    console.print(
        Traceback.from_exception(
            raised.type, raised.value, raised.tb.tb_next, show_locals=True, locals_max_string=10_000
        )
    )
    assert isinstance(console.file, io.StringIO)
    assert "<secret>" in console.file.getvalue()
    assert inside not in console.file.getvalue()


def test_an_exported_handle_in_the_place_of_a_path_is_in_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cluster.json"
    DESCRIPTOR.write(path)
    export = ClusterHandle("a", str(path)).export()
    assert find_cluster(kept(Path(export)), None).descriptor == DESCRIPTOR
    monkeypatch.setenv(DESCRIPTOR_VARIABLE, export)
    with pytest.raises(ClusterNotFoundError, match="is an exported handle") as raised:
        find_cluster(None, None)
    assert export[20:60] not in str(raised.value)


def test_a_traceback_with_locals_shows_a_cluster_whose_settings_are_refused() -> None:
    with pytest.raises(ValidationError) as raised:
        MemoryCluster(name="Not A Name")
    text = "".join(TracebackException.from_exception(raised.value, capture_locals=True).format())
    assert "MemoryCluster object at" in text


def test_on_the_wire_and_in_files_it_is_as_before() -> None:
    kept, plain = Kept(SECRET, Secret(WORD)), Plain(WORD.encode(), WORD)
    for format_ in (msgspec.json, msgspec.msgpack):
        coding: Any = format_
        encoded = coding.encode(kept, enc_hook=revealed)
        assert encoded == coding.encode(plain)
        assert coding.decode(encoded, type=Kept, dec_hook=concealed) == kept
        with pytest.raises(TypeError):
            coding.encode(kept)


def test_it_is_not_pickled_and_equal_to_its_like() -> None:
    with pytest.raises(TypeError, match="handle"):
        pickle.dumps({"secret": SECRET})
    assert Secret(WORD.encode()) == SECRET != Secret(b"another")
    assert WORD.encode() != SECRET
    assert copy.deepcopy(SECRET) is SECRET
    assert len({Secret(1), Secret(1)}) == 1
