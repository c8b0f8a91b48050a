"""How fast is a step of the learner on a GPU, how much memory does it take, and how far is bfloat16 from float32?

A Qwen3-shaped model of random weights is scored in float32, and what it scored is written to a trajectory stream as if
a server had sampled it. The learner reads that stream and trains with its base in bfloat16. Before its first update its
log ratios are those of bfloat16 against float32 under one adapter, token by token. Needs no network and no run.

    python -m bench learner_gpu [--shape 0.6b|1.7b|4b|8b] [--steps N] [--micro-batch-tokens N] [--recompute]

Without a GPU it says so and measures nothing; `--device cpu --shape smoke` runs every line of it in seconds.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import Qwen3Config, Qwen3ForCausalLM

from bench.report import report
from engine.modeldir.shape import DecoderShape
from engine.stream.append import SegmentFile
from engine.stream.frame import encode
from engine.stream.reader import iter_groups
from engine.stream.segment import SegmentHeader
from engine.types import Episode, EpisodeGroup, Outcome, Reward, Sampling, Source, Span, StopReason, Tokens
from learner.advantage import group_std
from learner.forming import usable_group
from learner.forward import policy_logprobs
from learner.head import TILE_BYTES, token_logprobs
from learner.loss import Clip
from learner.model import LoraPolicy, LoraSettings, load_policy
from learner.rows import TrainedEpisode, collate
from learner.step import GrpoStep, StepResult, StepSettings

GOAL = {"k3_bf16_f32": "<= 1e-3", "packed_alone_abs_max_f32": "<= 1e-4", "memory_over_formula": "<= 1.15"}
LORA = LoraSettings(rank=16, alpha=32)
PEAK_FLOPS = 989e12
"""Dense bfloat16 of an H100 or H200."""
_TILES = 3
_GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """A model and a step."""

    hidden: int
    layers: int
    heads: int
    intermediate: int
    tied: bool = True
    kv_heads: int = 8
    head: int = 128
    vocabulary: int = 151_936
    groups: int = 4
    group_size: int = 8
    prompt_tokens: int = 600
    turns: int = 6
    """Of an episode: about 100 sampled tokens and 150 observed ones each."""

    def config(self) -> Qwen3Config:
        """In transformers' words; the weights are spread widely enough that distributions are not flat."""
        return Qwen3Config(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.head,
            tie_word_embeddings=self.tied,
            max_position_embeddings=40_960,
            initializer_range=0.05,
        )


SIZES = {
    "0.6b": Size(hidden=1024, layers=28, heads=16, intermediate=3072),
    "1.7b": Size(hidden=2048, layers=28, heads=16, intermediate=6144),
    "4b": Size(hidden=2560, layers=36, heads=32, intermediate=9728),
    "8b": Size(hidden=4096, layers=36, heads=32, intermediate=12_288, tied=False),
    "smoke": Size(
        hidden=32, layers=2, heads=4, intermediate=64, kv_heads=2, head=8, vocabulary=64, groups=2, group_size=3,
        prompt_tokens=12, turns=2,
    ),
}  # fmt: skip


