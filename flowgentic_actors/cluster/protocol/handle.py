"""Handles and descriptors: how another process finds a cluster."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path

import msgspec

from flowgentic_actors.environment import machine
from flowgentic_actors.errors import ClusterNotFoundError, UntrustedPathError
from flowgentic_actors.secret import Secret, concealed, revealed
from flowgentic_actors.storage.private_files import read_private, trusted_path, write_private
from flowgentic_actors.wire.addresses import Address, TcpAddress

_EXPORT_PREFIX = "flowgentic:"


class Descriptor(msgspec.Struct, frozen=True, kw_only=True):
    """The content of a cluster's descriptor file. It holds the secret: never print or log it.

    Attributes:
        name: Name of the cluster.
        host: Path of the host's Unix socket.
        machine: The machine that it is on, as `environment.machine` names it; empty for this one.
        remote: Where other machines reach the host, None for nowhere.
        secret: The cluster's secret.
        max_message_bytes: Largest message its actors take.
    """

    name: str
    host: str
    secret: Secret[bytes]
    max_message_bytes: int
    machine: str = ""
    remote: TcpAddress | None = None

    @property
    def address(self) -> Address:
        """The address at which this machine reaches the host."""
        if self.remote is None or self.machine in ("", machine()):
            return self.host
        return self.remote

    def encode(self) -> bytes:
        """The content of the descriptor file."""
        return msgspec.json.encode(self, enc_hook=revealed)

    def write(self, path: Path) -> None:
        """Write the descriptor file, readable by this user alone."""
        write_private(path, Secret(self.encode()))


@dataclass(frozen=True)
class ClusterHandle:
    """Names a cluster to `MemoryCluster.attach`, from any process of this user.

    Small, frozen, picklable. It holds the path of the descriptor file and no secret.

    Attributes:
        name: Name of the cluster.
        descriptor: Path of its descriptor file.
    """

    name: str
    descriptor: str

    def read(self) -> Descriptor:
        """Read the descriptor file.

        Raises:
            ClusterNotFoundError: If it is gone, or not private to this user.
        """
        path = Path(self.descriptor)
        try:
            data = Secret(read_private(trusted_path(path), secret=True))
        except UntrustedPathError as error:
            raise ClusterNotFoundError(str(error)) from error
        except OSError as error:
            raise ClusterNotFoundError(
                f"the cluster {self.name!r} is not there: {error}. It was closed, or runs on "
                "another node"
            ) from error
        return _decode(data, str(path))

    def export(self) -> str:
        """A string to attach by that *contains the secret*: never log it."""
        return _EXPORT_PREFIX + base64.urlsafe_b64encode(self.read().encode()).decode()


def is_export(text: str) -> bool:
    """Whether a string is an exported handle."""
    return text.startswith(_EXPORT_PREFIX)


def read_export(text: Secret[str]) -> Descriptor:
    """The descriptor in an exported handle.

    Raises:
        ClusterNotFoundError: If it is not one.
    """
    try:
        data = Secret(base64.urlsafe_b64decode(text.reveal().removeprefix(_EXPORT_PREFIX)))
    except ValueError:  # it would come with its frames, which have the text
        raise ClusterNotFoundError("the exported handle is cut or mistyped") from None
    return _decode(data, "the exported handle")


def _decode(data: Secret[bytes], source: str) -> Descriptor:
    try:
        return msgspec.json.decode(data.reveal(), type=Descriptor, dec_hook=concealed)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ClusterNotFoundError(f"{source} does not describe a cluster: {error}") from error
