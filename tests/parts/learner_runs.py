"""Run directories for the learner's tests: a random tiny model, groups sampled "by" its base, and a recorded stream."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft.tuners.lora import Linear as PeftLinear
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm, Qwen3RotaryEmbedding

from engine.config.load import dump, validate
from engine.rundir.layout import RunDir, write_json
from engine.stream.append import SegmentFile
from engine.stream.frame import encode
from engine.stream.segment import CLOSED, SegmentHeader
from engine.types import Episode, EpisodeGroup, Outcome, Reward, Sampling, Source, Span, StopReason, Tokens
from learner.model import LoraPolicy, LoraSettings, load_policy

VOCABULARY = 64
LORA = LoraSettings(rank=4, alpha=8)
HEADER = SegmentHeader(
    run_id="demo-1f0c2a9b",
    model_revision="r",
    tokenizer_hash="t",
    chat_template_hash="c",
    vocab_size=VOCABULARY,
    pack_hash="p",
)


def make_model(path: Path) -> Path:
    """A random Qwen3 of 2 layers x 32, with weights large enough that its distributions are not flat."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        tie_word_embeddings=True,
        max_position_embeddings=512,
        initializer_range=0.2,
    )
    Qwen3ForCausalLM(config).save_pretrained(path)
    return path


def make_policy(path: Path, *, adapted: bool = False) -> LoraPolicy:
    """The policy on that model; `adapted` gives it an adapter that matters."""
    policy = load_policy(path, LORA, seed=0)
    if adapted:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, parameter in policy.parameters.items():
                if "lora_B" in name:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return policy


def make_float64_policy(path: Path) -> LoraPolicy:
    """The adapted policy in float64 throughout and with peft's own linear layers: what the float32 one is held to."""
    policy = make_policy(path, adapted=True)
    policy.model.double()
    for module in policy.model.modules():
        if isinstance(module, PeftLinear):
            del module.forward  # the fused one hid peft's
        # transformers computes these two in float32, whatever the dtype of the model.
        elif isinstance(module, Qwen3RMSNorm):
            module.forward = MethodType(_norm, module)
        elif isinstance(module, Qwen3RotaryEmbedding):
            module.forward = MethodType(_rotation, module)
    return policy


def _norm(self: Any, x: Tensor) -> Tensor:
    scaled: Tensor = self.weight * x * (x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon).rsqrt()
    return scaled


def _rotation(self: Any, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
    angle = (position_ids[..., None].to(x.dtype) * self.inv_freq.to(x.dtype)).repeat(1, 1, 2)
    return angle.cos(), angle.sin()


@torch.no_grad()
def whole_logprobs(policy: LoraPolicy, ids: Sequence[int] | NDArray[Any]) -> NDArray[Any]:
    """Log-probability of every id but the first, from peft's model alone on one whole episode: [T - 1] in its dtype."""
    return whole_logprobs_with_gradient(policy, ids).numpy()


def whole_logprobs_with_gradient(policy: LoraPolicy, ids: Sequence[int] | NDArray[Any]) -> Tensor:
    """The same as a tensor that carries the gradient to the adapter."""
    ids_T = torch.as_tensor(np.asarray(ids, dtype=np.int64))
    logits_TV: Tensor = policy.model(input_ids=ids_T[None]).logits[0]
    logits_TV = logits_TV.to(torch.promote_types(logits_TV.dtype, torch.float32))
    return logits_TV.log_softmax(-1)[:-1].gather(-1, ids_T[1:, None])[:, 0]


def make_episode(
    group_id: str, index: int, prompt: list[int], seed: int, policy: LoraPolicy | None = None, version: int = 0
) -> Episode:
    """One episode: the prompt, then policy and observation tokens in turns; mu from `policy` (or drawn)."""
    rng = np.random.default_rng(seed)
    ids, spans = list(prompt), []
    for _ in range(int(rng.integers(1, 4))):
        length = int(rng.integers(2, 8))
        spans.append(Span(start=len(ids), length=length, version=version))
        ids += rng.integers(1, VOCABULARY, length).tolist()
        ids += rng.integers(1, VOCABULARY, int(rng.integers(1, 6))).tolist()
    targets = np.concatenate([np.arange(span.start, span.start + span.length) for span in spans])
    mu = whole_logprobs(policy, ids)[targets - 1] if policy else -rng.exponential(size=len(targets))
    value = float(rng.choice([0.0, 0.5, 1.0]))
    return Episode(
        id=f"{group_id}.{index:02d}",
        task_id="t",
        seed=seed,
        adapter=f"demo-1f0c2a9b-v{version:05d}",
        version=version,
        server="http://127.0.0.1:1",
        messages=(),
        events=(),
        tokens=Tokens(ids=np.array(ids, np.uint32), logprobs=mu.astype(np.float32), spans=tuple(spans)),
        stop=StopReason.ANSWER,
        outcome=Outcome.AGENT_OK if value == 1.0 else Outcome.AGENT_FAIL,
        reward=Reward(value=value, F=1.0, N=value, I=value),
        final_state=None,
        timings=(),
        turns=len(spans),
    )


def make_group(
    position: int,
    size: int = 4,
    policy: LoraPolicy | None = None,
    version: int = 0,
    rewards: Sequence[float | None] | None = None,
) -> EpisodeGroup:
    """A group whose rewards differ (or are those given; None masks an episode as an infrastructure error)."""
    group_id = f"g{position:06d}"
    prompt = np.random.default_rng(position).integers(1, VOCABULARY, 6 + position % 5).tolist()
    rewards = rewards or [0.0, 1.0, *(0.5,) * (size - 2)]
    episodes = [
        scored(make_episode(group_id, index, prompt, position * 100 + index, policy, version), reward)
        for index, reward in enumerate(rewards)
    ]
    return EpisodeGroup(
        id=group_id,
        position=position,
        task_id="t",
        source=Source.POLICY,
        sampling=Sampling(),
        episodes=tuple(episodes),
    )


def scored(episode: Episode, reward: float | None) -> Episode:
    """The episode with that reward; None masks it."""
    if reward is None:
        return replace(episode, reward=None, outcome=Outcome.INFRA_ERROR, stop=StopReason.POLICY_ERROR)
    outcome = Outcome.AGENT_OK if reward == 1.0 else Outcome.AGENT_FAIL
    return replace(episode, reward=Reward(value=reward, F=1.0, N=reward, I=reward), outcome=outcome)


def make_run(path: Path, model: Path, *, steps: int = 3, max_staleness: int = 100, **learner: Any) -> RunDir:
    """An empty run directory: 2 groups of 4 a step."""
    settings = {"rank": LORA.rank, "alpha": LORA.alpha, "lr": 1e-3, "warmup_steps": 0, **learner}
    raw = {
        "run": {"name": "demo", "dir": str(path.parent), "steps": steps},
        "model": {"path": str(model)},
        "schedule": {"group_size": 4, "groups_per_step": 2, "max_staleness": max_staleness},
        "learner": settings,
    }
    run = RunDir(path)
    run.create()
    run.config.write_text(dump(validate(raw, {})))
    return run


def write_stream(run: RunDir, groups: Sequence[EpisodeGroup], *, number: int = 0, closed: bool = True) -> None:
    """Write one segment with `groups`; `closed` says that nothing more will come."""
    file = SegmentFile(run.trajectories, number, HEADER)
    for group in groups:
        file.append(group.id, group.position, encode(group))
    if closed:
        file.finish()
        write_json(run.trajectories / CLOSED, {"segments": number + 1, "frames": len(groups)})
    else:
        file.close()
