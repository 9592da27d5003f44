"""Peers: LangGraph's savers and stores over SQLite, Postgres and Redis, unchanged.

Their packages are the extra `bench`, and are imported when they are used. What is written goes into
a schema, or below prefixes, of the run's own, and is removed when it is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.util
import logging
import os
import uuid
import warnings
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

from flowgentic_actors.bench.machine import written_by
from flowgentic_actors.bench.subjects import Subject, Written, subject
from flowgentic_actors.bench.workloads import RUN

CONNECT_TIMEOUT: Final = 5.0
"""Seconds that a server has to answer the first time."""

_EXTRA = "pip install 'flowgentic-actors[bench]'"


class PeerError(Exception):
    """A peer cannot take part; the text says why, and which option is about it."""


def why_no_sqlite() -> str | None:
    """The reason why SQLite cannot take part, or None."""
    return _missing("langgraph.checkpoint.sqlite", "aiosqlite")


def why_no_postgres(dsn: str | None) -> str | None:
    """The reason why Postgres cannot take part, or None."""
    if dsn is None:
        return "no server was named: --postgres DSN, or FLOWGENTIC_BENCH_POSTGRES"
    return _missing("langgraph.checkpoint.postgres", "psycopg")


def why_no_redis(url: str | None) -> str | None:
    """The reason why Redis cannot take part, or None."""
    if url is None:
        return "no server was named: --redis URL, or FLOWGENTIC_BENCH_REDIS"
    return _missing("langgraph.checkpoint.redis", "redis")


def _missing(*modules: str) -> str | None:
    for module in modules:
        try:
            found = importlib.util.find_spec(module)
        except ModuleNotFoundError:  # a part of its name
            found = None
        if found is None:
            return f"the package of {module} is not installed: {_EXTRA}"
    return None


async def _import(*modules: str) -> list[Any]:
    """Import on a thread: it takes long, and the event loop must not stand still."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs
        try:
            return [await asyncio.to_thread(importlib.import_module, name) for name in modules]
        except ImportError as error:
            raise PeerError(f"{error}: {_EXTRA}") from error


# ---------------------------------------------------------------------- SQLite


@asynccontextmanager
async def sqlite(folder: Path) -> AsyncIterator[Subject]:
    """AsyncSqliteSaver and AsyncSqliteStore on files in a folder."""
    savers, stores = await _import("langgraph.checkpoint.sqlite.aio", "langgraph.store.sqlite.aio")
    async with (
        savers.AsyncSqliteSaver.from_conn_string(str(folder / "checkpoints.db")) as saver,
        stores.AsyncSqliteStore.from_conn_string(str(folder / "store.db")) as store,
    ):
        await saver.setup()
        await store.setup()
        journal = await _pragma(saver.conn, "journal_mode")
        synchronous = ("off", "normal", "full", "extra")[
            int(await _pragma(saver.conn, "synchronous"))
        ]

        async def count() -> int:
            return await asyncio.to_thread(written_by, os.getpid())

        written: Written | None = None
        try:
            await count()
        except OSError:  # there is no /proc
            pass
        else:
            written = Written(count, 0.0, "written to its files")

        durability = f"journal_mode={journal}, synchronous={synchronous}"
        yield subject(saver, store, durability, written=written)


async def _pragma(connection: Any, name: str) -> str:
    async with connection.execute(f"PRAGMA {name}") as cursor:
        return str((await cursor.fetchone())[0])


# ---------------------------------------------------------------------- Postgres


@asynccontextmanager
async def postgres(dsn: str, *, commit_later: bool = False) -> AsyncIterator[Subject]:
    """AsyncPostgresSaver and AsyncPostgresStore on a server.

    Args:
        dsn: The server.
        commit_later: Whether commits wait for nothing (`synchronous_commit=off`).
    """
    psycopg, savers, stores = await _import(
        "psycopg", "langgraph.checkpoint.postgres.aio", "langgraph.store.postgres.aio"
    )
    schema = f"flowgentic_bench_{uuid.uuid4().hex[:12]}"
    async with _postgres_schema(psycopg, dsn, schema) as admin:
        options = f"-c search_path={schema}"
        if commit_later:
            options += " -c synchronous_commit=off"
        parts = psycopg.conninfo.conninfo_to_dict(dsn)
        parts["options"] = f"{parts.get('options', '')} {options}".strip()
        own = psycopg.conninfo.make_conninfo(**parts)
        async with (
            savers.AsyncPostgresSaver.from_conn_string(own) as saver,
            stores.AsyncPostgresStore.from_conn_string(own) as store,
        ):
            await saver.setup()
            await store.setup()
            told = [
                f"{name}={await _show(saver.conn, name)}"
                for name in ("server_version", "fsync", "synchronous_commit")
            ]

            async def count() -> int:
                cursor = await admin.execute("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn")
                return int((await cursor.fetchone())[0])

            written = Written(count, 0.0, "in its write-ahead log")
            yield subject(saver, store, ", ".join(told), written=written)


@asynccontextmanager
async def _postgres_schema(psycopg: Any, dsn: str, schema: str) -> AsyncIterator[Any]:
    """A schema for the length of a context, and a connection of its own to the server."""
    try:
        admin = await psycopg.AsyncConnection.connect(
            dsn, autocommit=True, connect_timeout=int(CONNECT_TIMEOUT)
        )
    except psycopg.Error as error:
        raise PeerError(f"the server of --postgres cannot be reached: {_line(error)}") from error
    async with admin:
        try:
            await admin.execute(f"CREATE SCHEMA {schema}")
        except psycopg.Error as error:
            raise PeerError(
                f"the role of --postgres may not create a schema there: {_line(error)}"
            ) from error
        try:
            yield admin
        finally:
            await admin.execute(f"DROP SCHEMA {schema} CASCADE")


