"""One picture of a screen, without a terminal: for READMEs and reports."""

from __future__ import annotations

from pathlib import Path

import anyio

from engine.telemetry.window import Window
from tui.app import VIEWS, Dashboard
from tui.messages import Open
from tui.snapshot import Snapshot, SnapshotSource

_KEYS = {"tokens": "t", "group": "v"}
_SAME, _MOST = 3, 400
"""Snapshots that say the same until everything is read; and when to take the picture anyway."""


async def shoot(source: SnapshotSource, file: Path, screen: str, size: tuple[int, int]) -> None:
    """Write an SVG of one screen: rollouts, learner, engine, log, or an episode by its id, which /tokens or /group may
    follow."""
    app = Dashboard(source, readonly=True)
    name, _, what = screen.partition("/")
    async with app.run_test(size=size) as pilot:
        if name in VIEWS:
            await app.action_view(name)
        else:
            app.post_message(Open(name, Window()))
        await pilot.pause()
        if what:
            await app.look()
            await pilot.press(_KEYS[what])
            await pilot.pause()
        same, before = 0, ""
        for _ in range(_MOST):
            told = await app.look()
            await pilot.pause()
            now = _read(told) if told is not None else before
            same, before = same + 1 if now == before else 0, now
            if same == _SAME:
                break
        svg = app.export_screenshot(title="synth-engine")
    await source.close()
    await anyio.Path(file).write_text(svg, encoding="utf-8")


def _read(told: Snapshot) -> str:
    """How far everything is read."""
    talks = [(len(talk.messages), len(talk.ids), talk.reward is None) for talk in told.siblings]
    return f"{told.total} {told.note} {talks}"
