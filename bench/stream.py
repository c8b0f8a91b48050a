"""How fast is the trajectory stream, and how small, against Parquet?

Both hold the same groups of 16 episodes (shared prompt, ten turns, tool calls, rubric; ids and log-probabilities with
the entropy of sampled text). Parquet has one row per episode with the arrays as list columns, zstd level 3, one row
group per task group, as a stream that may be killed needs it. MB are those of the body before compression (JSON header
and arrays), seconds those of the processor. At 1,024 live episodes with 2 s turns the engine makes about 3 MB/s.

    python -m bench.stream
"""

from __future__ import annotations

import gc
import random
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path

import anyio
import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from bench.report import report
from engine.stream.frame import body_bytes, decode, encode
from engine.stream.reader import StreamReader, iter_headers, written_positions
from engine.stream.record import episode_group
from engine.stream.segment import SegmentHeader
from engine.stream.writer import TrajectoryWriter, WriterSettings
from engine.types import (
    Episode,
    EpisodeGroup,
    Event,
    EventKind,
    Outcome,
    Reward,
    Sampling,
    Source,
    Span,
    StopReason,
    Tokens,
    TurnTiming,
    Verdict,
)

GROUPS, EPISODES, TURNS = 48, 16, 10
GOAL = {
    # Fifteen times what an engine with 1,024 live episodes makes: the stream is no one's bottleneck.
    "acknowledged_mb_cpu_s": ">= 50",
    "followed_mb_cpu_s": ">= 50",
    "ratio": ">= 3",
    "write_speed_of_parquet": ">= 1",
    "read_speed_of_parquet": ">= 1",
    "bytes_of_parquet": "<= 1",
}
HEADER = SegmentHeader(
    run_id="bench-00000000",
    model_revision="",
    tokenizer_hash="",
    chat_template_hash="",
    vocab_size=151_936,
    pack_hash="",
)


class Corpus:
    """Groups with the shape and the entropy of recorded ones; seeded."""

    def __init__(self) -> None:
        self.dice = random.Random(0)
        self.rng = np.random.default_rng(0)
        letters = "etaoinshrdlucmfwypvbgk"
        lengths = (self.dice.randint(2, 9) for _ in range(5_000))
        self.words = ["".join(self.dice.choices(letters, k=length)) for length in lengths]
        self.ids = self.rng.permutation(151_000)[:5_000].astype(np.uint32)
        weights = 1 / np.arange(1, 5_001)
        self.weights = weights / weights.sum()

    def text(self, tokens: int) -> tuple[str, np.ndarray]:
        """Words by Zipf's law, and their ids."""
        picks = self.rng.choice(5_000, tokens, p=self.weights)
        return " ".join(self.words[pick] for pick in picks), self.ids[picks]

    def group(self, position: int) -> EpisodeGroup:
        """One task's episodes; they share 1,200 tokens of rules and tools."""
        prompt = self.text(1_200)
        group_id = f"g{position:06d}"
        episodes = tuple(self.episode(f"{group_id}.{index:02d}", prompt) for index in range(EPISODES))
        return EpisodeGroup(
            id=group_id,
            position=position,
            task_id=f"retail-{position:06d}",
            source=Source.POLICY,
            sampling=Sampling(),
            episodes=episodes,
        )

    def episode(self, episode_id: str, prompt: tuple[str, np.ndarray]) -> Episode:
        """Ten turns of 40 to 160 policy tokens, each followed by 30 to 120 tokens of observation."""
        messages = [{"role": "system", "content": prompt[0]}]
        parts, spans, events, timings = [prompt[1]], [], [], []
        end = len(prompt[1])
        for turn in range(TURNS):
            said, said_ids = self.text(self.dice.randint(40, 160))
            seen, seen_ids = self.text(self.dice.randint(30, 120))
            spans.append(Span(start=end, length=len(said_ids), version=12))
            parts += (said_ids, seen_ids)
            end += len(said_ids) + len(seen_ids)
            messages += ({"role": "assistant", "content": said}, {"role": "tool", "content": seen})
            arguments = {"order_id": self.dice.randint(1_000, 9_999), "reason": said[:20]}
            events.append(
                Event(number=turn, turn=turn, kind=EventKind.CALLED, text=seen, tool="get_order", arguments=arguments)
            )
            timings += [
                TurnTiming(turn=turn, phase=phase, start_s=2.0 * turn, end_s=2.0 * turn + self.dice.random())
                for phase in ("queued", "policy", "tool")
            ]
        policy_tokens = sum(span.length for span in spans)
        met = [self.dice.random() < 0.6 for _ in range(6)]
        items = tuple(Verdict(id=f"n{index}", part="subgoal", met=each, evidence=1) for index, each in enumerate(met))
        value = sum(met) / len(met)
        return Episode(
            id=episode_id,
            task_id="retail",
            seed=self.dice.getrandbits(32),
            adapter="bench-00000000-v00012",
            version=12,
            server="http://127.0.0.1:30000",
            messages=tuple(messages),
            events=tuple(events),
            tokens=Tokens(
                ids=np.concatenate(parts),
                # Most sampled tokens are nearly certain, some are not: a gamma law with shape 0.3.
                logprobs=-self.rng.gamma(0.3, 1.5, policy_tokens).astype(np.float32),
                spans=tuple(spans),
            ),
            stop=StopReason.ANSWER,
            outcome=Outcome.AGENT_OK if all(met) else Outcome.AGENT_FAIL,
            reward=Reward(value=value, F=1.0, N=value, I=value, items=items),
            final_state={"orders": {"9981": {"status": "cancelled"}}},
            timings=tuple(timings),
            turns=TURNS,
        )


