"""Runs whose users, tools and judges are the scripted LLM endpoint's process, with its ledger of faults, and sums."""

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

from engine.config.load import ASSETS, load
from engine.packs.pack import load_pack
from engine.report.summary import summarize
from engine.rundir.layout import RunDir, read_json, read_lines
from engine.stream.reader import iter_groups
from engine.telemetry import engine_metrics as keys
from engine.types import Episode, Outcome, StopReason
from tests.parts.children import python
from tests.parts.llm_parts import TINY
from tests.parts.load_runs import run_to_the_end

JUDGED = ("look_up_first", "report_code")
"""Items without a check."""
SAME = {"hang": "timeout", "error": "error", "down": "busy"}
"""What a fault of the endpoint is to its client."""
SETTINGS = {
    "run.name": "chaos",
    "world.kind": "llm",
    "world.endpoint": "sim",
    "user.kind": "llm",
    "user.endpoint": "sim",
    "user.profile": "mixed",
    "scorer.judge": "sim",
    "endpoints.sim.model": TINY,
    "endpoints.sim.input_price": 1.0,
    "endpoints.sim.output_price": 2.0,
    "endpoints.sim.timeout_s": 1.5,
    "schedule.group_size": 4,
    "eval.every": 0,
}


def chaos_pack(path: Path, train: int, heldout: int) -> Path:
    """Tasks of the tiny family whose look-up only a model answers, and whose rubric has two items for the judge."""
    whole = load_pack(ASSETS / "packs" / "tiny.jsonl.zst").tasks
    chosen = [task for task in whole if task.split == "train"][:train]
    chosen += [task for task in whole if task.split == "heldout"][:heldout]
    lines: list[dict[str, Any]] = [{"format": 1, "pack": "chaos"}]
    for task in chosen:
        plain = orjson.loads(orjson.dumps(task))
        plain["tools"] = [{**tool.function, "outputs": tool.outputs} for tool in task.tools]
        for made, tool in zip(plain["tools"], task.tools, strict=True):
            if tool.writes:
                made["effect"] = tool.effect
        for item in plain["rubric"]["subgoals"]:
            if item["id"] in JUDGED:
                del item["check"]
        lines.append({key: value for key, value in plain.items() if value is not None})
    path.write_bytes(b"".join(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE) for line in lines))
    return path


@contextmanager
def scripted_endpoint(ledger: Path, *arguments: str) -> Iterator[str]:
    """The endpoint's process, with its injected faults in `ledger`; gives its URL."""
    command = ("engine.scripted", "endpoint", "--latency-s", "0.01", "--ledger", str(ledger), *arguments)
    with python("-m", *command, stdout=subprocess.PIPE) as child:
        yield orjson.loads(child.stdout.readline())["url"]


def chosen(base: Path, pack: Path, url: str, settings: Mapping[str, Any]) -> list[str]:
    """The overrides of a run with that endpoint, of the shipped configuration `dry`."""
    all_ = {**SETTINGS, "run.dir": base, "tasks.pack": pack, "endpoints.sim.url": url, **settings}
    return [f"{key}={value}" for key, value in all_.items()]


def chaos_engine(base: Path, pack: Path, url: str, **settings: Any) -> RunDir:
    """Engine and learner as processes, to their end, and the summary."""
    run = run_to_the_end(load("dry", chosen(base, pack, url, settings)).config)
    summarize(run)
    return run


def chaos_run(base: Path, pack: Path, url: str, **settings: Any) -> tuple[RunDir, str]:
    """`synth-engine run` with that endpoint, to its end; the run and what was printed."""
    words = [word for override in chosen(base, pack, url, settings) for word in ("--set", override)]
    argv = [sys.executable, "-m", "engine.cli", "run", "--config", "dry", "--plain", *words]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return RunDir(base / "chaos"), done.stdout


def episodes_of(run: RunDir) -> tuple[list[Episode], list[Episode]]:
    """Those in the training stream, and the evaluations'."""
    streams = (run.trajectories, run.eval)
    training, evaluated = ([episode for group in iter_groups(place) for episode in group.episodes] for place in streams)
    return training, evaluated


def assert_classified(episode: Episode) -> None:
    """Only what the agent did has a reward; all else has an error, and the outcome of who failed."""
    assert (episode.reward is not None) == (episode.outcome in (Outcome.AGENT_OK, Outcome.AGENT_FAIL))
    assert episode.reward is not None or episode.error
    assert (episode.outcome is Outcome.TOOL_FAULT) == (episode.stop is StopReason.TOOL_ERROR)
    assert (episode.outcome is Outcome.USER_FAULT) == (episode.stop is StopReason.USER_ERROR)


def assert_outcomes(run: RunDir) -> Counter[Outcome]:
    """Every episode ended in one of four ways, and only the agent's doing made a reward; returns how many each."""
    training, evaluated = episodes_of(run)
    summary, outcomes = read_json(run.summary), Counter(episode.outcome for episode in training)
    assert summary is not None
    assert summary["broken_promises"] == {}
    assert summary["outcomes"] == dict(outcomes)
    assert len(training) == outcomes.total() == summary["episodes"]
    for episode in (*training, *evaluated):
        assert_classified(episode)
    *_, last = read_lines(run.metrics)
    assert last[keys.EPISODES_FINISHED] == len(training)
    assert last[keys.EPISODES_MASKED] == sum(not episode.scored for episode in training)
    return outcomes


def assert_accounts(run: RunDir, ledger: Path, batch: int = 1) -> dict[str, Any]:
    """What the endpoint says it did is what the run says it met; returns the run's account of the endpoint.

    With `batch` calls a request at most, each request that was answered has answered one to `batch` of them.

    Whose caller was cancelled (at the end of training, or at its deadline) never hears of its request: that is counted
    as abandoned, on our side alone. So the ledger may have more, by the number of those at most, and never less."""
    summary = read_json(run.summary)
    assert summary is not None
    client: dict[str, Any] = summary["simulators"]["endpoints"]["sim"]
    parts = summary["simulators"]["parts"]
    injected = Counter(row["fault"] for row in read_lines(ledger))
    answered = client["requests"] - sum(client["faults"].values()) - client["abandoned"]
    assert answered <= client["calls"] <= batch * answered
    met = {ours: client["faults"].get(theirs, 0) for ours, theirs in SAME.items()}
    unmet = {fault: injected[fault] - count for fault, count in met.items()}
    assert min(unmet.values()) >= 0, (injected, client)
    assert sum(unmet.values()) <= client["abandoned"], (injected, client)
    assert client["faults"].keys() <= set(SAME.values())
    # A reply that arrives as its caller is cancelled is answered, and heard by nobody.
    unheard = client["calls"] - sum(part["replies"] for part in parts.values())
    refused = sum(part["refused"].get("malformed", 0) for part in parts.values())
    assert 0 <= injected["malformed"] - refused <= client["abandoned"] + unheard
    return client
