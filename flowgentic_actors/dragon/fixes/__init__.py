"""Fixes for the Python processes that Dragon starts, which run before their own code.

The folder of this package holds a `sitecustomize.py`, which Python runs when the folder is on
PYTHONPATH: Dragon passes an environment on to all that it starts, and offers nothing else that
reaches the processes of a DDict.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

PRIMARY_VARIABLE: Final = "FLOWGENTIC_DRAGON_PRIMARY"
"""Host name of the node on which a launcher's program is to run."""


def with_fixes(environ: Mapping[str, str]) -> dict[str, str]:
    """An environment in which Python runs this package's `sitecustomize` first, and no other copy.

    A source checkout beside an installed package makes two.
    """
    here = Path(__file__).parent
    path = [part for part in environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    others = [part for part in path if Path(part).parts[-3:] != here.parts[-3:]]
    return {**environ, "PYTHONPATH": os.pathsep.join([str(here), *others])}
