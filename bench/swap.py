"""How long from a published adapter to its first use, and does a request in flight notice?

The embedded server decodes for 64 clients while adapters appear in the run directory, one a second. The engine's own
parts swap them in: load everywhere, flip, unload. Beside that one streaming request after another measures the gap
between its tokens; gaps that overlap a load are compared with the others.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import anyio

from bench._processes import prepared, serving
from bench.report import report
from engine.chat.chat_format import ChatFormat
from engine.config.load import load
from engine.core.versions import Versions
from engine.errors import EpisodeError
from engine.learnerdir.adapter import write_adapter
from engine.packs.pack import load_pack
from engine.policy.client import HttpPolicy
from engine.policy.servers import Servers
from engine.run.progress import LearnerFollower
from engine.run.swap import AdapterSwap
from engine.rundir.layout import RunDir, adapter_name
from engine.scripted.zero_adapter import zero_adapter
from engine.serving.models import find_model
from engine.types import Limits, Sampling, Turn

GOAL = {
    "aborted": "== 0",
    "failed": "== 0",
    "publish_to_live_worst_s": "<= 1",
    "gap_in_load_worst_s": "<= 0.5",
}
LIMITS = Limits(turns=8, tokens=1024, completion_tokens=48, wall_s=300.0, turn_s=60.0)
_CLIENTS = 64
_STREAM_TOKENS = 400
_RANK, _ALPHA = 16, 32


@dataclass(slots=True)
class Trial:
    """What was seen."""

    clock_start: float = field(default_factory=time.monotonic)
    events: list[dict[str, Any]] = field(default_factory=list)
    live_at: dict[int, float] = field(default_factory=dict)
    """When a version was first leased by a client's request that was answered."""
    published_at: dict[int, float] = field(default_factory=dict)
    gaps: list[tuple[float, float]] = field(default_factory=list)
    """Start and end of every pause between two tokens of a stream."""
    answered: int = 0
    failed: int = 0

    def clock(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.clock_start


async def _client(
    trial: Trial, policy: HttpPolicy, versions: Versions, run_id: str, template: Turn, index: int
) -> None:
    """Samples turns under the current version until cancelled."""
    turn = 0
    while True:
        version = versions.lease()
        fields = {"adapter": adapter_name(run_id, version), "episode_id": f"g{index:06d}.00", "index": turn % 100}
        try:
            await policy.complete(_changed(template, fields))
            trial.answered += 1
            trial.live_at.setdefault(version, trial.clock())
        except EpisodeError as error:
            trial.failed += 1
            print(error)
        finally:
            versions.release(version)
        turn += 1


def _changed(turn: Turn, fields: Mapping[str, Any]) -> Turn:
    kept = {"ids": turn.ids, "messages": (), "tools": (), "sampling": turn.sampling, "limits": LIMITS}
    return Turn(**{**kept, "group_id": str(fields["episode_id"]).partition(".")[0], **fields})


async def _stream(trial: Trial, url: str, versions: Versions, run_id: str, ids: list[int]) -> None:
    """One streaming request after another; notes every pause between tokens."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session:
        while True:
            version = versions.lease()
            body = {
                "input_ids": ids,
                "sampling_params": {"max_new_tokens": _STREAM_TOKENS, "ignore_eos": True, "temperature": 1.0},
                "lora_path": adapter_name(run_id, version),
                "stream": True,
            }
            async with session.post(f"{url}/generate", json=body) as response:
                await _note_gaps(trial, response)
            versions.release(version)


async def _note_gaps(trial: Trial, response: aiohttp.ClientResponse) -> None:
    last = None
    async for line in response.content:
        if not line.startswith(b"data: {"):
            continue
        now = trial.clock()
        if last is not None:
            trial.gaps.append((last, now))
        last = now


async def _swaps(trial: Trial, run: RunDir, files: dict[str, bytes], adapters: AdapterSwap, swaps: int) -> None:
    """Publish one version a second, and let the engine's parts notice."""
    for version in range(1, swaps + 1):
        await anyio.sleep(1.0)
        await anyio.to_thread.run_sync(write_adapter, run, version, files, {"version": version})
        trial.published_at[version] = trial.clock()
        with anyio.fail_after(60):
            while version not in trial.live_at:  # noqa: ASYNC110 - a stopwatch, not a wait for one event
                await anyio.sleep(0.005)
    assert adapters.versions.current == swaps


async def measure(run: RunDir, url: str, swaps: int) -> Trial:
    """The whole trial against one server."""
    trial = Trial()
    model = Path(load(run.config).config.model.path)
    chat = ChatFormat.load(model)
    task = load_pack(run.pack).tasks[0]
    files = zero_adapter(model, _RANK, _ALPHA)
    write_adapter(run, 0, files, {"version": 0})
    ids = list(chat.prompt(task)[1])
    template = Turn(
        ids=ids, messages=(), tools=(), adapter=None, sampling=Sampling(), limits=LIMITS,
        group_id="g000000", episode_id="g000000.00", index=0,
    )  # fmt: skip
    run_id, versions = run.run_id, Versions(slots=5)
    async with (
        Servers([url], run_id=run_id, clock=trial.clock, on_event=trial.events.append) as servers,
        HttpPolicy(servers, chat, connections=_CLIENTS + 1) as policy,
    ):
        await servers.ready(60.0)
        adapters = AdapterSwap(
            run=run, run_id=run_id, versions=versions, servers=servers, on_event=trial.events.append,
            clock=trial.clock, keep_every=1, max_staleness=1,
        )  # fmt: skip
        follower = LearnerFollower(run=run, swap=adapters)
        await follower.step()
        async with anyio.create_task_group() as tg:
            tg.start_soon(follower.watch)
            tg.start_soon(_stream, trial, url, versions, run_id, ids)
            for index in range(_CLIENTS):
                tg.start_soon(_client, trial, policy, versions, run_id, template, index)
            await _swaps(trial, run, files, adapters, swaps)
            tg.cancel_scope.cancel()
    return trial


def _quantile(values: list[float], q: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else 0.0


def _row(what: str, values: list[float]) -> dict[str, Any]:
    return {"what": what, "count": len(values), "p50": _quantile(values, 0.5), "worst": max(values, default=0.0)}


def _summary(trial: Trial) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """The lines of the table, and the figures."""
    loads = [(row["start_s"], row["end_s"]) for row in trial.events if row["event"] == "load"]
    across: list[float] = []
    other: list[float] = []
    for start, end in trial.gaps:
        overlaps = any(start < load_end and end > load_start for load_start, load_end in loads)
        (across if overlaps else other).append(end - start)
    delays = [trial.live_at[version] - trial.published_at[version] for version in trial.published_at]
    rows = [
        _row("published to first answer, s", delays),
        _row("load request, s", [end - start for start, end in loads]),
        _row("token gap, no load, s", other),
        _row("token gap across a load, s", across),
    ]
    measured = {
        "swaps": len(delays),
        "unloads": sum(row["event"] == "unload" for row in trial.events),
        "aborted": sum(row["event"] == "abort" for row in trial.events),
        "failed": trial.failed,
        "answered": trial.answered,
        "publish_to_live_p50_s": _quantile(delays, 0.5),
        "publish_to_live_worst_s": max(delays),
        "gap_outside_p99_s": _quantile(other, 0.99),
        "gap_in_load_worst_s": max(across, default=0.0),
    }
    return rows, measured


def main(arguments: list[str]) -> None:
    """Run the bench."""
    parser = argparse.ArgumentParser(prog="python -m bench swap", description=__doc__)
    parser.add_argument("--swaps", type=int, default=20)
    options = parser.parse_args(arguments)
    model = find_model("tiny").path
    with tempfile.TemporaryDirectory() as folder:
        root = str(Path(folder).resolve())
        command = ("engine.embedded", "--model", str(model), "--adapter-root", root, "--max-loras", "6")
        with serving(*command, "--max-lora-rank", str(_RANK), "--threads", "1") as url:
            run = prepared(Path(root), url, _CLIENTS)
            trial = anyio.run(measure, run, url, options.swaps)
    rows, measured = _summary(trial)
    report("swap", (__doc__ or "").splitlines()[0], rows, measured, GOAL)
