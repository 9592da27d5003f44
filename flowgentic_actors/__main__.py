"""`python -m flowgentic_actors`: the command `flowgentic-actors`."""

from __future__ import annotations

import sys

from flowgentic_actors.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
