"""One GRPO step: gradients over micro-batches, checks, one Adam update.

Micro-batches add plain sums divided by the step's own number of policy tokens, so neither their cut nor their share
among ranks changes the gradient; every rank then makes the same update. Nothing non-finite ever reaches the adapter:
loss, gradient norm and every updated tensor are checked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.config.tree import Config
from engine.errors import RunError
from learner.checkpoint import Checkpoint
from learner.device import placed
from learner.forward import policy_logprobs
from learner.loss import Clip, TokenLoss, ppo_token_loss
from learner.model import LoraPolicy, LoraSettings, load_policy
from learner.ranks import Ranks, deal, even_budget
from learner.rows import MicroBatch, TrainedEpisode, collate

BETAS = (0.9, 0.95)


class NotFiniteError(RunError):
    """The step produced something that is not finite; nothing of it is kept."""

    def __init__(self, reason: str, *, tensor: str | None = None, loss: float = 0.0, grad_norm: float = 0.0) -> None:
        super().__init__(reason)
        self.tensor = tensor
        """The first bad one, where it is a tensor of the adapter."""
        self.metrics = {"loss": str(loss), "grad_norm": str(grad_norm)}
        """As text: JSON has no word for what is not finite."""


class AbandonedError(RunError):
    """The step was given up because the process has to end; nothing of it is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSettings:
    """Numbers of a step."""

    clip: Clip
    grad_clip: float
    micro_batch_tokens: int

    @classmethod
    def of(cls, config: Config) -> Self:
        """The numbers in a configuration."""
        learner = config.learner
        clip = Clip(low=learner.clip_low, high=learner.clip_high, cap=learner.ratio_cap)
        return cls(clip=clip, grad_clip=learner.grad_clip, micro_batch_tokens=learner.micro_batch_tokens)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PolicyTokens:
    """What a step saw of its P policy tokens, before the update, in micro-batch order."""

    log_ratio_P: NDArray[np.float64]
    entropy_P: NDArray[np.float64]
    version_P: NDArray[np.int64]
    finite_P: NDArray[np.bool_]
    low_P: NDArray[np.bool_]
    high_P: NDArray[np.bool_]
    cap_P: NDArray[np.bool_]
    mean_log_ratio_B: NDArray[np.float64]
    """[B] per episode that sampled anything, the mean over its tokens."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepResult:
    """What a step did."""

    loss: float
    grad_norm: float
    """Before clipping."""
    update_norm: float
    """L2 norm of the change of the adapter."""
    max_abs: float
    """Largest absolute value in the adapter."""
    lr: float
    tokens: PolicyTokens
    computed_tokens: int
    """Tokens through the decoder, padding and shared prompts included once."""
    forward_s: float
    backward_s: float
    optimizer_s: float


class GrpoStep:
    """Trains one policy, step after step; with several ranks, all of them call the same methods in the same order."""

    def __init__(self, policy: LoraPolicy, settings: StepSettings, ranks: Ranks | None = None) -> None:
        self.policy, self.settings, self.ranks = policy, settings, ranks or Ranks()
        self.optimizer = torch.optim.Adam(policy.parameters.values(), lr=0.0, betas=BETAS, eps=1e-8)

    @classmethod
    def of(cls, config: Config, ranks: Ranks, warm_start: Path | None = None) -> Self:
        """With the model and the settings of a configuration.

        Raises ConfigError for a model or a warm start that cannot be used."""
        lora = LoraSettings(rank=config.learner.rank, alpha=config.learner.alpha)
        policy = load_policy(
            Path(config.model.path),
            lora,
            seed=config.run.seed,
            warm_start=warm_start,
            placed=placed(config, ranks.rank),
        )
        if config.learner.recompute:
            policy.recompute()
        return cls(policy, StepSettings.of(config), ranks)

    def resume(self, checkpoint: Checkpoint) -> None:
        """Continue after the step of a checkpoint."""
        self.policy.load(checkpoint.adapter, "the checkpoint")
        self.restore(checkpoint.state.counters.step, checkpoint.moments)

    def run(
        self, episodes: Sequence[TrainedEpisode], lr: float, abandon: Callable[[], bool] = lambda: False
    ) -> StepResult:
        """Train on `episodes` once.

        Raises NotFiniteError naming the first bad tensor, and AbandonedError when `abandon` of any rank says so between
        two micro-batches; the policy's tensors are unchanged then. Raises RankLostError if another rank ended."""
        batches = self._cut(episodes)
        sums = self.gradients(batches, abandon)
        started = time.perf_counter()
        before = self.policy.snapshot()
        grad_norm = self._update(lr)
        after = [parameter.detach() for parameter in self.policy.parameters.values()]
        try:
            self._check(sums.loss, grad_norm)
        except NotFiniteError:
            self.policy.load(before, "the adapter before the step")
            raise
        changes = [new - old for new, old in zip(after, before.values(), strict=True)]
        return StepResult(
            loss=sums.loss,
            grad_norm=grad_norm,
            update_norm=float(torch.stack([change.norm() for change in changes]).norm()),
            max_abs=max(float(tensor.abs().max()) for tensor in after),
            lr=lr,
            tokens=self._policy_tokens(batches, sums.parts),
            computed_tokens=sum(batch.ids_T.numel() for batch in batches),
            forward_s=sums.forward_s,
            backward_s=sums.backward_s,
            optimizer_s=time.perf_counter() - started,
        )

    def _cut(self, episodes: Sequence[TrainedEpisode]) -> list[MicroBatch]:
        budget, count = self.settings.micro_batch_tokens, self.ranks.count
        batches = collate(episodes, budget)
        if count == 1 or not batches:
            return batches
        return collate(episodes, even_budget(sum(batch.ids_T.numel() for batch in batches), budget, count))

    def gradients(self, batches: Sequence[MicroBatch], abandon: Callable[[], bool] = lambda: False) -> GradientSums:
        """Fill the parameters' gradients from zero, those of all ranks; see `run` for what it raises."""
        total = sum(batch.target_P.numel() for batch in batches)
        if total == 0:
            raise NotFiniteError("the step has no policy token: every completion is empty")
        self.optimizer.zero_grad(set_to_none=True)
        sums, given_up = GradientSums(), False
        for index in deal(batches, self.ranks.count)[self.ranks.rank]:
            if given_up := abandon():
                break
            batch = batches[index].to(self.policy.device)
            started = time.perf_counter()
            logprob_P, entropy_P = policy_logprobs(self.policy, batch)
            terms = ppo_token_loss(logprob_P, batch.behaviour_P, batch.advantage_P, self.settings.clip)
            loss = terms.loss_P.sum() / total
            # On a GPU this waits for the forward pass, so that the clock sees it.
            sums.loss += float(loss.detach())
            forwarded = time.perf_counter()
            loss.backward()
            sums.parts[index] = (replace(terms, loss_P=terms.loss_P.detach()), entropy_P)
            sums.forward_s += forwarded - started
            sums.backward_s += time.perf_counter() - forwarded
        self._add_ranks(sums, given_up=given_up)
        return sums

    def _add_ranks(self, sums: GradientSums, *, given_up: bool) -> None:
        """Add up loss and gradients over the ranks; a rank that was dealt nothing adds zeros."""
        started = time.perf_counter()
        told = self.ranks.add(torch.tensor([float(given_up), sums.loss], dtype=torch.float64))
        if told[0]:
            raise AbandonedError("the process has to end; the step is repeated after a resume")
        sums.loss = float(told[1])
        if self.ranks.count > 1:
            parameters = list(self.policy.parameters.values())
            grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
            flat = self.ranks.add(torch.cat([grad.flatten() for grad in grads]))
            for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
                parameter.grad = part.view_as(parameter)
        # Waiting for the slowest rank is part of a step's passes, as the time of computing alone is elsewhere.
        sums.backward_s += time.perf_counter() - started

    def _policy_tokens(self, batches: Sequence[MicroBatch], parts: Mapping[int, MicroBatchTerms]) -> PolicyTokens:
        """Every rank fills in what it saw in its own micro-batches; the sum is the table of the step."""
        counts = [batch.target_P.numel() for batch in batches]
        table = torch.zeros(5, sum(counts), dtype=torch.float64)
        for index, seen in enumerate(table.split(counts, dim=1)):
            if index in parts:
                terms, entropy_P = parts[index]
                columns = (terms.log_ratio_P, entropy_P, terms.low_P, terms.high_P, terms.cap_P)
                seen.copy_(torch.stack([column.double() for column in columns]))
        log_ratio_P, entropy_P, low_P, high_P, cap_P = self.ranks.add(table)
        counts_B = np.array([len(episode.target_P) for batch in batches for episode in batch.episodes])
        starts_B = np.cumsum(counts_B) - counts_B
        return PolicyTokens(
            log_ratio_P=log_ratio_P.numpy(),
            mean_log_ratio_B=np.add.reduceat(log_ratio_P.numpy(), starts_B) / counts_B,
            entropy_P=entropy_P.numpy(),
            version_P=torch.cat([batch.version_P for batch in batches]).long().numpy(),
            finite_P=torch.isfinite(torch.cat([batch.behaviour_P for batch in batches])).numpy(),
            low_P=low_P.bool().numpy(),
            high_P=high_P.bool().numpy(),
            cap_P=cap_P.bool().numpy(),
        )

    def _update(self, lr: float) -> float:
        parameters = list(self.policy.parameters.values())
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if torch.isfinite(norm):
            torch.nn.utils.clip_grads_with_norm_(parameters, self.settings.grad_clip, norm)
            self.optimizer.step()
        return float(norm)

    def _check(self, loss: float, grad_norm: float) -> None:
        told = {"loss": loss, "grad_norm": grad_norm}
        if not np.isfinite(loss) or not np.isfinite(grad_norm):
            grads = ((name, parameter.grad) for name, parameter in self.policy.parameters.items())
            bad = next((name for name, grad in grads if grad is not None and not torch.isfinite(grad).all()), None)
            what = f"the gradient of {bad or 'the whole adapter'} is not finite"
            raise NotFiniteError(what if np.isfinite(loss) else f"the loss is {loss}", tensor=bad, **told)
        for name, parameter in self.policy.parameters.items():
            if not torch.isfinite(parameter).all():
                raise NotFiniteError(f"{name} is not finite after the update", tensor=name, **told)

    def optimizer_state(self) -> dict[str, Tensor]:
        """Adam's moments as `m.NAME` and `v.NAME`, zeros before the first step, and the masters as `w.NAME` where the
        adapter that is published is not those; on the CPU."""
        state = {}
        for name, parameter in self.policy.parameters.items():
            moments = self.optimizer.state[parameter]
            state[f"m.{name}"] = moments.get("exp_avg", torch.zeros_like(parameter)).cpu()
            state[f"v.{name}"] = moments.get("exp_avg_sq", torch.zeros_like(parameter)).cpu()
            if parameter.dtype != self.policy.dtype:
                state[f"w.{name}"] = parameter.detach().to("cpu", copy=True)
        return state

    @torch.no_grad()
    def restore(self, step: int, state: Mapping[str, Tensor]) -> None:
        """Continue after `step` updates with what `optimizer_state` told."""
        for name, parameter in self.policy.parameters.items():
            parameter.copy_(state.get(f"w.{name}", parameter))
            self.optimizer.state[parameter] = {
                "step": torch.tensor(float(step)),
                "exp_avg": state[f"m.{name}"].to(parameter.device, copy=True),
                "exp_avg_sq": state[f"v.{name}"].to(parameter.device, copy=True),
            }


MicroBatchTerms = tuple[TokenLoss, Tensor]
"""Of one micro-batch: its loss terms (detached) and the entropy of its policy tokens."""


@dataclass(slots=True, eq=False)
class GradientSums:
    """What adds up over the micro-batches of a step, beside the gradients."""

    loss: float = 0.0
    parts: dict[int, MicroBatchTerms] = field(default_factory=dict)
    """By index, those that this rank computed."""
    forward_s: float = 0.0
    backward_s: float = 0.0
