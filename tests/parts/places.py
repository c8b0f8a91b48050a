"""Where things lie, from the repository's root: wherever a test's own file is moved to."""

from pathlib import Path

import engine

ROOT = Path(engine.__file__).resolve().parent.parent
TESTS = ROOT / "tests"
ASSETS = ROOT / "engine" / "assets"
EXAMPLES = ROOT / "docs" / "examples"
