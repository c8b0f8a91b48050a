"""What does a turn cost the engine, beside tokenization, and beside a bare loop over the same server?

Three processes: this one, the mock policy server (50 ms), and the arm that is measured with its whole CPU time, all
threads. The arms take turns in one run: the engine as `run` composes it, and coroutines that do nothing but
POST /generate with ids and log-probabilities; figures are medians over the rounds, the ratio is taken pair by pair,
because a shared machine changes its pace within a minute. Then 1,024 episodes with jittered 2 s turns, against
coroutines that only wait as long; and the engine's memory at 4,096 live.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import orjson

from bench._processes import prepared, serving, simulated_learner
from bench.report import report
from engine.rundir.layout import RunDir
from engine.serving.models import find_model

GOAL = {
    "cpu_per_turn_ms": "<= 0.5",
    "cpu_against_bare": "<= 2",
    "rss_4096_live_mb": "<= 400",
    "wall_against_bare": "<= 1.1",
}
_MANY = 4_096


def arm(name: str, url: str, live: int, turns: int, run: RunDir) -> dict[str, Any]:
    """One arm in a process of its own."""
    command = [sys.executable, "-m", "bench._core_arms", name, url, str(live), str(turns), str(run.path)]
    return dict(orjson.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1]))


def served_arm(name: str, live: int, turns: int, base: Path) -> dict[str, Any]:
    """One arm against a fresh mock server, and a fresh run directory."""
    model = find_model("tiny").path
    with serving("engine.scripted", "server", "--model", str(model), "--slots", "64") as url:
        run = prepared(base / f"{name}-{live}", url, live)
        with simulated_learner(run):
            return arm(name, url, live, turns, run)


def row(label: str, live: int, cost: dict[str, Any]) -> dict[str, Any]:
    """One line of the table."""
    turns = cost["turns"]
    own_s = cost["cpu_s"] - cost["tokenizing_s"]
    return {
        "arm": label,
        "live": live,
        "turns": turns,
        "turns/s": round(turns / cost["wall_s"]),
        "cpu ms/turn": round(1e3 * own_s / turns, 3),
        "tokenizing ms/turn": round(1e3 * cost["tokenizing_s"] / turns, 3),
        "rss MB": round(cost["rss_mb"]),
    }


def main(arguments: list[str]) -> None:
    """Run the bench."""
    parser = argparse.ArgumentParser(prog="python -m bench core", description=__doc__)
    parser.add_argument("--live", type=int, default=1024)
    parser.add_argument("--turns", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    live, turns = options.live, options.turns
    bare, engine = [], []
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        for number in range(options.rounds):
            bare.append(row("bare loop", live, served_arm("bare", live, turns, base / f"bare{number}")))
            engine.append(row("engine", live, served_arm("engine", live, turns, base / f"engine{number}")))
        many = row("engine", _MANY, served_arm("engine", _MANY, turns, base))
        run = prepared(base / "waits", "http://127.0.0.1:1", live)
        waited = arm("waits", "-", live, 0, run)
    pairs = zip(engine, bare, strict=True)
    measured = {
        "cpu_per_turn_ms": median(row["cpu ms/turn"] for row in engine),
        "tokenizing_per_turn_ms": median(row["tokenizing ms/turn"] for row in engine),
        "bare_cpu_per_turn_ms": median(row["cpu ms/turn"] for row in bare),
        "cpu_against_bare": median(one["cpu ms/turn"] / other["cpu ms/turn"] for one, other in pairs),
        "rss_4096_live_mb": many["rss MB"],
        "wall_against_bare": waited["engine_s"] / waited["bare_s"],
    }
    rows = [row for pair in zip(bare, engine, strict=True) for row in pair]
    report("core", (__doc__ or "").splitlines()[0], [*rows, many], measured, GOAL)
