"""One GRPO step: gradients over micro-batches, checks, one Adam update.

Micro-batches add plain sums divided by the step's own number of policy tokens, so their cut does not change the
gradient. Nothing non-finite ever reaches the adapter: loss, gradient norm and every updated tensor are checked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.errors import RunError
from learner.forward import policy_logprobs
from learner.loss import Clip, TokenLoss, ppo_token_loss
from learner.model import LoraPolicy
from learner.rows import MicroBatch, TrainedEpisode, micro_batches

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
    """Tokens through the decoder, padding and shared openings included once."""
    forward_s: float
    backward_s: float
    optimizer_s: float


class GrpoStep:
    """Trains one policy, step after step."""

    def __init__(self, policy: LoraPolicy, settings: StepSettings) -> None:
        self.policy, self.settings = policy, settings
        self.optimizer = torch.optim.Adam(policy.parameters.values(), lr=0.0, betas=BETAS, eps=1e-8)

    def run(
        self, episodes: Sequence[TrainedEpisode], lr: float, abandon: Callable[[], bool] = lambda: False
    ) -> StepResult:
        """Train on `episodes` once.

        Raises NotFiniteError naming the first bad tensor, and AbandonedError when `abandon` says so between two
        micro-batches; the policy's tensors are unchanged then."""
        batches = micro_batches(episodes, self.settings.micro_batch_tokens)
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
            tokens=_policy_tokens(sums.parts),
            computed_tokens=sum(batch.ids_T.numel() for batch in batches),
            forward_s=sums.forward_s,
            backward_s=sums.backward_s,
            optimizer_s=time.perf_counter() - started,
        )

    def gradients(self, batches: Sequence[MicroBatch], abandon: Callable[[], bool] = lambda: False) -> GradientSums:
        """Fill the parameters' gradients from zero; see `run` for what it raises."""
        total = sum(batch.target_P.numel() for batch in batches)
        if total == 0:
            raise NotFiniteError("the step has no policy token: every completion is empty")
        self.optimizer.zero_grad(set_to_none=True)
        sums = GradientSums()
        for batch in batches:
            if abandon():
                raise AbandonedError("the process has to end; the step is repeated after a resume")
            started = time.perf_counter()
            logprob_P, entropy_P = policy_logprobs(self.policy, batch)
            terms = ppo_token_loss(logprob_P, batch.behaviour_P, batch.advantage_P, self.settings.clip)
            loss = terms.loss_P.sum() / total
            forwarded = time.perf_counter()
            loss.backward()
            sums.loss += float(loss.detach())
            sums.parts.append((batch, replace(terms, loss_P=terms.loss_P.detach()), entropy_P))
            sums.forward_s += forwarded - started
            sums.backward_s += time.perf_counter() - forwarded
        return sums

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
        """Adam's moments as `m.NAME` and `v.NAME`; zeros before the first step."""
        state = {}
        for name, parameter in self.policy.parameters.items():
            moments = self.optimizer.state[parameter]
            state[f"m.{name}"] = moments.get("exp_avg", torch.zeros_like(parameter))
            state[f"v.{name}"] = moments.get("exp_avg_sq", torch.zeros_like(parameter))
        return state

    def restore(self, step: int, state: Mapping[str, Tensor]) -> None:
        """Continue after `step` updates with the moments of `optimizer_state`."""
        for name, parameter in self.policy.parameters.items():
            self.optimizer.state[parameter] = {
                "step": torch.tensor(float(step)),
                "exp_avg": state[f"m.{name}"].clone(),
                "exp_avg_sq": state[f"v.{name}"].clone(),
            }


@dataclass(slots=True, eq=False)
class GradientSums:
    """What adds up over the micro-batches of a step, beside the gradients."""

    loss: float = 0.0
    parts: list[tuple[MicroBatch, TokenLoss, Tensor]] = field(default_factory=list)
    """Per micro-batch its rows, its loss terms (detached) and the entropy of its policy tokens."""
    forward_s: float = 0.0
    backward_s: float = 0.0


def _policy_tokens(parts: Sequence[tuple[MicroBatch, TokenLoss, Tensor]]) -> PolicyTokens:
    log_ratio_P = torch.cat([terms.log_ratio_P for _, terms, _ in parts]).double().numpy()
    counts_B = np.array([len(episode.target_P) for batch, _, _ in parts for episode in batch.episodes])
    starts_B = np.cumsum(counts_B) - counts_B
    return PolicyTokens(
        log_ratio_P=log_ratio_P,
        mean_log_ratio_B=np.add.reduceat(log_ratio_P, starts_B) / counts_B,
        entropy_P=torch.cat([entropy_P for _, _, entropy_P in parts]).double().numpy(),
        version_P=torch.cat([batch.version_P for batch, _, _ in parts]).long().numpy(),
        finite_P=torch.cat([terms.finite_P for _, terms, _ in parts]).numpy(),
        low_P=torch.cat([terms.low_P for _, terms, _ in parts]).numpy(),
        high_P=torch.cat([terms.high_P for _, terms, _ in parts]).numpy(),
        cap_P=torch.cat([terms.cap_P for _, terms, _ in parts]).numpy(),
    )
