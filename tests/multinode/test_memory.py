"""The memory on several Dragon nodes: TLS, a node that is added, and one that loses power."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from tests.conftest import NEEDS_DRAGON
from tests.support.hosts import ROOT, Hosts
from tests.support.power_loss import POWER_LOSS

pytestmark = [*NEEDS_DRAGON, pytest.mark.timeout(420)]


@pytest.mark.slow
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
ALL = [
    CONFORMANCE,
    *(f"tests/contract/test_store{part}.py" for part in ("", "_searches", "_ttl")),
    *(f"tests/contract/test_saver{part}.py" for part in ("", "_listings", "_values")),
]


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
