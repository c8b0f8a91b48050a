"""engine.serving.placement and memory, engine.modeldir.shape: who gets which GPU, and whether it fits."""

from dataclasses import replace

import orjson
import pytest

from engine.config.load import validate
from engine.errors import ConfigError
from engine.modeldir.shape import DecoderShape
from engine.serving.gpus import Gpu
from engine.serving.memory import memory_share, needs
from engine.serving.models import find_model
from engine.serving.placement import place

QWEN3_4B = DecoderShape(
    architecture="Qwen3ForCausalLM",
    layers=36,
    hidden=2560,
    heads=32,
    kv_heads=8,
    head_dim=128,
    intermediate=9728,
    vocabulary=151_936,
    context=40_960,
    norm_eps=1e-6,
    tied=True,
)
QWEN3_8B = replace(QWEN3_4B, hidden=4096, intermediate=12_288, tied=False)


def gpus(count, mib=81_559):
    """That many equal GPUs."""
    return [Gpu(index=index, name="H100", total_mib=mib, free_mib=mib) for index in range(count)]


def config_of(policy=None, learner=None, tokens=16_000, **endpoints):
    """A run on GPUs with episodes of 16k tokens; endpoints are started, and each plays something."""
    roles = dict(zip(("world", "user"), ({"kind": "llm", "endpoint": name} for name in endpoints), strict=False))
    started = {"launch": "sglang", "model": "tiny"}
    return validate(
        {
            **roles,
            "endpoints": {name: started | settings for name, settings in endpoints.items()},
            "policy": {"launch": "sglang", "device": "cuda", **(policy or {})},
            "learner": {"micro_batch_tokens": tokens, **(learner or {})},
            "limits": {"tokens": tokens},
        },
        {},
    )


def test_sizes_are_those_of_the_models():
    """docs/learner.md 3 and 4 have them, from the published configurations."""
    assert (QWEN3_4B.lora_parameters(1), QWEN3_8B.lora_parameters(1)) == (2_064_384, 2_727_936)
    assert QWEN3_4B.parameters == pytest.approx(4.02e9, rel=0.01)
    assert QWEN3_8B.parameters == pytest.approx(8.19e9, rel=0.01)
    assert QWEN3_8B.activations(recompute=False) * 2 * 16_384 / 2**30 == pytest.approx(99, abs=1)
    assert QWEN3_8B.activations(recompute=True) * 2 * 16_384 / 2**30 == pytest.approx(4.5 + 2.8, abs=0.2)
    assert QWEN3_8B.kv_values * 2 == 147_456


def test_a_shape_is_read_from_a_model_directory():
    """The shipped one: 1.1 M parameters."""
    shape = DecoderShape.read(find_model("tiny").path)
    assert shape.layers == 4
    assert 1_000_000 < shape.parameters < 1_200_000


def test_a_configuration_without_sizes_is_named(tmp_path):
    """The entry that is missing is told."""
    (tmp_path / "config.json").write_bytes(orjson.dumps({"num_attention_heads": 2}))
    with pytest.raises(ConfigError, match="no usable sizes of a decoder in it: KeyError\\('hidden_size'\\)"):
        DecoderShape.read(tmp_path)


def test_servers_get_what_does_not_train():
    """Six of eight GPUs, two for each server."""
    placement = place(config_of({"servers": 3, "tensor_parallel": 2}, {"gpus": [0, 1]}), gpus(8))
    assert placement.learner == (0, 1)
    assert placement.servers == ((2, 3), (4, 5), (6, 7))


def test_one_gpu_is_shared():
    """And the server is told what the learner leaves of it."""
    config = config_of(learner={"gpus": [0]}, tokens=4_000)
    placement = place(config, gpus(1))
    assert placement.servers == ((0,),)
    share = memory_share(config, config.policy, (0,), QWEN3_4B, gpus(1))
    used = needs(config, placement, QWEN3_4B, gpus(1))
    assert {need.who for need in used} == {"learner", "server-0"}
    assert 0.9 * 81_559 < sum(need.mib for need in used) <= 81_559
    assert 0.3 < share < 0.7


def test_on_a_gpu_of_its_own_sglang_chooses():
    """Unless the share is set."""
    auto, half = config_of(), config_of({"memory_fraction": 0.5})
    assert memory_share(auto, auto.policy, (0,), QWEN3_4B, gpus(1)) is None
    assert memory_share(half, half.policy, (0,), QWEN3_4B, gpus(1)) == 0.5


