"""The process with the DDict, started by `raw_ddict` below `dragon -s`. Reads and writes lines."""

from __future__ import annotations

import os
import socket
import sys
import time
from typing import Any, Final

import msgspec

from flowgentic_actors.dragon.ddict.client import RawBytes

_TIMEOUT: Final = 20.0
_POOL: Final = 256 << 20
_KEYS: Final = 16  # of each size, overwritten in turn


def main() -> int:
    """Serve the parent until it hangs up."""
    from dragon.data.ddict.ddict import DDict  # noqa: PLC0415 - there only below Dragon

    with socket.socket(socket.AF_UNIX) as link:
        link.connect(sys.argv[1])
        with link.makefile("rwb") as lines:
            whole = DDict(1, 1, _POOL, timeout=_TIMEOUT)
            with whole.pickler(RawBytes, RawBytes) as pool:
                _tell(lines, {"ready": True})
                while (asked := msgspec.json.decode(lines.readline() or b"null")) is not None:
                    try:
                        _tell(lines, {"times": _times(pool, *asked)})
                    except Exception as error:  # noqa: BLE001 - told to who asked
                        _tell(lines, {"error": f"{type(error).__name__}: {error}"})
            whole.destroy()
    return 0


def _times(pool: Any, kind: str, size: int, count: int) -> list[float]:
    value = os.urandom(size)
    keys = [f"{size}:{number}".encode() for number in range(_KEYS)]
    if kind == "get":
        pool[keys[0]] = value
    times = []
    for number in range(count):
        start = time.perf_counter()
        if kind == "put":
            pool[keys[number % _KEYS]] = value
        else:
            found = pool[keys[0]]
        times.append(time.perf_counter() - start)
    if kind == "put":
        found = pool[keys[(count - 1) % _KEYS]]
    if found != value:
        raise ValueError(f"a value of {size} bytes came back as something else")
    return times


def _tell(lines: Any, what: object) -> None:
    lines.write(msgspec.json.encode(what) + b"\n")
    lines.flush()


if __name__ == "__main__":
    sys.exit(main())
