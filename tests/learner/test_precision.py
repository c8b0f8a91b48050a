"""A base in bfloat16, as on a GPU: float32 masters; the forward pass applies them rounded, and those are published."""

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModelForCausalLM

from engine.config.load import load
from engine.errors import ConfigError
from engine.rundir.layout import read_json, read_lines
from learner import attention, device, head
from learner.__main__ import EXIT_OK, serve
from learner.advantage import group_std
from learner.checkpoint import latest_checkpoint
from learner.forming import usable_group
from learner.forward import policy_logprobs
from learner.head import token_logprobs
from learner.lifetime import Lifetime
from learner.loop import Learner
from learner.loss import Clip
from learner.model import load_policy
from learner.rows import collate
from learner.step import GrpoStep, StepSettings
from tests.parts.learner_runs import LORA, make_group, make_model, make_policy, make_run, whole_logprobs, write_stream

HALF = (torch.device("cpu"), torch.bfloat16)
SETTINGS = StepSettings(clip=Clip(), grad_clip=1.0, micro_batch_tokens=100)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny model on disk."""
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def policy(model):
    """In bfloat16, with an adapter that matters and that no bfloat16 holds."""
    policy = load_policy(model, LORA, seed=0, placed=HALF)
    policy.load(make_policy(model, adapted=True).snapshot(), "the float32 one")
    return policy


@pytest.fixture(scope="module")
def groups(model):
    """Eight groups with log-probabilities of the base in bfloat16."""
    base = load_policy(model, LORA, seed=0, placed=HALF)
    return [make_group(position, policy=base) for position in range(8)]


def episodes_of(*groups):
    """What a step trains on."""
    return [episode for group in groups for episode in usable_group(group, group_std, version=0).episodes]


def rounded(tensors):
    """As bfloat16 holds them."""
    return {name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}


def test_the_forward_pass_applies_what_is_published(policy):
    """Masters and rounded masters give the same log-probabilities to the bit; published are the latter, in bfloat16."""
    [batch] = collate(episodes_of(make_group(0, size=6)), 10_000)
    masters = policy.snapshot()
    before, _ = policy_logprobs(policy, batch)
    published = policy.applied()
    assert all(torch.equal(published[name], tensor) for name, tensor in rounded(masters).items())
    assert any(not torch.equal(published[name].float(), tensor) for name, tensor in masters.items())
    policy.load(published, "the published one")
    after, _ = policy_logprobs(policy, batch)
    assert before.dtype is torch.float32
    assert torch.equal(before, after)


def test_masters_and_their_gradients_are_float32_and_move_by_less_than_the_base_can_hold(policy):
    """A small step changes masters that the published tensors do not show yet: nothing is lost to rounding."""
    before, published = policy.snapshot(), policy.applied()
    result = GrpoStep(policy, SETTINGS).run(episodes_of(make_group(0, size=6), make_group(1, size=5)), lr=1e-7)
    assert result.update_norm > 0
    for name, parameter in policy.parameters.items():
        assert (parameter.dtype, parameter.grad.dtype) == (torch.float32, torch.float32)
        assert not torch.equal(parameter, before[name])
    same = [torch.equal(tensor, published[name]) for name, tensor in policy.applied().items()]
    assert any(same)


def test_bfloat16_is_close_to_float32(model, policy):
    """Log-probabilities of this spiky model: mean within 0.03 nats, k3 within 5e-4; gradients within 5 %."""
    exact = make_policy(model, adapted=True)
    episodes = episodes_of(make_group(0, size=6), make_group(1, size=5))
    [batch] = collate(episodes, 10_000)
    found, wanted = (policy_logprobs(each, batch)[0].detach().double().numpy() for each in (policy, exact))
    y_P = found - wanted
    assert 0 < np.abs(y_P).mean() <= 0.03
    assert np.mean(np.expm1(y_P) - y_P) <= 5e-4
    for each in (policy, exact):
        GrpoStep(each, SETTINGS).gradients([batch])
    flat = [torch.cat([p.grad.flatten() for p in each.parameters.values()]) for each in (policy, exact)]
    assert (flat[0] - flat[1]).norm() <= 0.05 * flat[1].norm()


def test_the_head_sums_over_the_vocabulary_in_float32(monkeypatch):
    """Log-probabilities and entropies of bfloat16 states equal float64 sums over the same products, tile by tile."""
    monkeypatch.setattr(head, "TILE_BYTES", 7 * 1000 * 4)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(45, 32, generator=generator).bfloat16().requires_grad_()
    weight = (torch.randn(1000, 32, generator=generator) * 0.5).bfloat16()
    target = torch.randint(0, 1000, (45,), generator=generator)
    assert head.tile_rows(1000, torch.bfloat16) == 7
    logprob, entropy = token_logprobs(hidden, weight, target)
    logprob.sum().backward()
    logits = (hidden.detach() @ weight.T).double()
    wanted = logits.log_softmax(-1)
    assert (logprob - wanted[torch.arange(45), target]).abs().max() <= 1e-5
    assert (entropy + (wanted.exp() * wanted).sum(-1)).abs().max() <= 1e-5
    assert hidden.grad.dtype is torch.bfloat16
    grad = (torch.eye(1000, dtype=torch.float64)[target] - wanted.exp()) @ weight.double()
    assert (hidden.grad - grad).norm() <= 1e-2 * grad.norm()


def test_the_mask_by_name_is_the_one_that_is_built():
    """On a GPU the kernels get `causal_lower_right`; it means what the mask on the CPU says."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 4, size, 8, generator=generator) for size in (5, 12, 12))
    built = attention._causal(5, 7, torch.device("cpu"))
    named = attention._causal(5, 7, torch.device("cuda"))
    assert type(named) is type(causal_lower_right(5, 12))
    with warnings.catch_warnings():
        # Without a GPU it says that no fused kernel can be used.
        warnings.simplefilter("ignore", UserWarning)
        found = scaled_dot_product_attention(q, k, v, attn_mask=named)
    assert (found - scaled_dot_product_attention(q, k, v, attn_mask=built)).abs().max() <= 1e-6


