"""The engine: threads and items in memory. Synchronous and deterministic; no I/O, no clock."""

from flowgentic_actors.engine.shard import Shard

__all__ = ["Shard"]
