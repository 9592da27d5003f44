"""A local cluster whose commands and replies are encoded and decoded as on their way to an actor.

A local shard takes commands as they are. What only an encoder or a decoder would refuse shows here.
"""

from __future__ import annotations

import msgspec

from flowgentic_actors import MemoryCluster
from flowgentic_actors.cluster.client.inline import InlineClient
from flowgentic_actors.engine.commands import Command
from flowgentic_actors.engine.limits import UNFIT, encode
from flowgentic_actors.engine.replies import Reply

_command = msgspec.msgpack.Decoder(Command).decode
_reply: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)
_encode_reply = msgspec.msgpack.Encoder().encode


def wire(memory: MemoryCluster) -> None:
    """Encode and decode everything between a local cluster's adapters and its shard."""
    client = memory.client
    assert isinstance(client, InlineClient)
    ask = client.ask_sync

    def asked(command: Command) -> Reply:
        try:
            arrived = _command(encode(command))
        except UNFIT as error:
            raise AssertionError(
                f"nothing refused a command that cannot be sent: {error}"
            ) from error
        return _reply.decode(_encode_reply(ask(arrived)))

    client.ask_sync = asked  # type: ignore[method-assign]
