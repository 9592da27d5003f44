"""Two copies of a shard to which anything happens, in any order."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.replica_pairs import check_equal, client_of, noted, write_some
from tests.support.replicas import Copy, compacted, follows, leads

pytestmark = pytest.mark.anyio

steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, 1000)),
        st.tuples(
            st.sampled_from(
                [
                    "end follower",
                    "crash follower",
                    "crash leader",
                    "compact leader",
                    "compact follower",
                    "new term",
                    "promote",
                ]
            ),
            st.just(0),
        ),
    ),
    max_size=10,
)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps)
def test_whatever_happens_both_copies_are_equal_in_the_end(
    done: Sequence[tuple[str, int]],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(happen(Path(folder), done))


async def happen(place: Path, done: Sequence[tuple[str, int]]) -> None:
    leader, follower = (Copy(place / name) for name in "ab")
    term = 1
    await leader.begin(leads(term))
    await follower.begin(follows(leader, term))
    await noted(leader, leads(term))
    async with client_of(leader) as client:
        for what, number in done:
            match what:
                case "write":
                    await write_some(client, 12, number, size=6000)
                case "end follower" | "crash follower":
                    await (follower.end() if what == "end follower" else follower.crash())
                    await follower.begin(follows(leader, term))
                case "crash leader":
                    await leader.crash()
                    await leader.begin(leads(term, follower_in_sync=True))
                    await leader.until_it_leads()
                case "compact leader":
                    await compacted(leader.core)
                case "compact follower":
                    await follower.until_it_has_all_of(leader)
                    await compacted(follower.core)
                case "new term":
                    term += 1
                    leader.tell(leads(term))
                    follower.tell(follows(leader, term))
                    await noted(leader, leads(term))
                case "promote":
                    await follower.until_it_has_all_of(leader)
                    term += 1
                    await leader.crash()
                    leader, follower = follower, leader
                    leader.tell(leads(term))
                    await leader.until_it_leads()
                    await follower.begin(follows(leader, term))
                    await noted(leader, leads(term))
                    client.move(leader)
        await client.put("last")
        await check_equal(leader, follower)
    await follower.end()
    await leader.end()
    assert not leader.broken
    assert not follower.broken
