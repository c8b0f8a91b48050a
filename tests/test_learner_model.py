"""Rows, shared openings, the tiled head and the fused LoRA linear against transformers and peft alone."""

import json

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from engine.errors import ConfigError, RunError
from engine.rundir import RunDir
from learner import head
from learner.advantage import group_std
from learner.forming import usable_group
from learner.forward import policy_logprobs
from learner.head import token_logprobs
from learner.lora import PeftLinear
from learner.loss import Clip
from learner.model import LoraSettings, load_policy, read_adapter
from learner.publish import publish
from learner.rows import micro_batches
from learner.step import GrpoStep, StepSettings
from tests.float64_reference import log_softmax
from tests.learner_runs import LORA, make_group, make_model, make_policy, whole_logprobs

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
    return [episode for tg in groups for episode in usable_group(tg, group_std, version=0).episodes]


def gradients(policy, episodes, budget):
    """Summed adapter gradients of a step under a micro-batch budget."""
    step = GrpoStep(policy, SETTINGS)
    sums = step.gradients(micro_batches(episodes, budget))
    return sums, {name: parameter.grad.clone() for name, parameter in policy.parameters.items()}


def test_batched_log_probabilities_equal_each_episode_alone(policy):
    """Shared openings and right padding change nothing: 1e-5 against peft on one whole episode (acceptance 5)."""
    episodes = trained(make_group(0, size=6), make_group(1, size=6))
    batches = micro_batches(episodes, 10_000)
    assert any((batch.ids_T == 0).any() for batch in batches)
    assert len(batches) == 1
    for batch in batches:
        logprob_P, _ = policy_logprobs(policy, batch)
        alone = [whole_logprobs(policy, episode.ids_T)[episode.target_P - 1] for episode in batch.episodes]
        assert np.abs(logprob_P.detach().numpy() - np.concatenate(alone)).max() <= 1e-5


def test_an_all_ones_mask_over_the_shared_opening_would_be_found(policy, monkeypatch):
    """The comparison above can fail: without the causal mask rows see their own future."""
    [batch] = micro_batches(trained(make_group(0, size=6)), 10_000)
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


def test_micro_batches_keep_the_budget_and_every_episode():
    """Siblings together, at most the budget unless one episode alone is longer, every policy token once."""
    episodes = trained(make_group(0, size=9), make_group(1, size=9))
    batches = micro_batches(episodes, 90)
    assert sorted(episode.id for batch in batches for episode in batch.episodes) == sorted(e.id for e in episodes)
    assert all(batch.ids_T.numel() <= 90 or len(batch.episodes) == 1 for batch in batches)
    assert all(sum(each.sizes[0] for each in batch.layout) < batch.ids_T.numel() for batch in batches)
    assert sum(batch.target_P.numel() for batch in batches) == sum(len(episode.target_P) for episode in episodes)


def test_observation_targets_do_not_matter_and_policy_tokens_do(policy):
    """Only policy tokens are targets: replacing every other target changes nothing, one of them both (acceptance 6)."""
    [batch] = micro_batches(trained(make_group(0, size=4))[:1], 10_000)
    [episode] = batch.episodes
    assert batch.ids_T.tolist() == episode.ids_T.tolist()
    assert (batch.before_P + 1).tolist() == episode.target_P.tolist()
    assert batch.target_P.tolist() == episode.ids_T[episode.target_P].tolist()
    wanted, _ = policy_logprobs(policy, batch)
    # Observation positions are no target at all, so only policy tokens can be replaced.
    batch.target_P[-1] = (batch.target_P[-1] + 1) % 64
    changed, _ = policy_logprobs(policy, batch)
    assert (changed[:-1] == wanted[:-1]).all()
    assert changed[-1] != wanted[-1]


def test_tokens_after_the_last_policy_token_are_left_out():
    """Template glue and last observations are neither computed nor targets; a sampled stop token is (acceptance 7)."""
    tg = make_group(2)
    for episode, source in zip(trained(tg), tg.episodes, strict=True):
        last = source.tokens.spans[-1]
        assert len(episode.ids_T) == last.start + last.length < len(source.tokens.ids)
        assert episode.target_P[-1] == len(episode.ids_T) - 1
        assert len(episode.target_P) == sum(span.length for span in source.tokens.spans)


def test_siblings_without_a_common_opening_are_refused():
    """Episodes of one task share their opening; anything else is a fault of the stream."""
    first, second = trained(make_group(0))[0], trained(make_group(0))[1]
    second.ids_T[0] = (first.ids_T[0] + 1) % 64
    with pytest.raises(RunError, match="do not share an opening"):
        micro_batches([first, second], 1000)


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
    [batch, *_] = micro_batches(trained(make_group(0, size=6)), 10_000)
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
        read_adapter(run.adapter(1), LORA)


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
