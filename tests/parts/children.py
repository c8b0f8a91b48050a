"""Processes that tests start: none outlives its block, however that ends."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def child(*command: object, **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """A process, killed at the end of the block if it still runs; its pipes are closed and its exit is collected."""
    with subprocess.Popen([*map(str, command)], **options) as process:
        try:
            yield process
        finally:
            process.kill()


def python(*arguments: object, **options: Any) -> Any:
    """The same for this interpreter."""
    return child(sys.executable, *arguments, **options)
