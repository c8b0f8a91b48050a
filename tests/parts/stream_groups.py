"""Groups for the tests of the stream: small, complete, and different at every position."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from engine.stream.append import SegmentFile
from engine.stream.frame import encode
from engine.stream.segment import SegmentHeader
from engine.stream.writer import WriterSettings
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

HEADER = SegmentHeader(
    run_id="demo-1f0c2a9b",
    model_revision="r1",
    tokenizer_hash="t1",
    chat_template_hash="c1",
    vocab_size=1_000,
    pack_hash="p1",
)
SETTINGS = WriterSettings(low_water_bytes=0)
"""For a disk that may be nearly full: tests write little."""


def tokens(seed: int, n_ids: int = 40, largest_id: int = 1_000) -> Tokens:
    """A ledger of `n_ids` ids with two spans."""
    rng = np.random.default_rng(seed)
    third = n_ids // 3
    spans = (Span(start=2, length=third, version=3), Span(start=4 + third, length=third, version=3))
    return Tokens(
        ids=rng.integers(0, largest_id, n_ids).astype(np.uint32),
        logprobs=-rng.exponential(size=2 * third).astype(np.float32),
        spans=spans,
    )


def episode(group_id: str, index: int, ledger: Tokens | None) -> Episode:
    """An episode that uses every field."""
    return Episode(
        id=f"{group_id}.{index:02d}",
        task_id="tiny-000123",
        seed=index,
        adapter="demo-1f0c2a9b-v00003",
        version=3,
        server="http://127.0.0.1:1",
        messages=({"role": "system", "content": "rules"}, {"role": "assistant", "content": "<answer>é</answer>"}),
        events=(
            Event(number=0, turn=0, kind=EventKind.CALLED, text="{}", tool="look", arguments={"a": 1.5}, ok=False),
            Event(number=1, turn=1, kind=EventKind.SAID, text="which color?", revealed=("color",)),
        ),
        tokens=ledger,
        stop=StopReason.ANSWER,
        outcome=Outcome.AGENT_FAIL,
        reward=Reward(value=0.5, F=1.0, N=0.5, I=0.5, items=(Verdict(id="n1", part="subgoal", met=True, evidence=0),)),
        final_state={"box": {"color": None, "n": [1, 2.5, "x"]}},
        timings=(TurnTiming(turn=0, phase="policy", start_s=0.25, end_s=1.5),),
        turns=2,
    )


def group(position: int, episodes: int = 2, n_ids: int = 40) -> EpisodeGroup:
    """The group at a sampler position; the last episode is masked and has no ledger."""
    group_id = f"g{position:06d}"
    scored = [episode(group_id, index, tokens(position * 100 + index, n_ids)) for index in range(episodes)]
    masked = replace(
        episode(group_id, episodes, None), outcome=Outcome.INFRA_ERROR, stop=StopReason.STALE, reward=None, error="late"
    )
    return EpisodeGroup(
        id=group_id,
        position=position,
        task_id="tiny-000123",
        source=Source.POLICY,
        sampling=Sampling(stop=("</answer>",)),
        episodes=(*scored, masked),
    )


def assert_same(left: EpisodeGroup, right: EpisodeGroup) -> None:
    """Equal in every field, arrays bit by bit."""
    assert without_tokens(left) == without_tokens(right)
    for one, other in zip(left.episodes, right.episodes, strict=True):
        assert (one.tokens is None) == (other.tokens is None)
        if one.tokens is not None and other.tokens is not None:
            assert one.tokens.spans == other.tokens.spans
            assert one.tokens.ids.tobytes() == other.tokens.ids.tobytes()
            assert one.tokens.logprobs.tobytes() == other.tokens.logprobs.tobytes()


def without_tokens(group: EpisodeGroup) -> EpisodeGroup:
    """The group as its frame header holds it."""
    return replace(group, episodes=tuple(replace(each, tokens=None) for each in group.episodes))


def write_segment(directory: Path, number: int, groups: list[EpisodeGroup], *, finish: bool = True) -> list[int]:
    """Write one segment; returns the offset at the end of each group."""
    directory.mkdir(parents=True, exist_ok=True)
    file = SegmentFile(directory, number, HEADER)
    ends = []
    for group in groups:
        file.append(group.id, group.position, encode(group))
        ends.append(file.end)
    if finish:
        file.finish()
    else:
        file.close()
    return ends
