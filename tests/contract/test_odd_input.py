"""Whatever is given for ids, names and numbers: it is carried out, or refused by one of our errors.

Commands are encoded and decoded on their way, so nothing passes that another mode would refuse.
"""

from __future__ import annotations

import math
import traceback
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from langgraph.store.base import InvalidNamespaceError

from flowgentic_actors import MemoryCluster
from flowgentic_actors.errors import FlowgenticError
from tests.support.faces import SaverFace, StoreFace, checkpoint_of

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("mode", ["inline-wire"])]

PROFILE = settings(
    max_examples=100,
    phases=[Phase.generate],  # examples are small: none needs to be made smaller
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


class Marked(str):
    """Text of a type that no encoder knows."""

    __slots__ = ()


TEXTS = ("", "a", "é", "\N{GRINNING FACE}", "half \ud83d", "\0", Marked("m"))
SCALARS = (None, 0, True, 7, 2**64, -(2**63) - 1, 1.5, math.nan, UUID(int=1), np.int64(3), np.True_)
OTHERS = (b"a", ["a"], ("a", "b"), {"a": 1}, object())
texts = st.sampled_from(TEXTS)
hashable = st.sampled_from((*TEXTS, *SCALARS, b"a", ("a", "b")))
anything = st.sampled_from((*TEXTS, *SCALARS, *OTHERS))

ids = st.just("a") | anything
configurables = st.dictionaries(
    st.sampled_from(("thread_id", "checkpoint_ns", "checkpoint_id")), ids, max_size=3
)
metadatas = st.dictionaries(st.just("title") | hashable, anything, max_size=3)


async def expect_an_answer_or_refusal(call: Any) -> None:
    try:
        await call
    except (FlowgenticError, InvalidNamespaceError):
        pass
    except Exception as error:
        # What is no value is the business of LangGraph's serializer.
        frames = traceback.extract_tb(error.__traceback__)
        if not any(frame.name == "dumps_typed" for frame in frames):
            raise


@PROFILE
@given(
    named=configurables,
    checkpoint_id=ids,
    metadata=metadatas,
    versions=st.dictionaries(st.just("a") | hashable, anything, max_size=2),
    task=ids,
    channel=st.just("a") | hashable,
)
async def test_checkpoints_with_odd_input_are_stored_or_refused(
    saver: SaverFace,
    named: Any,
    checkpoint_id: Any,
    metadata: Any,
    versions: Any,
    task: Any,
    channel: Any,
) -> None:
    config: Any = {"configurable": named}
    checkpoint = checkpoint_of(id=checkpoint_id)
    checkpoint["channel_values"] = {"a": 1, channel: 2}
    checkpoint["channel_versions"] = versions
    for call in (
        saver.put(config, checkpoint, metadata, versions),
        saver.put_writes(config, [(channel, 1)], task, task),
        saver.get(config),
        saver.ids(config, filter=metadata, before=config, limit=3),
        saver.channel_history(config, [channel]),
        saver.copy_thread(task, checkpoint_id),
        saver.delete_for_runs([task]),
        saver.prune([task]),
        saver.delete_thread(task),
    ):
        await expect_an_answer_or_refusal(call)


@PROFILE
@given(
    namespace=st.lists(st.just("root") | anything, max_size=3).map(tuple),
    key=ids,
    wanted=st.none() | st.dictionaries(st.just("n") | hashable, anything, max_size=2),
    paths=st.none() | st.lists(texts, max_size=2),
)
async def test_items_with_odd_input_are_stored_or_refused(
    store: StoreFace, memory: MemoryCluster, namespace: Any, key: Any, wanted: Any, paths: Any
) -> None:
    for call in (
        store.put(namespace, key, {"n": 1}, paths),
        store.get(namespace, key),
        store.search(namespace, filter=wanted),
        store.list_namespaces(prefix=namespace, limit=3),
        store.delete(namespace, key),
        memory.cache.aset({(tuple(map(repr, namespace)), "k"): (1, None)}),
        memory.cache.aget([(namespace, key)]),
    ):
        await expect_an_answer_or_refusal(call)