async def _show(connection: Any, name: str) -> str:
    cursor = await connection.execute(f"SHOW {name}")
    row = await cursor.fetchone()
    (value,) = row.values() if isinstance(row, dict) else row
    return str(value).split()[0]


# ---------------------------------------------------------------------- Redis


@asynccontextmanager
async def redis(url: str) -> AsyncIterator[Subject]:
    """AsyncRedisSaver and AsyncRedisStore on a server with RedisJSON and RediSearch."""
    async with _redis_client(url) as client:
        found = {_text(module[b"name"]) for module in await _modules(client)}
        if not {"search", "ReJSON"} <= found:
            raise PeerError(
                "AsyncRedisSaver needs RedisJSON and RediSearch, which the server of --redis does "
                "not have: name a Redis 8 or a Redis Stack; redis-plain runs on any"
            )
        savers, stores = await _import(
            "langgraph.checkpoint.redis.aio", "langgraph.store.redis.aio"
        )
        for name in ("redisvl", "langgraph"):  # they tell about every index
            logging.getLogger(name).setLevel(logging.WARNING)
        mark = f"fab{uuid.uuid4().hex[:10]}"
        async with AsyncExitStack() as stack:
            indexes = [f"{mark}{kind}" for kind in "cws"]
            # Some of its keys have nothing of ours in their names but the thread.
            left = (f"*{mark}*", f"write_keys_zset:*{RUN}*")
            stack.push_async_callback(_clear, client, left, indexes)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", DeprecationWarning)  # between their packages
                    saver = await stack.enter_async_context(
                        savers.AsyncRedisSaver(
                            url, checkpoint_prefix=indexes[0], checkpoint_write_prefix=indexes[1]
                        )
                    )
                    store = await stack.enter_async_context(
                        stores.AsyncRedisStore(url, store_prefix=indexes[2])
                    )
                    await store.setup()
            except TypeError as error:
                raise PeerError(
                    f"langgraph-checkpoint-redis and redisvl do not fit ({error}): {_EXTRA}"
                ) from error
            # With several labels its `aget` finds nothing on some servers.
            yield subject(
                saver,
                store,
                await _redis_durability(client),
                flat=True,
                written=_received_by(client),
            )


@asynccontextmanager
async def redis_plain(url: str) -> AsyncIterator[Subject]:
    """Our own minimal saver and store, which need a plain Redis: a bound in Redis' favour."""
    async with _redis_client(url) as client:
        (plain,) = await _import("flowgentic_actors.bench.plain_redis")
        mark = f"fab{uuid.uuid4().hex[:10]}"
        try:
            saver = plain.PlainRedisSaver(client, mark)
            store = plain.PlainRedisStore(client, mark)
            told = f"{await _redis_durability(client)}; minimal saver of this benchmark"
            yield subject(saver, store, told, written=_received_by(client))
        finally:
            await _clear(client, (f"{mark}*",), [])


@asynccontextmanager
async def _redis_client(url: str) -> AsyncIterator[Any]:
    package, blocking = await _import("redis.asyncio", "redis")
    await asyncio.to_thread(_reach_redis, blocking, url)
    client = await asyncio.to_thread(package.Redis.from_url, url)
    try:
        yield client
    finally:
        await client.aclose()


def _reach_redis(package: Any, url: str) -> None:
    """Check that there is a server; blocks."""
    wait = {"socket_connect_timeout": CONNECT_TIMEOUT, "socket_timeout": CONNECT_TIMEOUT}
    try:
        with package.Redis.from_url(url, **wait) as client:
            client.ping()
    except ValueError as error:
        raise PeerError(f"--redis is no URL of a Redis server: {error}") from error
    except (package.RedisError, OSError) as error:
        raise PeerError(f"the server of --redis cannot be reached: {_line(error)}") from error


async def _modules(client: Any) -> Sequence[dict[bytes, Any]]:
    found = []
    for module in await client.execute_command("MODULE", "LIST"):
        pairs = (
            module
            if isinstance(module, dict)
            else dict(zip(module[::2], module[1::2], strict=True))
        )
        found.append(
            {key if isinstance(key, bytes) else str(key).encode(): v for key, v in pairs.items()}
        )
    return found


async def _redis_durability(client: Any) -> str:
    told = [f"redis {(await client.info('server'))['redis_version']}"]
    for name in ("appendonly", "appendfsync", "save"):
        try:
            value = (await client.config_get(name))[name]
        except Exception as error:  # noqa: BLE001 - managed servers forbid CONFIG in ways of their own
            told.append(f"{name} unknown ({_line(error)})")
        else:
            if name != "appendfsync" or told[-1] == "appendonly=yes":
                told.append(f"{name}={value or 'never'}")
    return ", ".join(told)


def _received_by(client: Any) -> Written:
    async def count() -> int:
        return int((await client.info("stats"))["total_net_input_bytes"])

    return Written(count, 0.0, "sent to the server")


async def _clear(client: Any, patterns: Sequence[str], indexes: Sequence[str]) -> None:
    """Remove what a run left, if the server is still there."""
    with contextlib.suppress(Exception):
        for index in indexes:
            with contextlib.suppress(Exception):  # it was never made
                await client.execute_command("FT.DROPINDEX", index)
        keys = []
        for pattern in patterns:
            async for key in client.scan_iter(match=pattern, count=5000):
                keys.append(key)
                if len(keys) == 5000:
                    await client.unlink(*keys)
                    keys.clear()
        if keys:
            await client.unlink(*keys)


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