def main(arguments: Sequence[str] = ()) -> int:
    """Score, record, read, train; one table, one JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench learner_gpu", description=__doc__)
    parser.add_argument("--shape", choices=SIZES, default="0.6b")
    parser.add_argument("--steps", type=int, default=4, help="timed steps, after one that is not")
    parser.add_argument("--micro-batch-tokens", type=int, default=8192)
    parser.add_argument("--recompute", action="store_true", help="as learner.recompute")
    parser.add_argument("--prompt-tokens", type=int, help="tokens of the shared prompt, to make episodes longer")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("learner_gpu: torch sees no GPU here; nothing was measured")
        return 0
    size, device = SIZES[options.shape], torch.device(options.device)
    if options.prompt_tokens:
        size = replace(size, prompt_tokens=options.prompt_tokens)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory(prefix="learner-gpu-") as folder:
        model, stream = Path(folder) / "model", Path(folder) / "trajectories"
        with device:
            Qwen3ForCausalLM(size.config()).bfloat16().save_pretrained(model)
        gap = _record(model, stream, size, device)
        policy = _policy(model, device, torch.bfloat16)
        if options.recompute:
            policy.recompute()
        step = GrpoStep(policy, StepSettings(clip=Clip(), grad_clip=1.0, micro_batch_tokens=options.micro_batch_tokens))
        rows, figures = _train(
            step, _read(stream), options.steps, DecoderShape.read(model), recompute=options.recompute
        )
    figures["packed_alone_abs_max_f32"] = gap
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    question = f"{(__doc__ or '').splitlines()[0]} ({options.shape}, {name}, torch {torch.__version__})"
    report(
        f"learner_gpu-{options.shape}{'-recompute' if options.recompute else ''}",
        question,
        rows,
        figures,
        {key: GOAL[key] for key in GOAL if key in figures},
    )
    return 0


def _policy(model: Path, device: torch.device, dtype: torch.dtype) -> LoraPolicy:
    """The policy with an adapter that matters and that bfloat16 holds exactly, the same in every dtype."""
    policy = load_policy(model, LORA, seed=0, placed=(device, dtype))
    generator = torch.Generator().manual_seed(1)
    drawn = {name: torch.randn(value.shape, generator=generator) * 0.02 for name, value in policy.parameters.items()}
    policy.load({name: value.bfloat16() for name, value in drawn.items()}, "the bench's adapter")
    return policy


# --- the stream ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def _record(model: Path, stream: Path, size: Size, device: torch.device) -> float:
    """Write groups whose mu is the float32 policy's; returns the largest |packed - alone| of a log-probability."""
    policy = _policy(model, device, torch.float32)
    stream.mkdir()
    header = SegmentHeader(
        run_id="bench-00000000",
        model_revision="random",
        tokenizer_hash="",
        chat_template_hash="",
        vocab_size=size.vocabulary,
        pack_hash="",
    )
    file = SegmentFile(stream, 0, header)
    gap = 0.0
    for position in range(size.groups):
        group = _group(position, size)
        episodes = usable_group(group, group_std, version=0).episodes
        scored: dict[str, NDArray[np.float32]] = {}
        for batch in collate(episodes, 4096):
            logprob_P = policy_logprobs(policy, batch.to(device))[0].cpu().numpy()
            starts = np.cumsum([len(each.target_P) for each in batch.episodes])[:-1]
            scored |= {each.id: part for each, part in zip(batch.episodes, np.split(logprob_P, starts), strict=True)}
        gap = max(gap, float(np.abs(scored[episodes[0].id] - _alone(policy, episodes[0])).max()))
        group = replace(group, episodes=tuple(_with_logprobs(each, scored[each.id]) for each in group.episodes))
        file.append(group.id, group.position, encode(group))
    file.finish()
    return gap


def _alone(policy: LoraPolicy, episode: TrainedEpisode) -> NDArray[np.float32]:
    """Its log-probabilities with the episode as one causal row: no shared prompt, no layout."""
    ids_T = torch.from_numpy(episode.ids_T).to(policy.device)
    hidden_T = policy.decoder(input_ids=ids_T[None], use_cache=False).last_hidden_state[0]
    target_P = torch.from_numpy(episode.target_P).to(policy.device)
    found: NDArray[np.float32] = token_logprobs(hidden_T[target_P - 1], policy.head, ids_T[target_P])[0].cpu().numpy()
    return found


def _group(position: int, size: Size) -> EpisodeGroup:
    rng = np.random.default_rng(position)
    group_id, prompt = f"g{position:06d}", rng.integers(0, size.vocabulary, size.prompt_tokens)
    episodes = tuple(
        _episode(f"{group_id}.{index:02d}", position * size.group_size + index, prompt, size)
        for index in range(size.group_size)
    )
    return EpisodeGroup(
        id=group_id, position=position, task_id="t", source=Source.POLICY, sampling=Sampling(), episodes=episodes
    )


def _episode(episode_id: str, seed: int, prompt: NDArray[np.int64], size: Size) -> Episode:
    rng = np.random.default_rng([seed, len(prompt)])
    lengths = [(int(rng.integers(50, 150)), int(rng.integers(100, 200))) for _ in range(size.turns)]
    spans, end = [], len(prompt)
    for sampled, observed in lengths:
        spans.append(Span(start=end, length=sampled, version=0))
        end += sampled + observed
    ids = np.concatenate([prompt, rng.integers(0, size.vocabulary, end - len(prompt))]).astype(np.uint32)
    value = float(seed % 2)
    return Episode(
        id=episode_id,
        task_id="t",
        seed=seed,
        adapter="bench-00000000-v00000",
        version=0,
        server="",
        messages=(),
        events=(),
        tokens=Tokens(ids=ids, logprobs=np.zeros(sum(s for s, _ in lengths), np.float32), spans=tuple(spans)),
        stop=StopReason.ANSWER,
        outcome=Outcome.AGENT_OK if value else Outcome.AGENT_FAIL,
        reward=Reward(value=value, F=1.0, N=value, I=value),
        final_state=None,
        timings=(),
        turns=len(spans),
    )


