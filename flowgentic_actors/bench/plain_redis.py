"""A minimal saver and store over a plain Redis: a bound for any saver over Redis.

This is no saver to use: nothing is ever listed, filtered or expired, and the sync forms are
missing. It is here as a bound in Redis' favour. Every call is one round trip: writes are one
pipeline, reads one script on the server.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    get_checkpoint_metadata,
)
from langgraph.store.base import GetOp, Item, Op, PutOp, Result, SearchItem, SearchOp
from langgraph.store.base.batch import AsyncBatchedBaseStore
from msgspec import Struct

_GET: Final = """
local id = ARGV[1]
if id == '' then
  id = redis.call('GET', KEYS[1] .. ':latest')
  if not id then return false end
end
local row = redis.call('HMGET', KEYS[1] .. ':c:' .. id, 'body', 'metadata', 'parent', 'values')
if not row[1] then return false end
local keys, values = {}, {}
for _, pair in ipairs(cjson.decode(row[4])) do keys[#keys + 1] = pair[2] end
if #keys > 0 then values = redis.call('MGET', unpack(keys)) end
local writes = redis.call('HVALS', KEYS[1] .. ':w:' .. id)
return {id, row[1], row[2], row[3], row[4], values, writes}
"""

_SEARCH: Final = """
local found = redis.call('ZRANGE', KEYS[1], ARGV[1], ARGV[2], 'BYLEX', 'LIMIT', ARGV[3], ARGV[4])
if #found == 0 then return {found, {}} end
local keys = {}
for i, name in ipairs(found) do keys[i] = KEYS[2] .. name end
return {found, redis.call('MGET', unpack(keys))}
"""

_LABEL, _END = "\x1f", "\x1e"  # between the labels of a namespace, and before the key


class PlainRedisSaver(BaseCheckpointSaver[int]):
    """The async half of a checkpointer.

    Args:
        client: A `redis.asyncio.Redis` that answers with bytes.
        prefix: What its keys begin with.
    """

    def __init__(self, client: Any, prefix: str) -> None:
        super().__init__()
        self._client = client
        self._prefix = prefix
        self._get = client.register_script(_GET)

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Fetch a checkpoint with its values and pending writes."""
        thread_id, ns, checkpoint_id = _identify(config)
        row = await self._get(keys=[self._place(thread_id, ns)], args=[checkpoint_id])
        if not row:
            return None
        found, body, metadata, parent, channels, values, writes = row
        checkpoint: Checkpoint = self._load(body)
        checkpoint["channel_values"] = {
            channel: self._load(value)
            for (channel, _), value in zip(msgspec.json.decode(channels), values, strict=True)
            if value is not None
        }
        return CheckpointTuple(
            config=_config(thread_id, ns, found.decode()),
            checkpoint=checkpoint,
            metadata=self._load(metadata),
            parent_config=_config(thread_id, ns, parent.decode()) if parent else None,
            pending_writes=[
                (task, channel, self._load(value))
                for task, channel, value in map(_decode_write, writes)
            ],
        )

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Store a checkpoint and its new values."""
        thread_id, ns, parent_id = _identify(config)
        place = self._place(thread_id, ns)
        values = checkpoint["channel_values"]
        body = {**checkpoint, "channel_values": {}}
        blobs = {
            channel: f"{place}:b:{channel}:{version}"
            for channel, version in checkpoint["channel_versions"].items()
            if channel in values
        }
        row = {
            "body": self._dump(body),
            "metadata": self._dump(get_checkpoint_metadata(config, metadata)),
            "parent": parent_id,
            "values": msgspec.json.encode(list(blobs.items())),
        }
        pipeline = self._client.pipeline(transaction=False)
        for channel in new_versions:
            if channel in blobs:
                pipeline.set(blobs[channel], self._dump(values[channel]))
        pipeline.hset(f"{place}:c:{checkpoint['id']}", mapping=row)
        pipeline.set(f"{place}:latest", checkpoint["id"])
        keys = [f"{place}:latest", f"{place}:c:{checkpoint['id']}", *blobs.values()]
        pipeline.sadd(self._keys(thread_id), *keys)
        await pipeline.execute()
        return _config(thread_id, ns, checkpoint["id"])

    async def aput_writes(
        self,
        config: RunnableConfig,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str = "",  # noqa: ARG002 - LangGraph's signature
    ) -> None:
        """Store a task's pending writes."""
        thread_id, ns, checkpoint_id = _identify(config)
        key = f"{self._place(thread_id, ns)}:w:{checkpoint_id}"
        rows = {
            f"{task_id}:{index}": msgspec.msgpack.encode((task_id, channel, self._dump(value)))
            for index, (channel, value) in enumerate(writes)
        }
        pipeline = self._client.pipeline(transaction=False)
        pipeline.hset(key, mapping=rows)
        pipeline.sadd(self._keys(thread_id), key)
        await pipeline.execute()

    async def adelete_thread(self, thread_id: str) -> None:
        """Delete everything of a thread."""
        keys = await self._client.smembers(self._keys(thread_id))
        await self._client.unlink(self._keys(thread_id), *keys)

    def _place(self, thread_id: str, ns: str) -> str:
        return f"{self._prefix}:t:{thread_id}:{ns}"

    def _keys(self, thread_id: str) -> str:
        return f"{self._prefix}:k:{thread_id}"

    def _dump(self, value: Any) -> bytes:
        kind, data = self.serde.dumps_typed(value)
        return kind.encode() + b"\0" + data

    def _load(self, data: bytes) -> Any:
        kind, _, rest = data.partition(b"\0")
        return self.serde.loads_typed((kind.decode(), rest))


class _Note(Struct, array_like=True):
    value: dict[str, Any]
    created_at: str
    updated_at: str


class PlainRedisStore(AsyncBatchedBaseStore):
    """The async half of a store; searches know a prefix, a limit and an offset.

    Args:
        client: A `redis.asyncio.Redis` that answers with bytes.
        prefix: What its keys begin with.
    """

    def __init__(self, client: Any, prefix: str) -> None:
        super().__init__()
        self._client = client
        self._items = f"{prefix}:i:"
        self._index = f"{prefix}:n"

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        """Carry out operations in one round trip."""
        asked = list(ops)
        pipeline = self._client.pipeline(transaction=False)
        answers = []
        for op in asked:
            answers.append(len(pipeline))
            self._ask(pipeline, op)
        replies = await pipeline.execute()
        return [_result(op, replies[at]) for op, at in zip(asked, answers, strict=True)]

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        """Raise: only the async form is measured."""
        raise NotImplementedError("the benchmark's store on plain Redis has no blocking form")

    def _ask(self, pipeline: Any, op: Op) -> None:
        match op:
            case GetOp(namespace, key):
                pipeline.get(self._items + _name(namespace, key))
            case PutOp(namespace, key, None):
                pipeline.unlink(self._items + _name(namespace, key))
                pipeline.zrem(self._index, _name(namespace, key))
            case PutOp(namespace, key, value):
                note = _Note(value, _NOW, _NOW)  # type: ignore[arg-type]
                pipeline.set(self._items + _name(namespace, key), msgspec.msgpack.encode(note))
                pipeline.zadd(self._index, {_name(namespace, key): 0})
            case SearchOp(prefix, filter=None, query=None, limit=limit, offset=offset):
                below = _LABEL.join(prefix)
                ends = (f"[{below}{_END}", f"({below}{_LABEL}\x7f") if prefix else ("-", "+")
                arguments = (self._index, self._items, *ends, offset, limit)
                pipeline.eval(_SEARCH, 2, *arguments)
            case _:
                raise NotImplementedError(
                    f"the benchmark's store on plain Redis does only what is measured, not {op}"
                )


_NOW: Final = "2026-01-01T00:00:00+00:00"  # not looked at


def _result(op: Op, reply: Any) -> Result:
    if isinstance(op, GetOp):
        return None if reply is None else Item(**_item(op.namespace, op.key, reply))
    if isinstance(op, SearchOp):
        found = []
        for name, data in zip(*reply, strict=True):
            namespace, _, key = name.decode().partition(_END)
            found.append(SearchItem(**_item(tuple(namespace.split(_LABEL)), key, data)))
        return found
    return None


def _item(namespace: tuple[str, ...], key: str, data: bytes) -> dict[str, Any]:
    note = msgspec.msgpack.decode(data, type=_Note)
    about = {"created_at": note.created_at, "updated_at": note.updated_at}
    return {"namespace": namespace, "key": key, "value": note.value, **about}


def _name(namespace: tuple[str, ...], key: str) -> str:
    return _LABEL.join(namespace) + _END + key


def _decode_write(data: bytes) -> tuple[str, str, bytes]:
    task, channel, value = msgspec.msgpack.decode(data)
    return task, channel, value


def _identify(config: RunnableConfig) -> tuple[str, str, str]:
    named = config["configurable"]
    return named["thread_id"], named.get("checkpoint_ns", ""), named.get("checkpoint_id") or ""


def _config(thread_id: str, ns: str, checkpoint_id: str) -> RunnableConfig:
    named = {"thread_id": thread_id, "checkpoint_ns": ns, "checkpoint_id": checkpoint_id}
    return {"configurable": named}
