"""Rows, shared prompts, the tiled head and the fused LoRA linear against transformers and peft alone."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from engine.errors import ConfigError, RunError
from engine.rundir.layout import RunDir
from learner import head
from learner.advantage import group_std
from learner.forming import usable_group
from learner.forward import policy_logprobs
from learner.head import token_logprobs
from learner.lora import PeftLinear
from learner.loss import Clip, ppo_token_loss
from learner.model import LoraSettings, load_policy, read_adapter_tensors
from learner.publish import publish
from learner.rows import collate
from learner.step import GrpoStep, NotFiniteError, StepSettings
from tests.parts.float64_reference import log_softmax, ppo
from tests.parts.learner_runs import (
    LORA,
    VOCABULARY,
    make_float64_policy,
    make_group,
    make_model,
    make_policy,
    whole_logprobs,
    whole_logprobs_with_gradient,
)

SETTINGS = StepSettings(clip=Clip(), grad_clip=1.0, micro_batch_tokens=200)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny model on disk."""
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def policy(model):
    """With an adapter that matters."""
    return make_policy(model, adapted=True)


def trained(*groups):
    """The trained episodes of groups."""
    return [episode for group in groups for episode in usable_group(group, group_std, version=0).episodes]


def gradients(policy, episodes, budget):
    """Summed adapter gradients of a step under a micro-batch budget."""
    step = GrpoStep(policy, SETTINGS)
    sums = step.gradients(collate(episodes, budget))
    return sums, {name: parameter.grad.clone() for name, parameter in policy.parameters.items()}


def test_batched_log_probabilities_equal_each_episode_alone(policy):
    """Shared prompts and right padding change nothing: 1e-5 against peft on one whole episode (acceptance 5)."""
    episodes = trained(make_group(0, size=6), make_group(1, size=6))
    batches = collate(episodes, 10_000)
    assert any((batch.ids_T == 0).any() for batch in batches)
    assert len(batches) == 1
    for batch in batches:
        logprob_P, _ = policy_logprobs(policy, batch)
        alone = [whole_logprobs(policy, episode.ids_T)[episode.target_P - 1] for episode in batch.episodes]
        assert np.abs(logprob_P.detach().numpy() - np.concatenate(alone)).max() <= 1e-5


def test_an_all_ones_mask_over_the_shared_prompt_would_be_found(policy, monkeypatch):
    """The comparison above can fail: without the causal mask rows see their own future."""
    [batch] = collate(trained(make_group(0, size=6)), 10_000)
    wanted, _ = policy_logprobs(policy, batch)
    monkeypatch.setattr(torch.Tensor, "tril", lambda self, _: self)
    wrong, _ = policy_logprobs(policy, batch)
    assert (wrong - wanted).abs().max() > 1e-3


@pytest.mark.parametrize("budget", [1, 60, 120, 10_000])
def test_any_cut_into_micro_batches_gives_the_same_gradient(policy, budget):
    """f32: within 1e-5 relative of one pass per group, whatever the budget and the order of episodes (acceptance 4)."""
    episodes = trained(make_group(0, size=6), make_group(1, size=5))
    _, wanted = gradients(policy, episodes, 100_000)
    _, found = gradients(policy, episodes[::-1], budget)
    for name, gradient in wanted.items():
        assert (found[name] - gradient).norm() <= 1e-5 * gradient.norm()


def test_any_cut_into_micro_batches_gives_the_same_gradient_in_float64(model):
    """float64: within 1e-9 relative (acceptance 4)."""
    policy = make_policy(model, adapted=True)
    policy.model.double()
    episodes = trained(make_group(0, size=6), make_group(1, size=5))
    _, wanted = gradients(policy, episodes, 100_000)
    for budget in (1, 80):
        _, found = gradients(policy, episodes[::-1], budget)
        for name, gradient in wanted.items():
            assert (found[name] - gradient).norm() <= 1e-9 * gradient.norm()


