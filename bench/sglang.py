"""SGLang under the engine: tokens a second, swaps, errors and the engine's own CPU, with 1 to 1,024 episodes live.

One server is started as a run starts it; for each number of live episodes the whole engine plays against it, and a
simulated learner publishes adapters all the while. Without a GPU this measures the unmodified SGLang on the CPU with
the tiny model; on a GPU, `--shape qwen3-4b` makes a model of that shape with random weights (the tiny tokenizer, so its
vocabulary is small) and SGLang's own backends serve it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from bench._processes import prepared, process, simulated_learner
from bench.report import report
from engine.config.load import validate
from engine.config.tree import Config
from engine.errors import ConfigError
from engine.rundir.layout import RunDir, read_lines
from engine.serving.models import find_model
from engine.serving.served import served
from engine.stream.reader import iter_groups
from engine.telemetry import engine_metrics as keys
from engine.types import StopReason

GOAL = {"aborted": "== 0", "failed": "== 0"}
_STALENESS, _RANK = 3, 16
_START_S = 600.0
_SHAPES = {
    "qwen3-0.6b": {"hidden_size": 1024, "num_hidden_layers": 28, "intermediate_size": 3072, "num_attention_heads": 16},
    "qwen3-4b": {"hidden_size": 2560, "num_hidden_layers": 36, "intermediate_size": 9728, "num_attention_heads": 32},
    "qwen3-8b": {"hidden_size": 4096, "num_hidden_layers": 36, "intermediate_size": 12288, "num_attention_heads": 32},
}


def make_model(shape: str, directory: Path) -> Path:
    """A Qwen3 of that shape with random weights in bfloat16, and the tiny model's tokenizer."""
    tiny = find_model("tiny").path
    base = Qwen3Config.from_pretrained(tiny).to_dict()
    layers = {"num_key_value_heads": 8, "head_dim": 128, "layer_types": None, **_SHAPES[shape]}
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    Qwen3ForCausalLM(Qwen3Config(**{**base, **layers, "dtype": "bfloat16"})).save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (directory / name).write_bytes((tiny / name).read_bytes())
    return directory


def configured(model: Path, live: int, flags: str) -> Config:
    """SGLang for `live` episodes at once."""
    return validate(
        {
            "model": {"path": str(model)},
            "policy": {"launch": "sglang", "max_running": live, "flags": flags},
            "schedule": {"max_staleness": _STALENESS},
            "learner": {"rank": _RANK},
        },
        {},
    )


def played(run: RunDir, seconds: float) -> None:
    """Let the engine play for a while, then drain."""
    with simulated_learner(run), process("engine.run", str(run.path)) as engine:
        deadline = time.monotonic() + _START_S
        while not any(row[keys.EPISODES_FINISHED] for row in read_lines(run.metrics)):
            if engine.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the engine finished no episode; see {run.log}")
            time.sleep(0.2)
        time.sleep(seconds)
        engine.terminate()
        engine.wait()


def row(run: RunDir, live: int) -> dict[str, Any]:
    """One line of the table, from what the run recorded."""
    rows = [row for row in read_lines(run.metrics) if row[keys.EPISODES_FINISHED]]
    first, last = rows[0], max(rows, key=lambda row: row[keys.TOKENS_SAMPLED])
    wall_s = last[keys.RUN_S] - first[keys.RUN_S]
    swaps = list(read_lines(run.swaps))
    events = Counter(row["event"] for row in swaps)
    ended = Counter(episode.stop for group in iter_groups(run.trajectories) for episode in group.episodes)
    loads = [row["end_s"] - row["start_s"] for row in swaps if row["event"] == "load"]
    return {
        "live": live,
        "live at most": max(row[keys.EPISODES_LIVE] for row in rows),
        "tokens/s": round((last[keys.TOKENS_SAMPLED] - first[keys.TOKENS_SAMPLED]) / wall_s),
        "turns/s": round((last[keys.TURNS_FINISHED] - first[keys.TURNS_FINISHED]) / wall_s, 1),
        "engine cpu": round((last[keys.CPU_S] - first[keys.CPU_S]) / wall_s, 3),
        "swaps": events["flip"],
        "load p50 s": round(sorted(loads)[len(loads) // 2], 3),
        "load worst s": round(max(loads), 3),
        "aborted": events["abort"],
        "stale": ended[StopReason.STALE],
        "failed": events["retry"] + events["moved"] + ended[StopReason.POLICY_ERROR] + ended[StopReason.WALL_CLOCK],
    }


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The lines of the table.

    Raises ConfigError if there is no SGLang to start."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        model = find_model("tiny").path if options.shape == "tiny" else make_model(options.shape, base / "model")
        with served(RunDir(base), configured(model, max(options.live), options.flags)) as [url]:
            for live in options.live:
                groups = max(1, live // 16)
                schedule = {"group_size": 8, "groups_per_step": groups, "max_staleness": _STALENESS, "live_slots": live}
                run = prepared(
                    base / f"live{live}",
                    url,
                    live,
                    model={"path": str(model)},
                    schedule=schedule,
                    learner={"kind": "simulated", "pace_s": 1.0, "rank": _RANK},
                    limits={"turn_s": 600.0, "wall_s": 3000.0},
                )
                played(run, options.seconds)
                rows.append(row(run, live))
    return rows


def main(arguments: list[str]) -> None:
    """Run the bench."""
    parser = argparse.ArgumentParser(prog="python -m bench sglang", description=__doc__)
    parser.add_argument("--live", type=int, nargs="+", default=[1, 8, 64, 256, 1024])
    parser.add_argument("--seconds", type=float, default=30.0, help="for each number of live episodes")
    parser.add_argument("--shape", choices=("tiny", *_SHAPES), default="tiny")
    parser.add_argument("--flags", default="", help="more flags of sglang.launch_server")
    options = parser.parse_args(arguments)
    try:
        rows = measure(options)
    except ConfigError as error:
        print(f"nothing was measured: {error}")
        return
    measured = {
        "tokens_per_s_at_most": max(row["tokens/s"] for row in rows),
        "load_worst_s": max(row["load worst s"] for row in rows),
        "engine_cpu_at_most": max(row["engine cpu"] for row in rows),
        "aborted": sum(row["aborted"] for row in rows),
        "failed": sum(row["failed"] for row in rows),
    }
    name = "sglang" if options.shape == "tiny" else f"sglang-{options.shape}"
    report(name, (__doc__ or "").splitlines()[0], rows, measured, GOAL)
