"""The memory itself: threads and items. Pure, synchronous, deterministic; no I/O, no clock."""

from flowgentic_actors.engine.shard import Shard

__all__ = ["Shard"]
