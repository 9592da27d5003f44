"""Results of methods that do nothing here, and that may be awaited or not.

LangGraph's classes have them in two forms, `store.setup()` and, in those named `Async...`,
`await store.setup()`; a program written for either runs.
"""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")


class ReadyResult(Future[T], Generic[T]):
    """A completed future that can be awaited as well.

    Args:
        result: The result.
    """

    def __init__(self, result: T) -> None:
        super().__init__()
        self.set_result(result)

    def __await__(self) -> Generator[None, None, T]:
        yield from ()  # there is nothing to wait for
        return self.result()
