"""Settings of shard actors, from names of single settings."""

from __future__ import annotations

from typing import Any

from flowgentic_actors.acknowledgement import ACKS, AckName
from flowgentic_actors.shard.settings import ActorSettings, JournalSettings


def actor_settings(ack: AckName = "node", **changes: Any) -> ActorSettings:
    """Settings of an actor, with some of the journal's fields, or its own, changed."""
    journal = {
        name: changes.pop(name) for name in JournalSettings.__struct_fields__ if name in changes
    }
    return ActorSettings(journal=JournalSettings(ack=ACKS[ack], **journal), **changes)
