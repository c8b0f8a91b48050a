"""Does the learner survive 50 kills at random moments without repeating or losing a group?

A recorded stream of groups is trained; the process is killed with SIGKILL at a random moment, and started again, 50
times. The surviving history must hold every group exactly once, versions must grow by one, no published directory may
ever change its hash, and the adapters must be those of a run that nobody killed.

    python -m bench learner_kills [KILLS]
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench.report import report
from engine.rundir.layout import RunDir
from engine.types import EpisodeGroup
from tests.parts.learner_kills import check_history, finish, hashes, make_groups
from tests.parts.learner_runs import make_model, make_policy, make_run, write_stream

GROUPS_PER_STEP = 2
LR = 1e-6
"""Small, because every group was sampled by version 0: hundreds of steps may not drift from it."""
LONGEST_S = 0.6
"""From the start of a process (every fourth kill) or from when it is loaded."""
GOAL = {
    "kills": ">= 50",
    "directories_changed": "== 0",
    "adapters_unlike_undisturbed": "== 0",
    "history_broken": "== 0",
}


def main(arguments: Sequence[str] = ()) -> None:
    """Kill, resume, compare; one table, one JSON."""
    kills = int(arguments[0]) if arguments else 50
    steps = 10 * kills
    with tempfile.TemporaryDirectory(prefix="learner-kills-") as folder:
        base = Path(folder)
        model = make_model(base / "model")
        policy = make_policy(model)
        groups = make_groups(policy, GROUPS_PER_STEP * steps)
        undisturbed, killed = (
            make_run(base / name, model, steps=steps, max_staleness=steps, lr=LR) for name in ("undisturbed", "killed")
        )
        for run in (undisturbed, killed):
            write_stream(run, groups)
        assert finish(undisturbed.path) == 0
        rows, figures = _kill(killed, groups, kills)
        wanted, found = hashes(undisturbed), hashes(killed)
        figures["adapters_unlike_undisturbed"] = float(sum(wanted[v] != found.get(v) for v in wanted))
        report("learner_kills", (__doc__ or "").splitlines()[0], rows, figures, GOAL)


def _kill(run: RunDir, groups: Sequence[EpisodeGroup], kills: int) -> tuple[list[dict[str, object]], dict[str, float]]:
    """Rows of the table and figures."""
    draw = random.Random(0)
    rows: list[dict[str, object]] = []
    seen: dict[int, str] = {}
    changed = done = 0
    while done < kills:
        after_s = draw.uniform(0.0, LONGEST_S)
        code = finish(run.path, after_s=after_s, loaded=bool(done % 4))
        now = hashes(run)
        changed += sum(now.get(version) != digest for version, digest in seen.items())
        seen = now
        done += code == -9
        rows.append({"after_s": after_s, "exit": str(code), "version": max(now, default=-1)})
        if code == 0:
            break
    assert finish(run.path) == 0
    broken = 0
    try:
        check_history(run, groups)
    except AssertionError:
        broken = 1
    return rows, {"kills": float(done), "directories_changed": float(changed), "history_broken": float(broken)}


if __name__ == "__main__":
    main()
