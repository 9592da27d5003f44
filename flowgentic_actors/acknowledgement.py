"""The values of the setting `ack`: what is true of a write once it is acknowledged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

AckName = Literal["node", "disk", "replica"]


class Ack(NamedTuple):
    """What a write survives once it is acknowledged, beside the death of any process.

    Attributes:
        durable: The loss of power: its journal entry is synced to the disk.
        waits_for_follower: The loss of its node: its shard's follower has it too.
    """

    durable: bool = False
    waits_for_follower: bool = False


ACKS: Final[Mapping[AckName, Ack]] = {
    "node": Ack(),
    "disk": Ack(durable=True),
    "replica": Ack(waits_for_follower=True),
}
