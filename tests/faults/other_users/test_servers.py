"""A server of another user, where ours would listen, is sent nothing."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from pathlib import Path

import pytest
from msgspec import Raw

from flowgentic_actors import UntrustedPathError
from flowgentic_actors.actors.link import SupervisorLink
from flowgentic_actors.actors.spec import ActorSpec, ChildSpec
from flowgentic_actors.secret import Secret
from flowgentic_actors.wire.addresses import connect, dial
from tests.support.counter import supervisor_settings
from tests.support.users import MALLORY, NEEDS_OTHER_USERS, User

pytestmark = NEEDS_OTHER_USERS
SECRET = b"s" * 32


def serve(path: Path, clients: int) -> list[bytes]:
    """Listen where ann's server would; what each client has sent."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        path.chmod(0o777)
        server.listen()
        server.settimeout(20)
        return [_all_of(server.accept()[0]) for _ in range(clients)]


def _all_of(sock: socket.socket) -> bytes:
    with sock:
        sock.settimeout(5)
        data = b""
        with contextlib.suppress(OSError):
            while more := sock.recv(4096):
                data += more
        return data


def dial_blocking(path: str) -> None:
    connect(path, Secret(SECRET), 2.0).close()


def dial_async(path: str) -> None:
    async def run() -> None:
        (await dial(asyncio.get_running_loop(), path)).close()

    asyncio.run(run())


def link_to_supervisor(path: str) -> None:
    spec = ActorSpec(
        child=ChildSpec(name="actor", factory="", arguments=Raw(b"{}"), address=""),
        epoch=1,
        supervisor=path,
        secret=Secret(SECRET),
        settings=supervisor_settings(),
    )
    SupervisorLink(spec).await_admission()


def test_nothing_is_sent_to_a_server_of_somebody_elses(
    shared: Path, ann: User, mallory: User
) -> None:
    dials = [dial_blocking, dial_async, link_to_supervisor]
    path = shared / "host.sock"
    mallory.begins(serve, path, len(dials))
    while not path.exists():
        time.sleep(0.01)
    time.sleep(0.1)  # until it listens
    for dial_it in dials:
        with pytest.raises(UntrustedPathError, match=f"runs as user {MALLORY}"):
            ann.does(dial_it, str(path))
    assert mallory.has_done() == [b"", b"", b""]
