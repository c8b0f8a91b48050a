"""`python -m bench NAME [options]`: run one bench; without a name, list them."""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
from pathlib import Path

_NOT_BENCHES = {"__init__", "__main__", "report", "shuffled"}


def names() -> list[str]:
    """The benches there are."""
    files = Path(__file__).parent.glob("*.py")
    return sorted(path.stem for path in files if path.stem not in _NOT_BENCHES and not path.stem.startswith("_"))


def main() -> int:
    """Entry point; returns the exit code."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in names():
        print(f"usage: python -m bench NAME [--help]\nbenches: {', '.join(names())}")
        return 2
    module = importlib.import_module(f"bench.{name}")
    with tempfile.TemporaryDirectory() as state:
        # What the runs of a bench name is none of the user's to accept: it stays out of their list (engine.trust).
        os.environ["XDG_STATE_HOME"] = state
        # Most benches return nothing; one returns 1 for a missed goal.
        return int(module.main(sys.argv[2:]) or 0)


if __name__ == "__main__":
    sys.exit(main())
