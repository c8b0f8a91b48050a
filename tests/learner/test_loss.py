"""The loss against a float64 reference of plain loops, and against TRL's own function on the same batch."""

from types import SimpleNamespace

import pytest
import torch

from learner.loss import Clip, ppo_token_loss
from tests.parts.float64_reference import ppo


def batch(seed, n=200, dtype=torch.float64):
    """Log-probabilities around mu, advantages of both signs, some tokens far outside every bound."""
    generator = torch.Generator().manual_seed(seed)
    behaviour = -torch.rand(n, generator=generator, dtype=torch.float64) * 4
    logprob = behaviour + torch.randn(n, generator=generator, dtype=torch.float64) * 0.5
    logprob[:4] = behaviour[:4] + torch.tensor([4.0, -4.0, 2.0, -2.0], dtype=torch.float64)
    advantage = torch.randn(n, generator=generator, dtype=torch.float64) + 0.5  # a sum that does not cancel
    return logprob.to(dtype).requires_grad_(), behaviour.to(dtype), advantage.to(dtype)


def loss_and_gradient(logprob, behaviour, advantage):
    """Token mean and gradient of ours."""
    loss = ppo_token_loss(logprob, behaviour, advantage, Clip()).loss_P.sum() / len(logprob)
    loss.backward()
    return loss.detach(), logprob.grad


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loss_and_gradient_equal_the_plain_loops(seed, dtype):
    """Both precisions stay within 1e-6 relative of the reference evaluated in float64 (acceptance 2)."""
    logprob, behaviour, advantage = batch(seed, dtype=dtype)
    loss, gradient = loss_and_gradient(logprob, behaviour, advantage)
    wanted, wanted_gradient = ppo(logprob.tolist(), behaviour.tolist(), advantage.tolist())
    assert abs(loss.item() - wanted) <= 1e-6 * abs(wanted)
    reference = torch.tensor(wanted_gradient, dtype=torch.float64)
    assert (gradient.double() - reference).norm() <= 1e-6 * reference.norm()
    assert (reference == 0).any()
    assert (reference != 0).any()


def trl_loss(per_token, advantages, completion_mask, tool_mask, behaviour):
    """`GRPOTrainer._compute_loss` of trl 1.16.0 on a plain namespace, with our log-probabilities."""
    from trl.trainer.grpo_trainer import GRPOTrainer  # noqa: PLC0415 - warns at import; filtered for one test

    stub = SimpleNamespace(
        args=SimpleNamespace(delta=3.0, use_bias_correction_kl=False, steps_per_generation=1),
        accelerator=SimpleNamespace(
            num_processes=1, reduce=lambda value, *_, **__: value, gather=lambda value: value, device="cpu"
        ),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        beta=0.0,
        epsilon_low=0.2,
        epsilon_high=0.28,
        _entropy_bonus_enabled=False,
        current_gradient_accumulation_steps=1,
        _metrics={"train": _Lists()},
        model=SimpleNamespace(training=True),
        loss_type="dapo",
        importance_sampling_level="token",
        use_vllm=False,
        vllm_importance_sampling_correction=False,
        max_completion_length=per_token.shape[1],
        tools=True,
        _get_per_token_logps_and_entropies=lambda *_, **__: (per_token, torch.zeros_like(per_token), None),
    )
    inputs = {
        "prompt_ids": torch.zeros(len(per_token), 1, dtype=torch.long),
        "prompt_mask": torch.ones(len(per_token), 1, dtype=torch.long),
        "completion_ids": torch.zeros_like(completion_mask),
        "completion_mask": completion_mask,
        "tool_mask": tool_mask,
        "advantages": advantages,
        "old_per_token_logps": behaviour,
        "num_items_in_batch": (completion_mask * tool_mask).sum(),
    }
    return GRPOTrainer._compute_loss(stub, None, inputs)


class _Lists(dict):
    def __missing__(self, key):
        return self.setdefault(key, [])


@pytest.mark.filterwarnings("ignore")  # trl's own, at import
@pytest.mark.parametrize("seed", range(3))
def test_loss_and_gradient_equal_trl_on_the_same_batch(seed):
    """Ragged rows with tool tokens in between: equal to TRL's dapo loss to 1e-12 in float64 (acceptance 1).

    As in TRL, a completion includes its tool tokens, and padding counts as no tool: either mask alone is wrong."""
    generator = torch.Generator().manual_seed(seed)
    rows, width = 6, 30
    behaviour = -torch.rand(rows, width, generator=generator, dtype=torch.float64) * 3
    drift = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    advantages = torch.randn(rows, generator=generator, dtype=torch.float64)
    completion_mask = (torch.arange(width) < torch.randint(5, width, (rows, 1), generator=generator)).long()
    tool_mask = (torch.rand(rows, width, generator=generator) > 0.3).long() | (1 - completion_mask)
    mask = completion_mask * tool_mask
    assert (mask != completion_mask).any()
    assert (mask != tool_mask).any()
    theirs = (behaviour + drift).requires_grad_()
    expected = trl_loss(theirs, advantages, completion_mask, tool_mask, behaviour)
    expected.backward()
    ours = (behaviour + drift).requires_grad_()
    chosen = mask.bool()
    terms = ppo_token_loss(ours[chosen], behaviour[chosen], advantages[:, None].expand_as(mask)[chosen], Clip())
    loss = terms.loss_P.sum() / mask.sum()
    loss.backward()
    assert abs(loss.item() - expected.item()) <= 1e-12
    assert (ours.grad - theirs.grad).abs().max() <= 1e-12


def test_cap_bounds_the_loss_where_the_advantage_is_negative():
    """With A < 0 and a ratio of 100 the loss is delta |A|, not 100 |A|, and has no gradient (acceptance 2)."""
    logprob = torch.log(torch.tensor([100.0], dtype=torch.float64)).requires_grad_()
    terms = ppo_token_loss(logprob, torch.zeros(1, dtype=torch.float64), -torch.ones(1, dtype=torch.float64), Clip())
    terms.loss_P.sum().backward()
    assert terms.loss_P.item() == pytest.approx(3.0)
    assert logprob.grad.item() == 0.0
    assert terms.cap_P.all()
    assert not terms.high_P.any()


def test_a_nan_in_mu_loses_that_token_only():
    """A token without a finite mu adds nothing to loss or gradient and still counts in N (acceptance 14)."""
    logprob, behaviour, advantage = batch(0, n=10)
    behaviour[3] = float("nan")
    terms = ppo_token_loss(logprob, behaviour, advantage, Clip())
    terms.loss_P.sum().backward()
    assert terms.finite_P.tolist() == [index != 3 for index in range(10)]
    assert logprob.grad[3] == 0.0
    assert torch.isfinite(logprob.grad).all()
    wanted, _ = ppo(logprob.tolist(), behaviour.tolist(), advantage.tolist())
    assert terms.loss_P.sum().item() / 10 == pytest.approx(wanted, rel=1e-12)


def test_clip_flags_say_where_the_clip_acts():
    """Low acts on falling tokens of bad episodes, high on rising tokens of good ones; nowhere else."""
    logprob = torch.tensor([0.5, -0.5, 0.5, -0.5, 0.0], dtype=torch.float64)
    advantage = torch.tensor([1.0, -1.0, -1.0, 1.0, 1.0], dtype=torch.float64)
    terms = ppo_token_loss(logprob, torch.zeros(5, dtype=torch.float64), advantage, Clip())
    assert terms.high_P.tolist() == [True, False, False, False, False]
    assert terms.low_P.tolist() == [False, True, False, False, False]