def train(run, monkeypatch, steps):
    """Run the learner with a base in bfloat16 up to that step; its exit code."""
    monkeypatch.setattr("learner.step.placed", lambda config, rank: HALF)
    before = load(run.config).config.run.steps
    run.config.write_text(run.config.read_text().replace(f"steps = {before}\n", f"steps = {steps}\n", 1))
    return serve(Learner(run, load(run.config).config, Lifetime()), flush=False)


def weights(run, version):
    """The published tensors."""
    return load_file(run.adapter(version) / "adapter_model.safetensors")


def test_a_run_publishes_bfloat16_and_continues_from_its_masters(tmp_path, model, groups, monkeypatch):
    """Interrupted and resumed it publishes the bytes of a run in one go; the probe of what was published is silent."""
    whole, cut = (make_run(tmp_path / name, model, steps=3) for name in ("whole", "cut"))
    for run in (whole, cut):
        write_stream(run, groups)
    assert train(whole, monkeypatch, 3) == EXIT_OK
    for steps in (1, 3):
        assert train(cut, monkeypatch, steps) == EXIT_OK
    for version in range(4):
        tensors = weights(whole, version)
        assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
        assert all(torch.equal(tensor, weights(cut, version)[name]) for name, tensor in tensors.items())
        assert read_json(whole.adapter(version) / "meta.json")["dtype"] == "bfloat16"
    saved = latest_checkpoint(whole)
    masters = {name: saved.moments[f"w.{name}"] for name in saved.adapter}
    assert all(torch.equal(saved.adapter[name], tensor) for name, tensor in rounded(masters).items())
    assert all(torch.equal(saved.adapter[name], tensor) for name, tensor in weights(whole, 3).items())
    rows = list(read_lines(whole.learner / "metrics.jsonl"))
    assert rows[0]["learner/mismatch_k3_nats"] < 1e-4


def test_the_published_adapter_serves_in_peft(tmp_path, model, groups, monkeypatch):
    """By peft on a bfloat16 base with the published directory: mean within 1e-2 of the learner's log-probabilities."""
    run = make_run(tmp_path / "demo", model, steps=2, lr=1e-2)
    write_stream(run, groups)
    monkeypatch.setattr("learner.step.placed", lambda config, rank: HALF)
    learner = Learner(run, load(run.config).config, Lifetime())
    assert serve(learner, flush=False) == EXIT_OK
    [batch] = collate(episodes_of(groups[0])[:1], 10_000)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    with pytest.warns(FutureWarning):
        served = PeftModel.from_pretrained(base, run.adapter(2))
    episode = batch.episodes[0]
    wanted = whole_logprobs(SimpleNamespace(model=served), episode.ids_T)[episode.target_P - 1]
    found, _ = policy_logprobs(learner.policy, batch)
    assert np.abs(found.detach().numpy() - wanted).mean() <= 1e-2


def test_gpus_that_are_not_there_are_a_configuration_error(monkeypatch):
    """The number that torch sees is told; with one, rank 0 computes there in bfloat16, or as servers on the CPU do."""
    monkeypatch.setattr(device.torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(device.torch.cuda, "set_device", lambda _: None)
    two = ["learner.gpus=[0, 1]"]
    served = [*two, "policy.launch=none", "policy.urls=['http://127.0.0.1:1']"]
    assert device.placed(load(None, served).config, 0) == (torch.device("cuda", 0), torch.bfloat16)
    on_cpu = [*two, "policy.launch=sglang", "policy.device=cpu"]
    assert device.placed(load(None, on_cpu).config, 0) == (torch.device("cuda", 0), torch.float32)
    assert device.placed(load(None, two).config, 0) == (torch.device("cuda", 0), torch.float32)
    assert device.placed(load(None).config, 0) == (torch.device("cpu"), torch.float32)
    with pytest.raises(
        ConfigError, match=r"learner.gpus = \[0, 1\] needs a torch that sees 2 GPUs, and this one sees 1"
    ):
        device.placed(load(None, two).config, 1)
