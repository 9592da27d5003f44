"""A supervised research team that studies a folder of text, with its memory in actors.

Run it as `python examples/01_research_team.py [FOLDER]` or, to have Dragon start the actors,
as `dragon examples/01_research_team.py [FOLDER] --mode distributed`. It is what
`flowgentic-actors demo` does; no model and no key is needed.

These are its main lines; the rest is a progress bar and a check that nothing was lost:

    async with MemoryCluster(mode="distributed") as memory:
        team = build_research_team()  # a StateGraph: lead, parallel readers, librarian
        graph = team.compile(checkpointer=memory.checkpointer, store=memory.store)
        study = new_study(folder, files, question="What happens to a task when it is cancelled?")
        state = await graph.ainvoke(study, {"configurable": {"thread_id": "research-team"}})
        for citation in state["answer"]["citations"]:
            print(f"{citation['file']}:{citation['line']}  {citation['text']}")

The graph is in `flowgentic_actors.cli.research`, the rest in `flowgentic_actors.cli.demo`.
"""

import argparse
import asyncio
import sys

from flowgentic_actors.cli.demo import DemoOptions, add_arguments, run_demo


def main() -> int:
    """Parse the options, run the demo, and return its exit code."""
    parser = argparse.ArgumentParser(description="A research team studies a folder of text.")
    add_arguments(parser)
    try:
        options = DemoOptions(**vars(parser.parse_args()))
    except ValueError as error:
        parser.error(str(error))
    return asyncio.run(run_demo(options))


if __name__ == "__main__":
    sys.exit(main())
