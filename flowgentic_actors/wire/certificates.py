"""A cluster's certificate and key, which its servers show to those who dial over TCP."""

from __future__ import annotations

import datetime as dt
import os
import ssl
import tempfile
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from msgspec import Struct

from flowgentic_actors.wire.addresses import SERVER_NAME

_CLOCKS_DIFFER = dt.timedelta(days=1)
_VALID = dt.timedelta(days=3650)  # it ends with its cluster, whose job may be long


class Identity(Struct, frozen=True):
    """What a cluster's servers prove themselves with.

    Attributes:
        certificate: PEM; everybody may know it.
        key: PEM; whoever has it is the cluster.
    """

    certificate: str
    key: str

    def __repr__(self) -> str:
        return "<Identity>"

    def __rich_repr__(self) -> list[tuple[str, Any]]:  # the inherited one shows every field
        return []


def new_identity() -> Identity:
    """A key that was never used before, and a certificate that it signed itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, SERVER_NAME)])
    begins = dt.datetime.now(dt.UTC) - _CLOCKS_DIFFER
    subject = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(begins + _VALID)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(SERVER_NAME)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(subject, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(subject), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    return Identity(
        certificate.public_bytes(serialization.Encoding.PEM).decode(),
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ).decode(),
    )


def server_context(identity: Identity, folder: Path) -> ssl.SSLContext:
    """What a server needs to accept connections over TCP. Blocks.

    Args:
        identity: The cluster's certificate and key.
        folder: Private; a file with the key is there for a moment, because `ssl` reads files only.

    Raises:
        OSError: If the file cannot be written, or certificate and key are none.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0  # nobody resumes; what a client never reads would spoil its close
    descriptor, path = tempfile.mkstemp(dir=folder, prefix="identity-")  # mode 0600
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(identity.certificate + identity.key)
        context.load_cert_chain(path)
    finally:
        Path(path).unlink()
    return context
