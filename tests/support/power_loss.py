"""A program on three hosts, one of which loses its power."""

from __future__ import annotations

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
