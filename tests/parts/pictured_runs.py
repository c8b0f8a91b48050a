"""A small recorded run that is the same on every machine and day, and screens of it as text.

`python -m tests.parts.pictured_runs` writes tests/pictures anew: look at what has changed before you commit it.
"""

import math
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import anyio
import orjson

import tests.parts.pilots  # noqa: F401 - for what it does
from engine.learnerdir.steps import TrainedGroup, TrainedStep
from engine.rundir.layout import RunDir, read_json, write_json
from engine.stream.reader import iter_groups
from engine.telemetry import engine_metrics as keys
from engine.telemetry import learner_metrics as learner
from engine.telemetry.metrics import key_with
from engine.telemetry.window import Window
from engine.types import Episode, EpisodeGroup, TurnTiming
from tests.parts.looking import closed_at_the_end
from tests.parts.places import TESTS
from tests.parts.played_runs import packed, recorded
from tests.parts.recorded_runs import advantages, write_stream
from tests.parts.worlds import task_json
from tui import app as dashboard
from tui.app import VIEWS, Dashboard
from tui.messages import Open
from tui.replay import RecordedSource

DIRECTORY = TESTS / "pictures"
SCREENS = {"rollouts": "rollouts", "learner": "learner", "episode": "g000001.00"}
SIZES = ((120, 36), (80, 24))
PICTURES = {f"{name}-{width}x{height}": (name, (width, height)) for name in SCREENS for width, height in SIZES}
MOMENT_S = 26.0
"""One group is done then, one nearly, and one in flight."""
_TEXTS = {
    "rushed": "Rushes an order, which costs extra.",
    "ordered": "Places an order for apples.",
    "told": "Tells the code of the order.",
    "asked": "Asks how many apples are wanted.",
}
_TOOK_S = {"queued": 0.2, "policy": 1.4, "tool": 1.1, "user": 1.7, "scoring": 0.25}
_GROUP_S, _SWAP_S = 9.5, 1.5
"""Between two groups, and two adapters."""
_STEPS = 24
_MOST = 20
"""Looks until a screen is as it stays."""


def pictured(base: Path) -> RunDir:
    """The run, recorded."""
    rubric = task_json()["rubric"]
    for items in rubric.values():
        for item in items:
            item["text"] = _TEXTS[item["id"]]
    pack = packed(base / "shops.jsonl", rubric=rubric)
    run = recorded(base, pack, **{"run.steps": _STEPS, "run.name": "pictured"})
    write_json(run.manifest, {**(read_json(run.manifest) or {}), "run_id": "pictured-0a1b2c3d"})
    groups = [
        replace(group, episodes=tuple(_timed(episode, place, number) for number, episode in enumerate(group.episodes)))
        for place, group in enumerate(iter_groups(run.trajectories))
    ]
    write_stream(run, run.trajectories, groups)
    write_stream(run, run.eval, [])
    _rows(run.steps, [_step(step, group).value() for step, group in enumerate(groups, 1)])
    _rows(run.learner / "metrics.jsonl", map(_learner_row, range(1, _STEPS + 1)))
    _rows(run.metrics, map(_engine_row, range(2 * int(MOMENT_S))))
    _rows(run.swaps, [row for version in range(_STEPS) for row in _swaps(version)])
    write_json(run.progress, {"step": _STEPS, "state": "done"})
    write_json(run.path / "phase.json", {"phase": "done", "history": [{"phase": "training", "start_s": 0.5}]})
    return run


def _timed(episode: Episode, place: int, number: int) -> Episode:
    """As long as every machine takes."""
    now_s, timings = _GROUP_S * place + 0.9 * number, []
    for timing in episode.timings:
        took_s = _TOOK_S[timing.phase] * (1 + 0.3 * number + 0.1 * max(0, timing.turn))
        timings.append(TurnTiming(turn=timing.turn, phase=timing.phase, start_s=now_s, end_s=now_s + took_s))
        now_s += took_s
    return replace(episode, timings=tuple(timings))