# --- the Parquet arm ------------------------------------------------------------------------------------------------


def to_table(group: EpisodeGroup) -> pa.Table:
    """One row per episode; what is no array is the JSON that a frame's header holds."""
    ledgers = [episode.tokens for episode in group.episodes if episode.tokens is not None]
    bare = replace(group, episodes=())
    spans = [[(span.start, span.length, span.version) for span in each.spans] for each in ledgers]
    return pa.table(
        {
            "group": [orjson.dumps(bare)] * len(ledgers),
            "episode": [orjson.dumps(replace(episode, tokens=None)) for episode in group.episodes],
            "ids": pa.array([each.ids for each in ledgers], pa.list_(pa.uint32())),
            "logprobs": pa.array([each.logprobs for each in ledgers], pa.list_(pa.float32())),
            "span_start": pa.array([[row[0] for row in rows] for rows in spans], pa.list_(pa.int32())),
            "span_length": pa.array([[row[1] for row in rows] for rows in spans], pa.list_(pa.int32())),
            "span_version": pa.array([[row[2] for row in rows] for rows in spans], pa.list_(pa.int32())),
        }
    )


def from_table(table: pa.Table) -> EpisodeGroup:
    """The group of one row group."""
    columns = {name: table.column(name).combine_chunks() for name in table.column_names}
    spans = zip(*(columns[name].to_pylist() for name in ("span_start", "span_length", "span_version")), strict=True)
    ledgers = [
        Tokens(
            ids=columns["ids"][row].values.to_numpy(),
            logprobs=columns["logprobs"][row].values.to_numpy(),
            spans=tuple(
                Span(start=start, length=length, version=version) for start, length, version in zip(*rows, strict=True)
            ),
        )
        for row, rows in enumerate(spans)
    ]
    raw = orjson.loads(columns["group"][0].as_py())
    raw["episodes"] = [orjson.loads(text) for text in columns["episode"].to_pylist()]
    return episode_group(raw, ledgers)


def write_parquet(path: Path, groups: Sequence[EpisodeGroup]) -> None:
    """One row group per task group."""
    with pq.ParquetWriter(path, to_table(groups[0]).schema, compression="zstd", compression_level=3) as writer:
        for group in groups:
            writer.write_table(to_table(group))


def read_parquet(path: Path) -> Iterator[EpisodeGroup]:
    """Every group, in order."""
    with pq.ParquetFile(path) as file:
        for number in range(file.num_row_groups):
            yield from_table(file.read_row_group(number, use_threads=False))


# --- the stream's arm -----------------------------------------------------------------------------------------------


