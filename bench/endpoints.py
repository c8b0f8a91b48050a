"""What does a call to a simulator cost the engine, batched and one at a time, and through a vendor's client?

The arms are processes of their own (bench/_endpoint_arms.py), measured with their whole CPU time; the LLM endpoint is
another. They take turns in one run, and ratios are taken within a round: a shared machine changes its pace.

- batched: thousands of coroutines ask users' questions of the scripted endpoint's native route (0.2 s an answer), in
  batches and one at a time: by the batcher alone, and by LlmUser with contract and journal above it.
- openai: the same calls by OpenAI's route, through our transport and through AsyncOpenAI of the `openai` package
  (`pip install -e ".[bench]"`; without it this part is left out, and says so).
- sglang: short calls to the real SGLang without a GPU, 64 at once (left out if there is none).
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import orjson

from bench._processes import serving
from bench.report import report
from engine.config.load import load
from engine.errors import ConfigError
from engine.rundir.layout import RunDir
from engine.serving.addresses import endpoint_urls
from engine.serving.models import find_model, find_models
from engine.serving.served import served

_WAIT_S = 0.02
_LATENCY_S = 0.2
_PARTS = ("batched", "openai", "sglang")
_SGLANG = (
    "scorer.judge=sim",
    "endpoints.sim.launch=sglang",
    "endpoints.sim.model=tiny",
    "endpoints.sim.device=cpu",
    "endpoints.sim.context_tokens=1024",
)
GOALS = {
    "batched_cpu_against_single": "<= 0.5",
    "batched_added_p50_ms": f"<= {1e3 * _WAIT_S:g}",
    "transport_cpu_against_openai": "<= 0.5",
}
Results = list[dict[str, float]]
"""Of one arm, by round."""


class Rounds:
    """Arms in turn, and what they measured."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.rows: list[dict[str, Any]] = []
        self.measured: dict[str, float] = {}

    def play(self, arms: dict[str, dict[str, Any]]) -> dict[str, Results]:
        """Every arm once a round; one line of the table for each."""
        results: dict[str, Results] = {label: [] for label in arms}
        for _ in range(self.options.rounds):
            for label, arm in arms.items():
                argv = [sys.executable, "-m", "bench._endpoint_arms", orjson.dumps(arm).decode()]
                done = subprocess.run(argv, check=True, stdout=subprocess.PIPE)
                results[label].append(orjson.loads(done.stdout.splitlines()[-1]))
                print(f"  {label}: {results[label][-1]}", flush=True)
        for label, found in results.items():
            middle = {key: median(row[key] for row in found) for key in found[0]}
            self.rows.append(
                {
                    "arm": label,
                    "live": arms[label]["live"],
                    "calls/s": round(middle["calls_per_s"]),
                    "client cpu ms/call": round(middle["cpu_ms"], 3),
                    "p50 ms": round(middle["p50_ms"], 1),
                    "failed": round(sum(row["failed"] for row in found)),
                }
            )
        return results

    def arm(self, url: str, client: str, **settings: Any) -> dict[str, Any]:
        """An arm of so many coroutines as the options say; a key of `endpoint` alone is one of `[endpoints.NAME]`."""
        live = settings.pop("live", self.options.live)
        calls = settings.pop("calls", self.options.calls)
        think_s, short = settings.pop("think_s", self.options.think_s), settings.pop("short", False)
        endpoint = {"url": url, "model": str(find_model("tiny").path), "concurrency": 2 * live, **settings}
        sizes = {"live": live, "calls": calls, "think_s": think_s}
        return {"client": client, "url": url, **sizes, "short": short, "endpoint": endpoint}


def _ratio(results: dict[str, Results], label: str, against: str) -> float:
    """Median over the rounds, each pair by itself."""
    pairs = zip(results[label], results[against], strict=True)
    return median(mine["cpu_ms"] / other["cpu_ms"] for mine, other in pairs)