def _with_logprobs(episode: Episode, logprobs: NDArray[np.float32]) -> Episode:
    assert episode.tokens is not None
    return replace(episode, tokens=replace(episode.tokens, logprobs=logprobs))


def _read(stream: Path) -> list[TrainedEpisode]:
    """What the learner trains on."""
    groups: Iterator[EpisodeGroup] = iter_groups(stream)
    return [episode for group in groups for episode in usable_group(group, group_std, version=0).episodes]


# --- the steps ----------------------------------------------------------------------------------------------------


def _train(
    step: GrpoStep, episodes: Sequence[TrainedEpisode], steps: int, shape: DecoderShape, *, recompute: bool
) -> tuple[list[dict[str, object]], dict[str, float]]:
    """Rows of the table, one a step, and figures: the first step gives the distance, the others the time."""
    cuda = step.policy.device.type == "cuda"
    gc.collect()
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    rows: list[dict[str, object]] = []
    results: list[tuple[StepResult, float]] = []
    for number in range(1 + steps):
        started = time.perf_counter()
        result = step.run(episodes, lr=1e-5)
        if cuda:
            torch.cuda.synchronize()
        wall_s = time.perf_counter() - started
        results.append((result, wall_s))
        rows.append(
            {
                "step": number,
                "loss": result.loss,
                "grad_norm": result.grad_norm,
                "tokens": result.computed_tokens,
                "step_s": wall_s,
                "tokens_per_s": result.computed_tokens / wall_s,
                "forward_s": result.forward_s,
                "backward_s": result.backward_s,
                "optimizer_s": result.optimizer_s,
            }
        )
    y_P = results[0][0].tokens.log_ratio_P
    speed = float(np.median([result.computed_tokens / wall_s for result, wall_s in results[1:]]))
    mean_length = _mean_length(episodes)
    figures = {
        "k3_bf16_f32": float(np.mean(np.expm1(y_P) - y_P)),
        "abs_mean_bf16_f32": float(np.abs(y_P).mean()),
        "abs_max_bf16_f32": float(np.abs(y_P).max()),
        "tokens_per_s": speed,
        "policy_tokens": float(len(y_P)),
        "mean_length_tokens": mean_length,
    }
    if cuda:
        flops = _flops(shape, mean_length, len(y_P) / results[0][0].computed_tokens)
        peak, formula = (
            float(torch.cuda.max_memory_allocated()),
            _formula_bytes(step, episodes, shape, recompute=recompute),
        )
        figures |= {
            "mfu": speed * flops / PEAK_FLOPS,
            "peak_gib": peak / _GIB,
            "formula_gib": formula / _GIB,
            "memory_over_formula": peak / formula,
        }
    return rows, figures


def _mean_length(episodes: Sequence[TrainedEpisode]) -> float:
    """The length that a token's episode has on average: sum of squares over sum."""
    lengths = np.array([len(episode.ids_T) for episode in episodes], dtype=np.float64)
    return float(np.square(lengths).sum() / lengths.sum())


def _formula_bytes(
    step: GrpoStep, episodes: Sequence[TrainedEpisode], shape: DecoderShape, *, recompute: bool
) -> float:
    """docs/learner.md 4: base, masters and Adam, activations of the largest pass, head."""
    largest = max(batch.ids_T.numel() for batch in collate(list(episodes), step.settings.micro_batch_tokens))
    adapter = 18.0 * shape.lora_parameters(LORA.rank)
    return (
        2.0 * shape.parameters + adapter + 2.0 * shape.activations(recompute=recompute) * largest + _TILES * TILE_BYTES
    )


def _flops(shape: DecoderShape, mean_length: float, policy_share: float) -> float:
    """Per token of a step, forward and backward (docs/learner.md 4); attention as over whole causal rows."""
    layer = shape.hidden * (2 * shape.query + 2 * shape.kv) + 3 * shape.hidden * shape.intermediate
    head = 4.0 * shape.vocabulary * shape.hidden * policy_share
    return 4.0 * shape.layers * layer + 6.0 * shape.layers * shape.query * mean_length + head