@pytest.mark.parametrize(
    ("policy", "learner", "count", "sentence"),
    [
        ({"gpus": [3]}, {}, 2, "policy.gpus: there is no GPU 3 here; nvidia-smi shows \\[0, 1\\]"),
        ({}, {"gpus": [2]}, 2, "learner.gpus: there is no GPU 2 here"),
        ({"gpus": [0, 0]}, {}, 2, "policy.gpus = \\[0, 0\\] names a GPU twice"),
        ({"servers": 2}, {"gpus": [0]}, 2, "policy.servers = 2 with policy.tensor_parallel = 1 need 2 GPUs, and 1 can"),
        ({"gpus": [0]}, {}, 0, "there is no GPU 0 here; nvidia-smi shows none"),
    ],
)
def test_gpus_that_are_not_there_are_named(policy, learner, count, sentence):
    """With what there is, and the key to change."""
    with pytest.raises(ConfigError, match=sentence):
        place(config_of(policy, learner), gpus(count))


def test_what_cannot_fit_is_refused_with_its_numbers():
    """The parts of each process, and what to lower."""
    config = config_of({"memory_fraction": 0.5}, {"gpus": [0]})
    placement = place(config, gpus(1))
    with pytest.raises(ConfigError, match=r"GPU 0 has 81,559 MiB, and this would need more: learner .*activations 9"):
        needs(config, placement, QWEN3_4B, gpus(1))


def test_a_cache_for_too_few_episodes_is_refused():
    """An 8B model leaves a 24 GB card little room for episodes of 16k tokens."""
    config, small = config_of(), gpus(1, mib=24_000)
    with pytest.raises(ConfigError, match=r"weights take 15,6.* 4 episodes of limits.tokens = 16000 need 9,000"):
        needs(config, place(config, small), QWEN3_8B, small)
    halves = config_of({"tensor_parallel": 2})
    fitting = needs(halves, place(halves, gpus(2, mib=24_000)), QWEN3_8B, gpus(2, mib=24_000))
    assert [need.gpu for need in fitting] == [0, 1]


def model_of(path, shape):
    """A model directory with these sizes, and no weights."""
    entries = {
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "intermediate_size": shape.intermediate,
        "vocab_size": shape.vocabulary,
        "tie_word_embeddings": shape.tied,
        "max_position_embeddings": shape.context,
    }
    path.mkdir(exist_ok=True)
    (path / "config.json").write_bytes(orjson.dumps(entries))
    return str(path)


@pytest.mark.parametrize(
    ("policy", "learner", "endpoints", "count", "placed"),
    [
        # What is named first; then endpoints, in the order of the file; then the policy.
        ({}, {"gpus": [0]}, {"sim": {}}, 4, (((2,),), {"sim": (1,)})),
        ({"servers": 2}, {"gpus": [0]}, {"sim": {"gpus": [1]}}, 4, (((2,), (3,)), {"sim": (1,)})),
        ({"gpus": [0]}, {"gpus": [1]}, {"a": {"tensor_parallel": 2}, "b": {}}, 5, (((0,),), {"a": (2, 3), "b": (4,)})),
        # The policy shares with the learner rather than with an endpoint.
        ({}, {"gpus": [0]}, {"sim": {}}, 2, (((0,),), {"sim": (1,)})),
        # One that computes on the CPU takes none.
        ({}, {}, {"sim": {"device": "cpu"}}, 1, (((0,),), {})),
        # Two share where both say how much they fill.
        (
            {"gpus": [0], "memory_fraction": 0.4},
            {},
            {"sim": {"gpus": [0], "memory_fraction": 0.4}},
            1,
            (((0,),), {"sim": (0,)}),
        ),
    ],
)
def test_endpoints_get_gpus_of_their_own(policy, learner, endpoints, count, placed):
    """The rule of the module's docstring."""
    placement = place(config_of(policy, learner, **endpoints), gpus(count))
    assert (placement.servers, placement.endpoints) == placed


def test_an_endpoint_needs_no_policy_on_gpus():
    """The embedded server computes on the CPU, and its tables have no GPUs."""
    config = config_of(None, {"gpus": [0]}, sim={})
    embedded = config.model_copy(update={"policy": config.policy.model_copy(update={"launch": "embedded"})})
    placement = place(embedded, gpus(2))
    assert (placement.servers, placement.endpoints) == ((), {"sim": (1,)})