def batched(rounds: Rounds, url: str) -> None:
    """Users' questions in batches and one at a time."""

    def native(client: str, batch: int) -> dict[str, Any]:
        return rounds.arm(url, client, api="sglang", batch=batch, batch_wait_s=_WAIT_S)

    results = rounds.play(
        {
            "coroutines alone": rounds.arm(url, "none"),
            "batcher, single": native("batcher", 1),
            "batcher, 32": native("batcher", 32),
            "batcher, 64": native("batcher", 64),
            "user, single": native("user", 1),
            "user, 32": native("user", 32),
        }
    )
    pairs = zip(results["batcher, 32"], results["batcher, single"], strict=True)
    rounds.measured |= {
        "batched_cpu_against_single": _ratio(results, "batcher, 32", "batcher, single"),
        "batched_64_cpu_against_single": _ratio(results, "batcher, 64", "batcher, single"),
        "batched_added_p50_ms": median(mine["p50_ms"] - other["p50_ms"] for mine, other in pairs),
        "user_batched_cpu_against_single": _ratio(results, "user, 32", "user, single"),
    }


def openai(rounds: Rounds, url: str) -> None:
    """The same by OpenAI's route; an eighth of the coroutines, so that neither client is busy all the time."""
    if importlib.util.find_spec("openai") is None:
        print('openai is left out: `pip install -e ".[bench]"` installs the client that it compares with')
        return
    few = {"live": max(1, rounds.options.live // 8), "calls": max(1, rounds.options.calls // 4), "api": "openai"}
    results = rounds.play(
        {
            "openai route, our transport": rounds.arm(url, "batcher", **few),
            "openai route, AsyncOpenAI": rounds.arm(url, "openai", **few),
        }
    )
    ours, theirs = results
    rounds.measured["transport_cpu_against_openai"] = _ratio(results, ours, theirs)


def sglang(rounds: Rounds) -> None:
    """The real one: short calls without a pause between them."""
    few = {"live": min(64, rounds.options.live), "calls": max(1, rounds.options.calls // 16), "think_s": 0.0}
    try:
        with _real() as url:

            def native(batch: int) -> dict[str, Any]:
                settings: dict[str, Any] = {"api": "sglang", "batch": batch, "max_tokens": 16, "short": True, **few}
                return rounds.arm(url, "batcher", **settings, batch_wait_s=_WAIT_S, timeout_s=600.0)

            results = rounds.play({"SGLang, single": native(1), "SGLang, 32": native(32)})
    except ConfigError as error:
        print(f"sglang is left out: {error}")
        return
    pairs = zip(results["SGLang, 32"], results["SGLang, single"], strict=True)
    rounds.measured["sglang_calls_per_s"] = median(row["calls_per_s"] for row in results["SGLang, 32"])
    rounds.measured["sglang_calls_against_single"] = median(
        mine["calls_per_s"] / other["calls_per_s"] for mine, other in pairs
    )


@contextmanager
def _real() -> Iterator[str]:
    """SGLang as a run starts it for an endpoint."""
    config = load("dry", _SGLANG).config
    config = find_models(config).into(config)
    with tempfile.TemporaryDirectory(prefix="endpoints-") as directory:
        run = RunDir(Path(directory))
        with served(run, config):
            yield endpoint_urls(run, config)["sim"]


def main(arguments: list[str]) -> None:
    """Run the bench."""
    parser = argparse.ArgumentParser(prog="python -m bench endpoints", description=__doc__)
    parser.add_argument("--live", type=int, default=4096, help="coroutines that ask")
    parser.add_argument("--calls", type=int, default=8192, help="calls that are measured, once all have asked")
    parser.add_argument("--think-s", type=float, default=6.0, help="mean time between two calls of one coroutine")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--parts", nargs="+", choices=_PARTS, default=_PARTS)
    options = parser.parse_args(arguments)
    rounds = Rounds(options)
    with serving("engine.scripted", "endpoint", "--latency-s", str(_LATENCY_S)) as url:
        if "batched" in options.parts:
            batched(rounds, url)
        if "openai" in options.parts:
            openai(rounds, url)
    if "sglang" in options.parts:
        sglang(rounds)
    goal = {key: wanted for key, wanted in GOALS.items() if key in rounds.measured}
    name = "-".join(("endpoints", *(options.parts if set(options.parts) != set(_PARTS) else ())))
    report(name, (__doc__ or "").splitlines()[0], rounds.rows, rounds.measured, goal)
