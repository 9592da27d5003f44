"""A cipher for tests."""

from __future__ import annotations

from langgraph.checkpoint.serde.base import CipherProtocol


class Shift(CipherProtocol):
    """A toy cipher."""

    def encrypt(self, plaintext: bytes) -> tuple[str, bytes]:
        return "shift", bytes((byte + 1) % 256 for byte in plaintext)

    def decrypt(self, ciphername: str, ciphertext: bytes) -> bytes:
        assert ciphername == "shift"
        return bytes((byte - 1) % 256 for byte in ciphertext)
