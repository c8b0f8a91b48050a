"""`synth-engine export`: what a run produced, in formats of other tools."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import orjson

from engine.config.load import load
from engine.errors import ConfigError, RunError
from engine.packs.pack import load_pack
from engine.preflight.manifest import base_model
from engine.processes.child import PYTHON, torch_environment
from engine.rundir.layout import RunDir, find_run
from engine.stream.integrity import RecordsPart, require_complete
from engine.stream.reader import iter_groups, iter_headers
from engine.types import Episode, EpisodeGroup

if TYPE_CHECKING:
    import pyarrow as pa

_BATCH_GROUPS = 64
_EXAMPLES = """\b
synth-engine export --merged merged          base and best adapter, to be served or shared
synth-engine export --chat good.jsonl --min-reward 1
"""


@click.command(epilog=_EXAMPLES)
@click.argument("run", required=False)
@click.option("--chat", metavar="FILE", type=Path, help="Episodes as chat JSONL for SFT: messages, tools, reward.")
@click.option(
    "--min-reward", metavar="R", default=0.0, show_default=True, help="With --chat: episodes with at least this reward."
)
@click.option("--parquet", metavar="FILE", type=Path, help="All training episodes with ids and log-probabilities.")
@click.option("--merged", metavar="DIR", type=Path, help="Base and adapter as one Hugging Face directory.")
@click.option("--adapter", metavar="VERSION", help="With --merged: this version instead of the best, for example 60.")
@click.option("--dir", "directory", metavar="DIR", default="runs", show_default=True, help="Where runs live.")
def command(**options: Any) -> None:
    """Export RUN (default: the latest): its episodes, its model, or both."""
    wanted = Wanted(**options)
    wanted.check()
    found = find_run(wanted.run, wanted.directory)
    if wanted.chat or wanted.parquet:
        require_complete(found, RecordsPart.TRAINING, checksums=True)
    if wanted.chat:
        click.echo(f"{wanted.chat}: {write_chat(found, wanted.chat, wanted.min_reward)} episodes")
    if wanted.parquet:
        click.echo(f"{wanted.parquet}: {write_parquet(found, wanted.parquet)} episodes")
    if wanted.merged:
        version = write_merged(found, wanted.merged, wanted.adapter)
        click.echo(
            f"{wanted.merged}: base and adapter {version}; serve it with: synth-engine serve --model {wanted.merged}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The options of the command."""

    run: str | None
    chat: Path | None
    min_reward: float
    parquet: Path | None
    merged: Path | None
    adapter: str | None
    directory: str

    def check(self) -> None:
        """Refuse options without effect, and places that are taken.

        Raises ConfigError."""
        if not (self.chat or self.parquet or self.merged):
            raise ConfigError("nothing to export: name --chat FILE, --parquet FILE or --merged DIR")
        if self.adapter and not self.merged:
            raise ConfigError("--adapter has no effect without --merged DIR")
        if self.min_reward and not self.chat:
            raise ConfigError("--min-reward has no effect without --chat FILE")
        for path in (self.chat, self.parquet, self.merged):
            if path is not None:
                check_place(path)


def check_place(path: Path) -> None:
    """Refuse, before any work, a file or directory that cannot be made.

    Raises ConfigError."""
    if path.exists():
        raise ConfigError(f"{path} exists; remove it, or name another place")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"{path}: there is no directory {path.parent}; make it, or name another place")


def write_chat(run: RunDir, path: Path, min_reward: float) -> int:
    """One JSON line per scored training episode with at least `min_reward`; returns how many."""
    tools = {task.id: [tool.function for tool in task.tools] for task in load_pack(run.pack).tasks}
    count = 0
    with path.open("wb") as file:
        for header in iter_headers(run.trajectories):
            for episode in header.group.episodes:
                if episode.reward is None or episode.reward.value < min_reward:
                    continue
                row = {
                    "messages": episode.messages,
                    "tools": tools.get(episode.task_id, []),
                    "reward": episode.reward.value,
                    "task_id": episode.task_id,
                    "episode_id": episode.id,
                    "adapter": episode.adapter,
                }
                file.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
                count += 1
    return count