def test_recomputed_activations_give_the_same_gradient(model):
    """Bit for bit, with every layer run twice; fewer tensors wait for the backward pass."""
    [batch] = collate(trained(make_group(0, size=6)), 10_000)
    kept, once, again = [], make_policy(model, adapted=True), make_policy(model, adapted=True)
    again.recompute()
    for each in (once, again):
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor, to=saved: to.append(tensor.nbytes) or tensor, lambda t: t
        ):
            logprob_P, _ = policy_logprobs(each, batch)
        logprob_P.sum().backward()
        kept.append(sum(saved))
    assert kept[1] < kept[0] / 3
    for name, parameter in once.parameters.items():
        assert torch.equal(parameter.grad, again.parameters[name].grad)


def test_micro_batches_keep_the_budget_and_every_episode():
    """Siblings together, at most the budget unless one episode alone is longer, every policy token once."""
    episodes = trained(make_group(0, size=9), make_group(1, size=9))
    batches = collate(episodes, 90)
    assert sorted(episode.id for batch in batches for episode in batch.episodes) == sorted(e.id for e in episodes)
    assert all(batch.ids_T.numel() <= 90 or len(batch.episodes) == 1 for batch in batches)
    assert all(sum(each.sizes[0] for each in batch.layout) < batch.ids_T.numel() for batch in batches)
    assert sum(batch.target_P.numel() for batch in batches) == sum(len(episode.target_P) for episode in episodes)


@pytest.mark.parametrize("budget", [60, 120, 10_000])
def test_the_targets_of_a_pass_are_the_sampled_tokens(budget):
    """Traced back to its episode, each target lies in a policy span, and none of a span is left out (acceptance 6)."""
    groups = make_group(0, size=6), make_group(1, size=5)
    ledgers = {episode.id: episode.tokens for group in groups for episode in group.episodes}
    for batch in collate(trained(*groups), budget):
        sizes = [sum(span.length for span in ledgers[episode.id].spans) for episode in batch.episodes]
        for episode, before, target in zip(
            batch.episodes, batch.before_P.split(sizes), batch.target_P.split(sizes), strict=True
        ):
            tokens = ledgers.pop(episode.id)
            sampled = [span.start + number for span in tokens.spans for number in range(span.length)]
            assert (batch.position_T[before] + 1).tolist() == sampled
            assert target.tolist() == tokens.ids[sampled].tolist()
            assert batch.ids_T[before].tolist() == tokens.ids[np.array(sampled) - 1].tolist()
    assert ledgers == {}


def with_other_ids(group, positions):
    """The group with other ids at `positions` of its first episode."""
    first = group.episodes[0]
    ids = first.tokens.ids.copy()
    ids[positions] = ids[positions] % (VOCABULARY - 1) + 1
    return replace(group, episodes=(replace(first, tokens=replace(first.tokens, ids=ids)), *group.episodes[1:]))


def test_observation_targets_do_not_matter_and_policy_tokens_do(policy):
    """Other ids after the last policy token leave loss and gradients as they are to the bit; another last policy
    token, which nothing follows, changes both (acceptance 6)."""
    group = make_group(0, policy=policy)
    tokens = group.episodes[0].tokens
    end = tokens.spans[-1].start + tokens.spans[-1].length
    assert end < len(tokens.ids)
    wanted, gradient = gradients(policy, trained(group), 200)
    observed, unmoved = gradients(policy, trained(with_other_ids(group, slice(end, None))), 200)
    sampled, moved = gradients(policy, trained(with_other_ids(group, [end - 1])), 200)
    assert observed.loss == wanted.loss
    assert abs(sampled.loss - wanted.loss) > 1e-3
    for name in policy.parameters:
        assert torch.equal(unmoved[name], gradient[name])
        assert (moved[name] - gradient[name]).norm() > 1e-3 * gradient[name].norm()


