"""Does the main job make a better policy, on every seed, and is it the reward that does it?

Runs the shipped `tiny` configuration end to end for several seeds, and once more per seed with advantages shuffled
inside each group: same data flow, same step sizes, no information. The gain of the first must be large, that of the
control must not be there.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import orjson

from bench.report import report

_CONTROL = "learner.advantage=bench.shuffled:shuffled"


def run(seed: int, directory: Path, *extra: str) -> dict[str, Any]:
    """One main job; returns its summary."""
    name = f"seed{seed}{'-control' if extra else ''}"
    settings = [f"run.seed={seed}", f"run.name={name}", f"run.dir={directory}", *extra]
    command = [sys.executable, "-m", "engine.cli", "run", "--config", "tiny", "--plain"]
    for setting in settings:
        command += ["--set", setting]
    subprocess.run(command, check=True)
    summary: dict[str, Any] = orjson.loads((directory / name / "summary.json").read_bytes())
    return summary


def row(label: str, summary: dict[str, Any]) -> dict[str, Any]:
    """What the table shows of one run."""
    after, gain = summary["heldout_after"], summary["heldout_gain"]
    return {
        "run": label,
        "before": round(summary["heldout_before"]["mean"], 3),
        "after": round(after["mean"], 3),
        "F / N / I": f"{after['F']:.2f} / {after['N']:.2f} / {after['I']:.2f}",
        "gain": round(gain["mean"], 3),
        "gain low": round(gain["low"], 3),
        "gain high": round(gain["high"], 3),
        "swaps": summary["swaps"],
        "staleness >= 1": round(1 - summary["staleness"].get("0", 0.0), 3),
        "train_s": round(summary["train_wall_s"]),
        "wall_s": round(summary["wall_s"]),
    }


def main(arguments: list[str]) -> None:
    """Run the bench; `--seeds` and `--controls` say how many of each."""
    parser = argparse.ArgumentParser(prog="python -m bench tiny", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--controls", type=int, default=1)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="bench-tiny-") as directory:
        runs = [run(seed, Path(directory)) for seed in range(options.seeds)]
        controls = [run(seed, Path(directory), _CONTROL) for seed in range(options.controls)]
    rows = [row(f"seed {seed}", summary) for seed, summary in enumerate(runs)]
    rows += [row(f"control {seed}", summary) for seed, summary in enumerate(controls)]
    measured = {
        "after_least": min(summary["heldout_after"]["mean"] for summary in runs),
        "before_most": max(summary["heldout_before"]["mean"] for summary in runs),
        "gain_low_least": min(summary["heldout_gain"]["low"] for summary in runs),
        "F_least": min(summary["heldout_after"]["F"] for summary in runs),
        "I_least": min(summary["heldout_after"]["I"] for summary in runs),
        "swaps_least": min(summary["swaps"] for summary in runs),
        "stale_share_least": min(1 - summary["staleness"].get("0", 0.0) for summary in runs),
        "broken_promises": sum(len(summary["broken_promises"]) for summary in (*runs, *controls)),
        "train_wall_s_most": max(summary["train_wall_s"] for summary in runs),
        "wall_s_most": max(summary["wall_s"] for summary in runs),
        "control_gain_high_most": max((summary["heldout_gain"]["high"] for summary in controls), default=0.0),
    }
    goal = {
        "after_least": ">= 0.85",
        "before_most": "<= 0.35",
        "gain_low_least": ">= 0.45",
        "F_least": ">= 0.93",
        "I_least": ">= 0.95",
        "swaps_least": ">= 40",
        "stale_share_least": ">= 0.2",
        "broken_promises": "== 0",
        "train_wall_s_most": "<= 360",
        "wall_s_most": "<= 600",
        "control_gain_high_most": "<= 0.05",
    }
    report("tiny", (__doc__ or "").splitlines()[0], rows, measured, goal)
