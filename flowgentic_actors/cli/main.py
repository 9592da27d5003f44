"""`flowgentic-actors`: the commands and their options."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence

from flowgentic_actors import __version__
from flowgentic_actors.bench import command as bench
from flowgentic_actors.cli import demo, dump, snapshot
from flowgentic_actors.errors import FlowgenticError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: The command line without the program's name; default: `sys.argv`.

    Returns:
        The exit code: 0 when all went well, 1 when it did not, 2 for a bad command line.
    """
    parser = argparse.ArgumentParser(
        prog="flowgentic-actors",
        description="Supervised memory actors for LangGraph agents.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    demo.add_arguments(
        commands.add_parser("demo", help="a team of agents studies a folder of text")
    )
    bench.add_arguments(
        commands.add_parser(
            "bench", help="measure every mode, and databases, beside LangGraph's memory"
        )
    )
    dump.add_arguments(commands.add_parser("dump", help="list what a memory on disk holds"))
    snapshot.add_arguments(commands.add_parser("snapshot", help="copy a memory, live or not"))
    options = vars(parser.parse_args(arguments))
    command = options.pop("command")
    try:
        if command == "demo":
            return asyncio.run(demo.run_demo(demo.DemoOptions(**options)))
        if command == "dump":
            return dump.run_dump(dump.DumpOptions(**options))
        if command == "snapshot":
            return snapshot.run_snapshot(snapshot.SnapshotOptions(**options))
        return bench.run_bench(bench.BenchOptions(**options))
    except (FlowgenticError, OSError) as error:
        print(f"flowgentic-actors {command}: {error}", file=sys.stderr)
        return 1
    except ValueError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
