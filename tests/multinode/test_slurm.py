"""The memory in the jobs of a real SLURM: ranks of a step, the end of the walltime, lost power."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import NEEDS_DRAGON
from tests.support import slurm
from tests.support.hosts import ROOT, Hosts
from tests.support.power_loss import POWER_LOSS

VARIABLE = "FLOWGENTIC_SLURM_ROOT"
"""Names the folder with SLURM's unpacked packages, see `slurm.py`."""

pytestmark = [*NEEDS_DRAGON, pytest.mark.timeout(600)]


class Slurm:
    """Runs command lines on the login host of a cluster with SLURM."""

    def __init__(self, hosts: Hosts, root: Path) -> None:
        self.shared = hosts.shared
        self._hosts = hosts
        self._root = root

    def run(self, commands: str, *, nodes: int, timeout: float) -> subprocess.CompletedProcess[str]:
        """Run shell commands there, to their end; `look` tells what is left on the nodes."""
        names = " ".join(f"node{number}" for number in range(nodes))
        script = self.shared / "commands.sh"
        look = f"for node in ${{*:-{names}}}; do ssh $node '{_LOOK}' > left-$node; done"
        lines = ["look() {", look, "}", f"export HOME={self.shared}", textwrap.dedent(commands)]
        script.write_text("\n".join(lines))
        itself = [sys.executable, "-I", "-S", slurm.__file__, "run", str(self._root)]
        command = [*itself, "bash", str(script)]
        return self._hosts.run_command(command, nodes=nodes, keep=[self._root], timeout=timeout)

    def write(self, program: str) -> Path:
        """Put a program's text where all hosts find it."""
        return self._hosts.write(program)

    def told(self, name: str, done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
        """What a program has written for the test."""
        file = self.shared / f"{name}.json"
        outputs = [log.read_text() for log in sorted(self.shared.glob("*.out"))]
        logs = slurm.ends_of_logs(self.shared)
        assert file.is_file(), "\n".join([done.stdout, done.stderr, *outputs, *logs])
        content: dict[str, Any] = json.loads(file.read_text())
        return content

    def left(self) -> dict[str, str]:
        """What the nodes had left when the commands looked."""
        return {file.name: file.read_text().strip() for file in self.shared.glob("left-*")}


_LOOK = "ps -eo args | grep -i -e [d]ragon -e [f]lowgentic -e [p]rogram.py; ls /dev/shm"


@pytest.fixture
def cluster(hosts: Hosts) -> Slurm:
    """SLURM on several hosts; skips where its packages are not."""
    root = Path(os.environ.get(VARIABLE, "")).resolve()
    if VARIABLE not in os.environ:
        pytest.skip(
            f"no SLURM: `python {Path(slurm.__file__).relative_to(ROOT)} unpack FOLDER` "
            f"fetches it (Debian, Ubuntu), {VARIABLE}=FOLDER names it"
        )
    if (reason := slurm.why_not(root)) is not None:
        pytest.skip(f"{VARIABLE}: {reason}")
    return Slurm(hosts, root)


RANKS = """
    import asyncio, json, os, socket, time
    from pathlib import Path

    import psutil

    from flowgentic_actors import MemoryCluster

    RANK, SIZE = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"])
    SETTINGS = dict(mode="distributed", fallback_to_local=False, open_timeout=250)
    ITEMS = 16

    async def main():
        begun = time.monotonic()
        async with MemoryCluster(**SETTINGS) as memory:
            opened = time.monotonic()
            for item in range(ITEMS):
                namespace = ("ranks", f"{RANK}-{item}")
                await memory.store.aput(namespace, "item", {"of": RANK})
            seen, deadline = [], time.monotonic() + 60
            while len(seen) < SIZE * ITEMS and time.monotonic() < deadline:
                seen = await memory.store.asearch(("ranks",), limit=1000)
                await asyncio.sleep(0.2)
            status = await memory.status()
            peers = psutil.Process().net_connections("tcp")
            told = {
                "node": socket.gethostname(),
                "n_nodes": status.n_nodes,
                "actors": sorted(actor.node for actor in status.actors),
                "seen": sorted({item.value["of"] for item in seen}),
                "all": len(seen),
                "reached": sorted({peer.raddr.ip for peer in peers if peer.raddr}),
                "opening": opened - begun,
            }
        told["closing"] = time.monotonic() - opened
        Path(f"rank-{RANK}.json").write_text(json.dumps(told))

    if __name__ == "__main__":
        asyncio.run(main())
"""


@pytest.mark.parametrize("nodes", [2, 4])
def test_the_ranks_of_a_step_have_one_memory(cluster: Slurm, nodes: int) -> None:
    program = cluster.write(RANKS)
    step = f"srun -N {nodes} --output=rank-%t.out python {program.name}; look"
    done = cluster.run(step, nodes=nodes, timeout=400)
    ranks = [cluster.told(f"rank-{rank}", done) for rank in range(nodes)]
    print(ranks)
    names = [f"node{number}" for number in range(nodes)]
    assert [rank["node"] for rank in ranks] == names
    for rank in ranks:
        assert rank["n_nodes"] == nodes
        assert rank["actors"] == names
        assert rank["seen"] == list(range(nodes))
        assert rank["all"] == 16 * nodes
        # By TCP, and there is none without TLS; those on their own node by Unix sockets.
        assert len(rank["reached"]) == nodes - 1
    assert cluster.left() == {f"left-{name}": "" for name in names}
    assert list((cluster.shared / ".flowgentic").iterdir()) == []


def test_the_example_of_a_distributed_memory_runs_in_a_batch_job(cluster: Slurm) -> None:
    example = ROOT / "examples" / "02_distributed_memory.py"
    commands = f"""
        sbatch --wait --nodes=2 --output=job.out --wrap "python {example}"
        echo ended with $?
        look
    """
    done = cluster.run(commands, nodes=2, timeout=300)
    output = (cluster.shared / "job.out").read_text()
    assert "ended with 0" in done.stdout, output
    assert '2. distributed: True ["ada\'s tea"]' in output
    assert "'is_distributed': True" in output
    assert cluster.left() == {"left-node0": "", "left-node1": ""}


COUNTERS = """
    import asyncio, json, operator, os, time
    from pathlib import Path
    from typing import Annotated, TypedDict

    from langgraph.graph import START, StateGraph

    from flowgentic_actors import MemoryCluster
    from flowgentic_actors.errors import FlowgenticError

    LIFE = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    SETTINGS = dict(
        mode="distributed", fallback_to_local=False, open_timeout=250, close_timeout=30,
        persist_path="memory", stop_file="stop",
    )
    MORE = 20  # what the second life adds to what it finds

    async def count(find, write):
        number = found = await find()
        outcome = ""
        while not LIFE or number < found + MORE:
            try:
                await write(number + 1)
            except FlowgenticError as error:
                outcome = type(error).__name__
                break
            number += 1
            await asyncio.sleep(0.02)
        return {"found": found, "acknowledged": number, "outcome": outcome}

    def item(memory, name):
        async def find():
            there = await memory.store.aget(("counters", name), "number")
            return there.value["n"] if there else 0

        async def write(number):
            await memory.store.aput(("counters", name), "number", {"n": number})

        return count(find, write)

    class State(TypedDict):
        n: Annotated[int, operator.add]

    def thread(memory, name):
        builder = StateGraph(State)
        builder.add_node("one_more", lambda state: {"n": 1})
        builder.add_edge(START, "one_more")
        graph = builder.compile(checkpointer=memory.checkpointer)
        config = {"configurable": {"thread_id": name}}

        async def find():
            if (await graph.aget_state(config)).next:  # the end came within a run: finish that
                await graph.ainvoke(None, config)
            return (await graph.aget_state(config)).values.get("n", 0)

        async def write(number):
            assert (await graph.ainvoke({"n": 0}, config))["n"] == number

        return count(find, write)

    async def main():
        told = {}
        async with MemoryCluster(**SETTINGS) as memory:
            names = [str(number) for number in range(6)]
            for kind in (item, thread):
                told[kind.__name__] = asyncio.gather(*(kind(memory, name) for name in names))
            told = {kind: await counters for kind, counters in told.items()}
            told["n_nodes"] = (await memory.status()).n_nodes
            told["events"] = [event.kind for event in await memory.recent_events()]
            begun = time.monotonic()
        told["closing"] = time.monotonic() - begun
        told["unsealed"] = [str(file) for file in Path("memory").rglob("*.seg")]
        Path(f"life-{LIFE}.json").write_text(json.dumps(told))

    if __name__ == "__main__":
        asyncio.run(main())
"""

REQUEUED = """\
#!/bin/bash
#SBATCH --nodes=2 --ntasks-per-node=1 --time=3 --no-kill
#SBATCH --signal=B:USR1@60 --requeue --open-mode=append --output=job.out
rm -f stop
trap 'touch stop; wait; scontrol requeue "$SLURM_JOB_ID"' USR1
python program.py & wait
"""


def test_a_job_that_is_warned_before_its_end_is_requeued_and_goes_on(cluster: Slurm) -> None:
    cluster.write(COUNTERS)
    (cluster.shared / "job.sh").write_text(REQUEUED)
    commands = """
        job=$(sbatch --parsable job.sh)
        until [ -n "$(squeue -h -j $job -t CD,F,TO,NF,CA)" ]; do sleep 1; done
        squeue -h -j $job -t all -o %T
        look
    """
    done = cluster.run(commands, nodes=2, timeout=450)
    first, second = (cluster.told(f"life-{life}", done) for life in range(2))
    print(first, second, done.stdout)
    assert done.stdout.strip() == "COMPLETED"
    assert first["n_nodes"] == second["n_nodes"] == 2
    assert "cluster_closing" in first["events"]
    assert "persist_reopened" in second["events"]
    assert first["unsealed"] == second["unsealed"] == []
    for kind in ("item", "thread"):
        for before, after in zip(first[kind], second[kind], strict=True):
            assert before["found"] == 0
            assert before["acknowledged"] > 0
            # One more may have been under way; a run of a graph is several writes.
            known = kind == "item" and before["outcome"] == "ClusterClosingError"
            assert after["found"] - before["acknowledged"] in ({0} if known else {0, 1})
            assert after["acknowledged"] == after["found"] + 20
            assert after["outcome"] == ""
    assert cluster.left() == {"left-node0": "", "left-node1": ""}


LOST = """\
#!/bin/bash
#SBATCH --nodes=3 --ntasks-per-node=1 --time=15 --no-kill --output=job.out
python program.py
"""


def test_a_job_survives_the_loss_of_a_node(cluster: Slurm) -> None:
    stop = "stop.set()"
    assert POWER_LOSS.count(stop) == 1
    # Without `--no-kill` SLURM would end the job in the moment in which it notices.
    wait = "while not seen_by_slurm(): await asyncio.sleep(1)"
    seen_by_slurm = """
    def seen_by_slurm():
        sinfo = ["sinfo", "-h", "-n", "node1", "-o", "%T"]
        return subprocess.run(sinfo, capture_output=True, text=True).stdout.startswith("down")

    async def main():
"""
    text = POWER_LOSS.replace(stop, f"{wait}\n        await asyncio.sleep(5)\n        {stop}")
    cluster.write(text.replace("    async def main():\n", seen_by_slurm.lstrip("\n")))
    (cluster.shared / "job.sh").write_text(LOST)
    commands = """
        job=$(sbatch --parsable job.sh)
        until [ -n "$(squeue -h -j $job -t CD,F,TO,NF,CA)" ]; do sleep 1; done
        squeue -h -j $job -t all -o %T
        look node0 node2
    """
    done = cluster.run(commands, nodes=3, timeout=400)
    told = cluster.told("told", done)
    print(told, done.stdout)
    assert done.stdout.strip() == "COMPLETED"
    assert told["before"] == [3, ["node0", "node1", "node2"]]
    assert told["acknowledged"] > 0
    assert told["lost"] == told["phantoms"] == 0
    assert told["after"] == [2, ["node0", "node2"]]
    assert cluster.left() == {"left-node0": "", "left-node2": ""}
