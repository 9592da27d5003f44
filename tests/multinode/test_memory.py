"""The memory on several Dragon nodes: TLS, a node that is added, and one that loses power."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from tests.conftest import NEEDS_DRAGON
from tests.support.hosts import ROOT, Hosts

pytestmark = [*NEEDS_DRAGON, pytest.mark.timeout(420)]

POWER_LOSS = """
    import asyncio, json, os, subprocess, time
    from pathlib import Path

    NODES = ["node0", "node1", "node2"]
    # As in a job whose nodes are reached over ssh.
    os.environ.update(LSB_JOBID="5", LSB_MCPU_HOSTS=" ".join(f"{node} 1" for node in NODES))

    from flowgentic_actors import MemoryCluster
    from flowgentic_actors.errors import RequestError

    SETTINGS = dict(
        mode="distributed", spawner="dragon", fallback_to_local=False, open_timeout=200,
        n_nodes=2, replicas=2, ack="replica", degrade=True,
    )

    def on(node, command):
        return subprocess.run(["ssh", node, command], capture_output=True, text=True).stdout

    async def use(memory, told):
        acknowledged, unknown, last, stop = set(), set(), {}, asyncio.Event()

        async def write(writer):
            number = 0
            while not stop.is_set():
                key = (writer, number)
                try:
                    await memory.store.aput(("notes", str(writer)), str(number), {"n": number})
                except RequestError as error:
                    unknown.add(key)
                    await asyncio.sleep(0.05)
                else:
                    acknowledged.add(key)
                    last.setdefault(writer, []).append(time.monotonic())
                number += 1

        writers = [asyncio.create_task(write(writer)) for writer in range(9)]
        await asyncio.sleep(1)
        told["opened"] = (await memory.status()).n_nodes
        begun = time.monotonic()
        await memory.rebalance()  # over all nodes of the runtime
        told["rebalanced"] = time.monotonic() - begun
        told["refused"] = len(unknown)
        await asyncio.sleep(1)
        status = await memory.status()
        told["before"] = status.n_nodes, sorted(actor.node for actor in status.actors)
        subprocess.run(["fakenode", "kill", "node1"], check=True)
        killed = time.monotonic()
        deadline = killed + 60
        while time.monotonic() < deadline and not all(
            any(when > killed + 1 for when in last[writer]) for writer in last
        ):
            await asyncio.sleep(0.05)
        told["back"] = max(min(w for w in last[n] if w > killed + 1) - killed for n in last)
        await asyncio.sleep(2)
        stop.set()
        await asyncio.gather(*writers)
        there = set()
        for writer in range(9):
            for item in await memory.store.asearch(("notes", str(writer)), limit=100_000):
                there.add((writer, item.value["n"]))
        told["acknowledged"] = len(acknowledged)
        told["lost"] = len(acknowledged - there)
        told["phantoms"] = len(there - acknowledged - unknown)
        status = await memory.status()
        told["after"] = status.n_nodes, sorted({actor.node for actor in status.actors})
        told["events"] = [event.kind for event in await memory.recent_events()]

    async def main():
        told = {}
        async with MemoryCluster(**SETTINGS) as memory:
            await use(memory, told)
            begun = time.monotonic()
        told["closed"] = time.monotonic() - begun
        time.sleep(0.5)
        look = "ps -eo args | grep -i -e dragon -e flowgentic | grep -v grep; ls /dev/shm"
        told["left"] = {
            node: on(node, look)
            for node in ("node0", "node2")
        }
        Path("told.json").write_text(json.dumps(told))

    if __name__ == "__main__":
        asyncio.run(main())
"""


def test_a_node_is_added_and_another_loses_power_and_nothing_is_lost_by_that(hosts: Hosts) -> None:
    done = hosts.run(POWER_LOSS, nodes=3, launcher="python", timeout=280)
    file = hosts.shared / "told.json"
    assert file.is_file(), f"{done.stdout}\n{done.stderr}"
    told: dict[str, Any] = json.loads(file.read_text())
    assert told["opened"] == 2
    assert told["refused"] == 0  # nobody was refused anything while slots moved
    assert told["before"] == [3, ["node0", "node1", "node2"]]
    assert told["lost"] == told["phantoms"] == 0
    assert told["acknowledged"] > 0
    assert told["after"] == [2, ["node0", "node2"]]
    assert {"rebalanced", "node_lost", "shard_promoted", "replica_begun"} <= set(told["events"])
    assert told["back"] < 30  # calls waited for the second copy, and not for their deadlines
    assert {node: text.strip() for node, text in told["left"].items()} == {"node0": "", "node2": ""}


CONTRACT = f"""
    import os, sys
    from pathlib import Path

    if __name__ == "__main__":
        os.environ["FLOWGENTIC_TEST_MODE"] = "dragon-nodes"
        os.chdir({str(ROOT)!r})
        import pytest

        code = pytest.main([
            *sys.argv[2:],
            "-q", "-p", "no:cacheprovider", "-k", "dragon-nodes and not inline and not subprocess",
            "--timeout", "60",
        ])
        Path(sys.argv[1]).write_text(str(int(code)))
"""


CONFORMANCE = "tests/contract/test_conformance.py::test_every_check_of_every_capability_passes"
ALL = [CONFORMANCE, "tests/contract/test_store.py", "tests/contract/test_saver.py"]


# It takes minutes: `FLOWGENTIC_LONG_TESTS=1 pytest tests/multinode`. The short form is the contract
# over processes that stand for nodes (mode "nodes").
@pytest.mark.skipif("FLOWGENTIC_LONG_TESTS" not in os.environ, reason="takes minutes")
@pytest.mark.parametrize(("nodes", "tests"), [(2, ALL), (3, ALL)], ids=["all-2", "all-3"])
def test_the_contract_holds_over_the_nodes_of_a_runtime(
    hosts: Hosts, nodes: int, tests: list[str]
) -> None:
    outcome = hosts.shared / "outcome"
    done = hosts.run(CONTRACT, str(outcome), *tests, nodes=nodes, launcher="dragon", timeout=280)
    assert outcome.is_file(), done
    assert outcome.read_text() == "0", done.stdout
