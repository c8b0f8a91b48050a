"""`python -m tui RUN`: the dashboard over one run; what `synth-engine run`, `attach` and `replay` start.

Exit codes: 0 left, 1 failed, 2 arguments, 10 the run's owner detached, 11 the run is to be stopped.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
from pathlib import Path

from engine.errors import SynthError
from engine.rundir.layout import RunDir
from engine.types import EPISODE_ID
from tui.app import EXIT_ERROR, EXIT_LEFT, VIEWS, Dashboard
from tui.files import run_facts
from tui.live import LiveSource
from tui.picker import Picker
from tui.shot import shoot
from tui.snapshot import SnapshotSource

_SIZE = "120x36"


def _size(text: str) -> tuple[int, int]:
    """Columns and lines from `120x36`.

    Raises ValueError, which argparse reports."""
    width, height = map(int, text.lower().split("x"))
    if not (40 <= width <= 400 and 12 <= height <= 200):
        raise ValueError(text)
    return width, height


def _screen(text: str) -> str:
    """What a picture can be of.

    Raises ValueError, which argparse reports."""
    if text not in VIEWS and not re.fullmatch(rf"{EPISODE_ID}(/tokens|/group)?", text):
        raise ValueError(text)
    return text


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tui", description="The dashboard over one run.")
    parser.add_argument("run", type=Path, nargs="?", help="a run directory; without it a list of runs is shown")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where that list looks")
    parser.add_argument("--chosen", type=Path, metavar="FILE", help="where the path of the chosen one is written")
    parser.add_argument("--owner", action="store_true", help="leaving asks what is to become of the run")
    parser.add_argument("--readonly", action="store_true", help="nothing can be cancelled or stopped")
    parser.add_argument("--replay", action="store_true", help="show what is recorded, by its clock")
    parser.add_argument("--at", type=float, metavar="SECONDS", help="where a replay begins")
    parser.add_argument("--speed", type=float, default=1.0, help="of a replay")
    parser.add_argument("--shot", type=Path, metavar="FILE", help="write one picture (SVG) and end")
    parser.add_argument("--screen", type=_screen, default="rollouts", help="which one, or EPISODE[/tokens|/group]")
    parser.add_argument("--size", type=_size, default=_SIZE, help=f"columns x lines of it ({_SIZE})")
    return parser.parse_args()


def main() -> int:
    """Show it; returns the exit code."""
    arguments = _arguments()
    path: Path | None = arguments.run or Picker(arguments.runs).run()
    if path is None:
        return EXIT_LEFT
    if arguments.chosen is not None:
        arguments.chosen.write_text(str(path), encoding="utf-8")
    try:
        run = RunDir(path.resolve())
        run_facts(run)  # What is no run is refused before the screen changes.
        source: SnapshotSource = LiveSource(run)
        if arguments.replay:
            from tui.replay import RecordedSource  # noqa: PLC0415 - see LiveSource

            source = RecordedSource(run, at=arguments.at or 0.0, speed=arguments.speed, state="replay")
        if arguments.shot is not None:
            asyncio.run(shoot(source, arguments.shot, arguments.screen, arguments.size))
            return EXIT_LEFT
        code = Dashboard(source, owner=arguments.owner, readonly=arguments.readonly).run()
    except SynthError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_ERROR
    # Textual ends without a value where it failed, and has said why.
    return EXIT_ERROR if code is None else code


if __name__ == "__main__":
    sys.exit(main())