@pytest.mark.parametrize(
    ("policy", "learner", "sim", "count", "sentence"),
    [
        ({}, {}, {"gpus": [4]}, 2, r"endpoints.sim.gpus: there is no GPU 4 here; nvidia-smi shows \[0, 1\]"),
        ({}, {}, {"gpus": [1, 1]}, 2, r"endpoints.sim.gpus = \[1, 1\] names a GPU twice"),
        ({}, {}, {"device": "cuda"}, 0, r"endpoints.sim needs 1 GPUs .* and 0 are left for it \(no key names any\)"),
        (
            {"gpus": [0]},
            {"gpus": [1]},
            {},
            2,
            r"0 are left for it \(policy.gpus = \[0\], learner.gpus = \[1\]\): .*endpoints.sim.device = 'cpu'",
        ),
        ({"gpus": [0]}, {}, {"gpus": [1, 2]}, 3, r"names 2 GPUs, and endpoints.sim.tensor_parallel = 1 of them"),
        (
            {"gpus": [0], "memory_fraction": 0.5},
            {},
            {"gpus": [0]},
            1,
            "GPU 0 serves policy and endpoints.sim: set endpoints.sim.memory_fraction, so that",
        ),
        ({}, {}, {}, 1, "policy.servers = 1 .* need 1 GPUs, and 0 can serve"),
    ],
)
def test_gpus_that_an_endpoint_cannot_have_are_named(policy, learner, sim, count, sentence):
    """With the key to change."""
    if sim.get("device") == "cuda":
        policy = {"device": "cpu"}
    with pytest.raises(ConfigError, match=sentence):
        place(config_of(policy, learner, sim=sim), gpus(count))


def test_two_endpoints_on_one_gpu_say_how_much_they_fill():
    """Each of them."""
    both = {"gpus": [1]}
    with pytest.raises(ConfigError, match=r"GPU 1 serves endpoints.a and endpoints.b: set endpoints.a.memory_fraction"):
        place(config_of({"gpus": [0]}, a=both, b=both), gpus(2))


def test_an_endpoint_is_counted_with_its_own_model(tmp_path):
    """Weights and cache of an 8B beside a policy of 4B; the weights as they lie, if they do."""
    config = config_of(sim={"model": model_of(tmp_path / "sim", QWEN3_8B)})
    used = {need.who: need for need in needs(config, place(config, gpus(2)), QWEN3_4B, gpus(2))}
    sim = used["endpoint-sim"]
    assert (sim.gpu, used["server-0"].gpu) == (0, 1)
    assert list(sim.parts) == ["weights", "KV cache", "CUDA"]
    assert sim.parts["weights"] * 2**20 == 2 * QWEN3_8B.parameters
    assert sim.cached_tokens == pytest.approx(sim.parts["KV cache"] * 2**20 / 147_456)
    with (tmp_path / "sim" / "model.safetensors").open("wb") as file:
        file.truncate(9 * 2**30)
    quantized = needs(config, place(config, gpus(2)), QWEN3_4B, gpus(2))[-1]
    assert quantized.parts["weights"] == 9 * 1024


def test_a_learner_leaves_an_endpoint_its_share(tmp_path):
    """As it does for the policy's server."""
    model = model_of(tmp_path / "sim", QWEN3_4B)
    config = config_of({"gpus": [1]}, {"gpus": [0]}, 4_000, sim={"gpus": [0], "model": model})
    share = memory_share(config, config.endpoints["sim"], (0,), QWEN3_4B, gpus(2))
    used = [need for need in needs(config, place(config, gpus(2)), QWEN3_4B, gpus(2)) if need.gpu == 0]
    assert 0.3 < share < 0.7
    assert [need.who for need in used] == ["learner", "endpoint-sim"]
    assert sum(need.mib for need in used) <= 81_559


def test_an_endpoint_that_cannot_hold_one_call_is_refused(tmp_path):
    """With the numbers; a context is never longer than the model's."""
    model = model_of(tmp_path / "sim", QWEN3_8B)
    config = config_of({"device": "cpu"}, sim={"model": model, "context_tokens": 32_000})
    small = gpus(1, mib=23_000)
    with pytest.raises(
        ConfigError,
        match=r"endpoint-sim on GPU 0: of the 19,550 MiB .* weights take 15,6.* one call of 32,000 tokens "
        r"\(endpoints.sim.context_tokens\) needs 4,500. Lower endpoints.sim.context_tokens",
    ):
        needs(config, place(config, small), QWEN3_4B, small)
    beyond = config_of({"device": "cpu"}, sim={"model": model, "context_tokens": 99_000})
    with pytest.raises(ConfigError, match="one call of 40,960 tokens"):
        needs(beyond, place(beyond, small), QWEN3_4B, small)


def test_servers_that_fill_a_gpu_together_are_refused(tmp_path):
    """Each with its parts, and which fraction to lower."""
    model = model_of(tmp_path / "sim", QWEN3_4B)
    config = config_of({"memory_fraction": 0.6, "gpus": [0]}, sim={"model": model, "gpus": [0], "memory_fraction": 0.5})
    with pytest.raises(ConfigError, match=r"server-0 .*; endpoint-sim .*; lower endpoints.sim.memory_fraction$"):
        needs(config, place(config, gpus(1)), QWEN3_4B, gpus(1))