async def write_stream(directory: Path, groups: Sequence[EpisodeGroup]) -> None:
    """Through the writer, each group acknowledged, eight senders at a time."""
    writer = TrajectoryWriter(directory, HEADER, WriterSettings(low_water_bytes=0))
    async with anyio.create_task_group() as tasks:
        await tasks.start(writer.run)
        async with anyio.create_task_group() as senders:
            limiter = anyio.CapacityLimiter(8)
            for group in groups:
                senders.start_soon(_write_one, writer, group, limiter)
        await writer.close()


async def _write_one(writer: TrajectoryWriter, group: EpisodeGroup, limiter: anyio.CapacityLimiter) -> None:
    async with limiter:
        await writer.write(group)


def follow(directory: Path) -> int:
    """How many groups the learner's reader returns."""
    with StreamReader(directory) as reader:
        return drain(iter(lambda: reader.next(timeout=0), None))


def drain(items: Iterable[object]) -> int:
    """How many there are; none is kept."""
    return sum(1 for _ in items)


def cpu_s(arms: Mapping[str, Callable[[], object]], rounds: int = 7) -> dict[str, float]:
    """The least CPU time of each arm, all threads together; the arms take turns, so a busy machine slows all alike."""
    best = dict.fromkeys(arms, float("inf"))
    for _ in range(rounds):
        for name, work in arms.items():
            started = time.process_time()
            work()
            best[name] = min(best[name], time.process_time() - started)
    return best


def measure(groups: Sequence[EpisodeGroup], place: Path) -> dict[str, float]:
    """Times and sizes of both formats; `place` is an empty directory."""
    frames = [encode(group) for group in groups]
    megabytes = sum(body_bytes(content) for content in frames) / 1e6
    parquet, stream = place / "groups.parquet", place / "stream0"
    directories = (place / f"stream{number}" for number in count())
    times = cpu_s(
        {
            "acknowledged": lambda: anyio.run(write_stream, next(directories), groups),
            "parquet_write": lambda: write_parquet(parquet, groups),
            "encode": lambda: drain(map(encode, groups)),
            "followed": lambda: follow(stream),
            "parquet_read": lambda: drain(read_parquet(parquet)),
            "decode": lambda: drain(map(decode, frames)),
            "headers": lambda: drain(iter_headers(stream)),
            "positions": lambda: written_positions(stream),
        }
    )
    assert len(written_positions(stream)) == follow(stream) == drain(read_parquet(parquet)) == len(groups)
    stream_mb = sum(path.stat().st_size for path in stream.glob("*.seg")) / 1e6
    parquet_mb = parquet.stat().st_size / 1e6
    return {
        **{f"{name}_mb_cpu_s": megabytes / spent for name, spent in times.items() if name != "positions"},
        "positions_cpu_ms": 1e3 * times["positions"],
        "body_mb": megabytes,
        "stream_mb": stream_mb,
        "parquet_mb": parquet_mb,
        "ratio": megabytes / stream_mb,
        "write_speed_of_parquet": times["parquet_write"] / times["acknowledged"],
        "read_speed_of_parquet": times["parquet_read"] / times["followed"],
        "bytes_of_parquet": stream_mb / parquet_mb,
    }


def main(_arguments: Sequence[str] = ()) -> None:
    """Measure both arms and report."""
    pa.set_cpu_count(1)
    corpus = Corpus()
    groups = [corpus.group(position) for position in range(GROUPS)]
    gc.freeze()  # The collector would walk the corpus again and again: no part of either format's cost.
    with tempfile.TemporaryDirectory() as name:
        got = measure(groups, Path(name))
    names = {
        "stream on disk": ("acknowledged_mb_cpu_s", "followed_mb_cpu_s", "stream_mb"),
        "frames in memory": ("encode_mb_cpu_s", "decode_mb_cpu_s", "stream_mb"),
        "Parquet, zstd 3": ("parquet_write_mb_cpu_s", "parquet_read_mb_cpu_s", "parquet_mb"),
    }
    rows = [
        {
            "": label,
            "write MB/CPU s": got[write],
            "read MB/CPU s": got[read],
            "MB": got[size],
            "ratio": got["body_mb"] / got[size],
        }
        for label, (write, read, size) in names.items()
    ]
    question = f"{GROUPS} groups of {EPISODES} episodes, {got['body_mb']:.0f} MB: how fast, how small?"
    report("stream", question, rows, got, GOAL)


if __name__ == "__main__":
    main()
