"""The hosts that the other tests here run on are hosts to Dragon, and can lose power."""

from __future__ import annotations

import textwrap

from tests.conftest import NEEDS_DRAGON
from tests.multinode.hosts import Hosts

pytestmark = list(NEEDS_DRAGON)

HEAD = """
    import os, subprocess, sys, time
    from pathlib import Path
    from dragon.infrastructure.policy import Policy
    from dragon.native.machine import Node, System
    from dragon.native.process import Process

    NODES = ["node0", "node1"]

    def count(node):
        try:
            return int(Path(f"{node}.count").read_text())
        except (FileNotFoundError, ValueError):
            return 0

    def wait_for(node, number):
        deadline = time.monotonic() + 20
        while count(node) < number:
            assert time.monotonic() < deadline, f"{node} does not get to {number}"
            time.sleep(0.02)

    if __name__ == "__main__":
        assert sorted(Node(n).hostname for n in System().nodes) == NODES
        for node in NODES:
            there = Policy(placement=Policy.Placement.HOST_NAME, host_name=node)
            Process(sys.executable, ["counter.py"], cwd=os.getcwd(), policy=there).start()
        for node in NODES:
            wait_for(node, 3)
        subprocess.run(["fakenode", "kill", "node1"], check=True)
        last = {node: count(node) for node in NODES}
        wait_for("node0", last["node0"] + 10)
        assert count("node1") == last["node1"]
        Path("outcome").write_text("node0 goes on without node1")
        # The launcher would wait for node1 for ever. All ends with the host that it runs on.
        subprocess.run(["fakenode", "kill", "login"])
"""

COUNTER = """
    import itertools, os, socket
    from pathlib import Path
    from time import sleep

    Path("/tmp/mine").touch(exist_ok=False)  # and not another host's
    for number in itertools.count(1):
        Path("new." + socket.gethostname()).write_text(str(number))
        os.replace("new." + socket.gethostname(), socket.gethostname() + ".count")
        sleep(0.05)
"""


def test_dragon_takes_them_for_hosts_and_one_can_lose_power(hosts: Hosts) -> None:
    (hosts.shared / "counter.py").write_text(textwrap.dedent(COUNTER))
    done = hosts.run(HEAD, timeout=50)
    assert (hosts.shared / "outcome").is_file(), done