def test_adapter_gradients_equal_the_float64_model(model, policy):
    """A step in float32 against whole episodes, peft's own layers and plain loops in float64: loss within 1e-5, every
    adapter gradient within 1e-4 relative (docs/learner.md 2.2)."""
    base, exact = make_policy(model), make_float64_policy(model)
    # The first sampled by this policy, the second by the base: ratios of 1 and on both sides of the clip.
    episodes = trained(make_group(0, size=6, policy=policy), make_group(1, size=5, policy=base))
    sums, found = gradients(policy, episodes, 80)
    assert len(sums.parts) > 1
    logprob_P = torch.cat([whole_logprobs_with_gradient(exact, each.ids_T)[each.target_P - 1] for each in episodes])
    behaviours = [float(value) for each in episodes for value in each.behaviour_P]
    advantages = [each.advantage for each in episodes for _ in each.target_P]
    loss, gradient = ppo(logprob_P.tolist(), behaviours, advantages)
    assert 0.0 in gradient
    logprob_P.backward(torch.tensor(gradient, dtype=torch.float64))
    assert abs(sums.loss - loss) <= 1e-5
    for name, parameter in exact.parameters.items():
        assert parameter.grad.dtype is torch.float64
        assert (found[name] - parameter.grad).norm() <= 1e-4 * parameter.grad.norm()


def test_log_probabilities_equal_the_float64_model(model, policy):
    """A pass in float32 against each episode alone in float64: 1e-5 (docs/learner.md 2.3)."""
    exact = make_float64_policy(model)
    [batch] = collate(trained(make_group(0, size=6), make_group(1, size=6)), 10_000)
    logprob_P, _ = policy_logprobs(policy, batch)
    wanted = np.concatenate([whole_logprobs(exact, each.ids_T)[each.target_P - 1] for each in batch.episodes])
    assert (logprob_P.dtype, wanted.dtype) == (torch.float32, np.float64)
    assert np.abs(logprob_P.detach().numpy() - wanted).max() <= 1e-5


def refused(policy, step):
    """The error of a step, which must leave the policy's tensors as they were."""
    before = policy.snapshot()
    with pytest.raises(NotFiniteError) as caught:
        step.run(trained(make_group(0, policy=policy)), 1e-2)
    for name, parameter in policy.parameters.items():
        assert torch.equal(parameter, before[name])
    return caught.value


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_loss_that_is_not_finite_changes_nothing(model, monkeypatch, value):
    """Though every gradient is finite: the step says so, and the policy's tensors are those before it."""
    policy = make_policy(model, adapted=True)

    def shifted(*arguments):
        terms = ppo_token_loss(*arguments)
        return replace(terms, loss_P=terms.loss_P + value)

    monkeypatch.setattr("learner.step.ppo_token_loss", shifted)
    error = refused(policy, GrpoStep(policy, SETTINGS))
    assert (str(error), error.tensor) == (f"the loss is {value}", None)
    assert all(torch.isfinite(parameter.grad).all() for parameter in policy.parameters.values())


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_tensor_that_is_not_finite_after_the_update_is_named_and_undone(model, monkeypatch, value):
    """Loss and gradients are finite, the update is not: its tensor is named, and all tensors are those before it."""
    policy = make_policy(model, adapted=True)
    step = GrpoStep(policy, SETTINGS)
    name = "base_model.model.model.layers.1.mlp.down_proj.lora_A.weight"
    update = step.optimizer.step

    @torch.no_grad()
    def overflowing():
        update()
        policy.parameters[name][0, 0] = value

    monkeypatch.setattr(step.optimizer, "step", overflowing)
    error = refused(policy, step)
    assert (str(error), error.tensor) == (f"{name} is not finite after the update", name)


def test_tokens_after_the_last_policy_token_are_left_out():
    """Template glue and last observations are neither computed nor targets; what was sampled is (acceptance 7)."""
    group = make_group(2)
    for episode, source in zip(trained(group), group.episodes, strict=True):
        last = source.tokens.spans[-1]
        assert len(episode.ids_T) == last.start + last.length < len(source.tokens.ids)
        assert episode.target_P[-1] == len(episode.ids_T) - 1
        assert len(episode.target_P) == sum(span.length for span in source.tokens.spans)