def write_parquet(run: RunDir, path: Path) -> int:
    """All training episodes, masked ones included, with their ledgers; returns how many."""
    # pyarrow takes longer to import than the other exports take.
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    schema = _schema(pa)
    count = 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for rows in _batches(run):
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
            count += len(rows)
    return count


def _schema(arrow: Any) -> pa.Schema:
    span = arrow.struct([("start", arrow.int32()), ("length", arrow.int32()), ("version", arrow.int32())])
    text, number, integer = arrow.string(), arrow.float64(), arrow.int64()
    return arrow.schema(
        [
            *((name, text) for name in ("episode_id", "group_id", "task_id", "adapter", "server", "stop", "outcome")),
            *((name, integer) for name in ("version", "seed", "turns")),
            *((name, number) for name in ("reward", "F", "N", "I")),
            *((name, text) for name in ("messages", "events", "final_state", "rubric_items")),
            ("ids", arrow.list_(arrow.uint32())),
            ("logprobs", arrow.list_(arrow.float32())),
            ("spans", arrow.list_(span)),
        ]
    )


def _batches(run: RunDir) -> Iterator[list[dict[str, Any]]]:
    rows: list[dict[str, Any]] = []
    for number, group in enumerate(iter_groups(run.trajectories), start=1):
        rows += [_row(group, episode) for episode in group.episodes]
        if number % _BATCH_GROUPS == 0:
            yield rows
            rows = []
    if rows:
        yield rows


def _row(group: EpisodeGroup, episode: Episode) -> dict[str, Any]:
    reward, tokens = episode.reward, episode.tokens
    return {
        "episode_id": episode.id,
        "group_id": group.id,
        "task_id": episode.task_id,
        "adapter": episode.adapter,
        "server": episode.server,
        "stop": str(episode.stop),
        "outcome": str(episode.outcome),
        "version": episode.version,
        "seed": episode.seed,
        "turns": episode.turns,
        "reward": None if reward is None else reward.value,
        "F": None if reward is None else reward.F,
        "N": None if reward is None else reward.N,
        "I": None if reward is None else reward.I,
        "messages": orjson.dumps(episode.messages).decode(),
        "events": orjson.dumps(episode.events).decode(),
        "final_state": orjson.dumps(episode.final_state).decode(),
        "rubric_items": orjson.dumps([] if reward is None else reward.items).decode(),
        "ids": None if tokens is None else tokens.ids,
        "logprobs": None if tokens is None else tokens.logprobs,
        "spans": None
        if tokens is None
        else [{"start": span.start, "length": span.length, "version": span.version} for span in tokens.spans],
    }


def write_merged(run: RunDir, path: Path, adapter: str | None) -> str:
    """Merge base and an adapter (default: the best by validation, else the last); returns the adapter's name.

    Raises ConfigError if there is no such adapter or the base is gone, RunError if the merge failed."""
    source = chosen_adapter(run, adapter)
    config = load(run.config).config
    model = base_model(run, config)
    argv = [*PYTHON, "-m", "learner.merge", str(model), str(source), str(path)]
    done = subprocess.run(argv, env=torch_environment(1), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RunError(f"merging {source} into {model} failed: {done.stderr.strip()[-2000:]}")
    return source.name


def chosen_adapter(run: RunDir, version: str | None) -> Path:
    """The directory of a version ("60", "v00060"), or of the best one, else of the last one.

    Raises ConfigError naming what there is."""
    if version is None:
        best, versions = run.best, run.versions()
        if not versions:
            raise ConfigError(f"{run.path}: it has no adapter yet")
        return run.adapter(versions[-1] if best is None else best)
    number = version.removeprefix("v")
    if not number.isdigit() or not run.adapter(int(number)).is_dir():
        known = ", ".join(str(known) for known in run.versions())
        raise ConfigError(f"{run.path}: it has no adapter {version!r}; there are {known}")
    return run.adapter(int(number))
