"""The TLS identity of a cluster's servers."""

from __future__ import annotations

import contextlib
import os
import ssl
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from msgspec import Struct

from flowgentic_actors.secret import Secret


class Identity(Struct, frozen=True):
    """The certificate and key of a cluster's servers.

    Attributes:
        certificate: PEM; public.
        key: PEM; secret: its owner can pass for the cluster.
    """

    certificate: str
    key: Secret[str]

    def __repr__(self) -> str:
        return "<Identity>"

    def __rich_repr__(self) -> list[tuple[str, Any]]:  # the inherited one shows every field
        return []


def server_context(identity: Identity, folder: Path) -> ssl.SSLContext:
    """The TLS context of a server. Blocks.

    Args:
        identity: The cluster's certificate and key.
        folder: Private; where the kernel has no files without a name, one with the key is there for
            a moment, because `ssl` reads files only.

    Raises:
        OSError: If the file cannot be written, or certificate and key are none.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0  # no client resumes; a ticket that it never reads would spoil its close
    with _file_of(identity, folder) as path:
        context.load_cert_chain(path)
    return context


@contextlib.contextmanager
def _file_of(identity: Identity, folder: Path) -> Iterator[str]:
    """A file with certificate and key: in memory only, where the kernel can."""
    if hasattr(os, "memfd_create"):
        descriptor, path = os.memfd_create("identity"), ""
    else:
        descriptor, path = tempfile.mkstemp(dir=folder, prefix="identity-")  # mode 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write((identity.certificate + identity.key.reveal()).encode())
            file.flush()
            yield path or f"/proc/self/fd/{descriptor}"
    finally:
        if path:
            Path(path).unlink()