def test_siblings_without_a_common_prompt_are_refused():
    """Episodes of one task share their prompt; anything else is a fault of the stream."""
    first, second = trained(make_group(0))[0], trained(make_group(0))[1]
    second.ids_T[0] = (first.ids_T[0] + 1) % 64
    with pytest.raises(RunError, match="do not share a prompt"):
        collate([first, second], 1000)


def test_tiled_head_equals_plain_loops(monkeypatch):
    """Log-probability, entropy and gradient over several tiles: 1e-9 in float64 against plain loops."""
    monkeypatch.setattr(head, "TILE_BYTES", 3 * 11 * 8)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(10, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(11, 5, generator=generator, dtype=torch.float64)
    target = torch.randint(0, 11, (10,), generator=generator)
    scale = torch.randn(10, generator=generator, dtype=torch.float64)
    logprob, entropy = token_logprobs(hidden, weight, target)
    (logprob * scale).sum().backward()
    plain = hidden.detach().clone().requires_grad_()
    ((plain @ weight.T).log_softmax(-1)[torch.arange(10), target] * scale).sum().backward()
    for row in range(10):
        wanted = log_softmax((hidden[row] @ weight.T).tolist(), int(target[row]))
        assert (logprob[row].item(), entropy[row].item()) == pytest.approx(wanted, abs=1e-12)
    assert (hidden.grad - plain.grad).abs().max() <= 1e-12
    assert not entropy.requires_grad


def test_tiled_head_in_float32_equals_the_whole_matrix(monkeypatch):
    """Seven tiles in float32 against one [T, V] in float64: log-probabilities within 1e-5, gradient within 1e-6
    relative (docs/learner.md 2.3)."""
    monkeypatch.setattr(head, "TILE_BYTES", 7 * 1000 * 4)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(45, 32, generator=generator, requires_grad=True)
    weight = torch.randn(1000, 32, generator=generator) * 0.5
    target = torch.randint(0, 1000, (45,), generator=generator)
    logprob, _ = token_logprobs(hidden, weight, target)
    logprob.sum().backward()
    whole = hidden.detach().double().requires_grad_()
    wanted = (whole @ weight.double().T).log_softmax(-1)[torch.arange(45), target]
    wanted.sum().backward()
    assert logprob.dtype is torch.float32
    assert (logprob - wanted).abs().max() <= 1e-5
    assert (hidden.grad - whole.grad).norm() <= 1e-6 * whole.grad.norm()


class PeakBytes(TorchDispatchMode):
    """The largest storage that any operation made inside."""

    def __init__(self):
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.untyped_storage().nbytes())
        return result


def test_the_head_never_holds_tokens_times_vocabulary():
    """T = 8,192, V = 151,936 as meta tensors: no tensor above one tile (256 MiB) beside the weights (acceptance 8)."""
    with torch.device("meta"):
        hidden = torch.empty(8192, 64, requires_grad=True)
        weight, target = torch.empty(151_936, 64), torch.empty(8192, dtype=torch.long)
        with PeakBytes() as peak:
            logprob, _ = token_logprobs(hidden, weight, target)
            logprob.sum().backward()
    assert peak.largest <= head.TILE_BYTES
    assert 2 * head.TILE_BYTES < 2 * 2**30