def _engine_row(number: int) -> dict[str, float]:
    """Two a second."""
    run_s = number / 2
    return {
        keys.RUN_S: run_s,
        keys.EPISODES_FINISHED: number // 6,
        keys.TURNS_FINISHED: number * 3 // 4,
        keys.TOKENS_SAMPLED: int(40 * number + 100 * math.sin(number / 6)),
        keys.REWARD_MEAN: 0.2 + 0.01 * number + 0.03 * (number % 4),
        keys.F_MEAN: 1.0,
        keys.N_MEAN: 0.5,
        keys.I_MEAN: 0.75,
        keys.POLICY_QUEUE: number % 3,
        keys.LAG_P99: 0.004,
        keys.ADAPTER_VERSION: int(run_s / _SWAP_S),
        keys.GROUPS_ADMITTED: 3,
        keys.GROUPS_WRITTEN: 2,
        keys.GROUPS_TRAINED: 1,
        keys.GROUPS_DROPPED: 0,
        keys.LIVE_SLOTS: 16,
    }


def _step(step: int, group: EpisodeGroup) -> TrainedStep:
    """The row of a step that trained one group."""
    trained = TrainedGroup(id=group.id, advantages=tuple(advantages(group)), staleness=0)
    return TrainedStep(step=step, version=step, cursor=(0, 0), groups=(trained,), dropped={})


def _learner_row(step: int) -> dict[str, float]:
    return {
        learner.STEP: step,
        learner.REWARD: 0.2 + 0.02 * step + 0.05 * (step % 3),
        learner.LOSS: 0.04 / step,
        learner.DRIFT_K3: 0.001 * (1 + step % 5),
        learner.ENTROPY: 2.0 - 0.05 * step,
        learner.GRAD_NORM: 0.3 + 0.1 * (step % 4),
        learner.CLIP_HIGH: 0.01 * (step % 6),
        learner.WAIT: 0.4,
        learner.READ: 0.01,
        learner.PROBE: 0.05,
        learner.FORWARD: 0.2,
        learner.BACKWARD: 0.3,
        learner.OPTIMIZER: 0.02,
        learner.PUBLISH: 0.02,
        learner.POLICY_TOKENS: 3_412,
        learner.EPISODES: 32,
        learner.SPEED: 6_824.0,
        learner.LR: 2e-4,
        learner.ESS: 0.93,
        key_with(learner.STALENESS_TOKENS, versions=0): 2_400,
        key_with(learner.STALENESS_TOKENS, versions=1): 1_012,
    }


def _swaps(version: int) -> Iterator[dict[str, Any]]:
    start_s = _SWAP_S * version
    at = {"version": version, "server": "http://127.0.0.1:4711", "ok": True}
    yield {"event": "load", **at, "start_s": start_s, "end_s": start_s + 0.24}
    yield {"event": "flip", **at, "start_s": start_s + 0.24, "end_s": start_s + 0.24}


def _rows(path: Path, rows: Iterable[Any]) -> None:
    path.write_bytes(b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows))


async def drawn(run: RunDir, name: str, size: tuple[int, int]) -> list[str]:
    """A screen at the moment, line by line, without the space at their ends."""
    # On a busy machine it would say that drawing takes its time.
    with patch.object(dashboard, "_BUSY_SHARE", math.inf):
        async with closed_at_the_end(RecordedSource(run, at=MOMENT_S)) as source:
            app, lines = Dashboard(source), list[str]()
            async with app.run_test(size=size) as pilot:
                if name in VIEWS:
                    await app.action_view(name)
                else:
                    app.post_message(Open(SCREENS[name], Window()))
                for _ in range(_MOST):
                    await app.look()
                    await pilot.pause()
                    lines, before = _lines(app), lines
                    if lines == before and source.records.complete:
                        break
    return lines


def _lines(app: Dashboard) -> list[str]:
    strips = app.screen._compositor.render_strips()
    return ["".join(part.text for part in strip).rstrip() for strip in strips]


async def _renew(run: RunDir) -> None:
    for file, (name, size) in PICTURES.items():
        text = "\n".join(await drawn(run, name, size)) + "\n"
        await anyio.Path(DIRECTORY / f"{file}.txt").write_text(text, encoding="utf-8")


def main() -> None:
    """Write all pictures."""
    with tempfile.TemporaryDirectory() as scratch:
        anyio.run(_renew, pictured(Path(scratch)))
    sys.stdout.write(f"wrote {len(PICTURES)} pictures in {DIRECTORY}; `git diff` shows what has changed\n")


if __name__ == "__main__":
    main()
