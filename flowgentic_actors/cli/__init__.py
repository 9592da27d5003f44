"""The command line: `flowgentic-actors`."""