def test_fused_linear_equals_pefts_own_forward(model, policy):
    """One autograd node against peft's separate operations: outputs and gradients within 1e-5."""
    [batch, *_] = collate(trained(make_group(0, size=6)), 10_000)
    policy.model.zero_grad()
    fused, _ = policy_logprobs(policy, batch)
    fused.sum().backward()
    mine = {name: parameter.grad.clone() for name, parameter in policy.parameters.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("learner.model.fuse", lambda model: None)
        plain = make_policy(model, adapted=True)
    assert not any("forward" in vars(module) for module in plain.model.modules() if isinstance(module, PeftLinear))
    unfused, _ = policy_logprobs(plain, batch)
    unfused.sum().backward()
    assert (fused - unfused).abs().max() <= 1e-5
    for name, parameter in plain.parameters.items():
        assert (mine[name] - parameter.grad).norm() <= 1e-5 * parameter.grad.norm()


def test_published_adapter_loads_into_peft_and_merges(model, policy, tmp_path):
    """Server-side reading of the published directory by peft, unmerged and merged: log-probabilities within 1e-5."""
    run = RunDir(tmp_path)
    run.create()
    publish(run, policy, policy.snapshot(), {"version": 1, "step": 1, "cursor": [0, 0]})
    ids = list(range(1, 40))
    wanted = whole_logprobs(policy, ids)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with pytest.warns(FutureWarning):
        loaded = PeftModel.from_pretrained(base, run.adapter(1))
    for served in (loaded, loaded.merge_and_unload()):
        ids_T = torch.tensor(ids)
        with torch.no_grad():
            logits = served(input_ids=ids_T[None]).logits[0]
        found = logits.log_softmax(-1)[:-1].gather(-1, ids_T[1:, None])[:, 0].numpy()
        assert np.abs(found - wanted).max() <= 1e-5
    with policy.model.disable_adapter():
        assert np.abs(whole_logprobs(policy, ids) - wanted).max() > 1e-2


def test_version_zero_equals_the_base(model):
    """B = 0: a fresh adapter changes nothing, exactly."""
    policy = make_policy(model)
    ids = list(range(1, 40))
    with_adapter = whole_logprobs(policy, ids)
    with policy.model.disable_adapter():
        assert (whole_logprobs(policy, ids) == with_adapter).all()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_rslora", True),
        ("use_dora", True),
        ("rank_pattern", {"q_proj": 8}),
        ("alpha_pattern", {"q_proj": 8}),
        ("modules_to_save", ["lm_head"]),
        ("lora_dropout", 0.1),
        ("bias", "all"),
        ("target_modules", ["q_proj", "v_proj"]),
        ("target_modules", ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]),
        ("r", 8),
        ("lora_alpha", 16),
    ],
)
def test_adapters_that_would_not_be_served_as_trained_are_refused(policy, tmp_path, key, value):
    """Each setting is named, with the reason (acceptance 10)."""
    run = RunDir(tmp_path)
    run.create()
    publish(run, policy, policy.snapshot(), {"version": 1, "step": 1, "cursor": [0, 0]})
    file = run.adapter(1) / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    with pytest.raises(ConfigError, match=key):
        read_adapter_tensors(run.adapter(1), LORA)


def test_warm_start_takes_the_adapter_and_refuses_another_rank(model, policy, tmp_path):
    """The warm-started policy is the published one; a directory of another rank or none at all is an error."""
    run = RunDir(tmp_path)
    run.create()
    publish(run, policy, policy.snapshot(), {"version": 1, "step": 1, "cursor": [0, 0]})
    warm = load_policy(model, LORA, seed=5, warm_start=run.adapter(1))
    for name, parameter in policy.parameters.items():
        assert torch.equal(parameter, warm.parameters[name])
    with pytest.raises(ConfigError, match="r = 4, but the configuration says 2"):
        load_policy(model, LoraSettings(rank=2, alpha=8), seed=0, warm_start=run.adapter(1))
    with pytest.raises(ConfigError, match=r"adapter_config\.json is missing"):
        load_policy(model, LORA, seed=0, warm_start=tmp_path)


def test_names_and_scaling_are_pefts(policy):
    """14 tensors a layer under the names that servers read; scaling is alpha / r."""
    names = list(policy.parameters)
    assert len(names) == 14 * 2
    assert "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight" in names
    scalings = [module.scaling["default"] for module in policy.model.modules() if isinstance(module, PeftLinear)]
    assert scalings == [LORA.alpha / LORA.rank] * 14
