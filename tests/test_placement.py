"""engine.serving.placement and shape: who gets which GPU, and whether it fits."""

import orjson
import pytest

from engine.config.load import validate
from engine.errors import ConfigError
from engine.models import find_model
from engine.serving.gpus import Gpu
from engine.serving.placement import memory_share, needs, place
from engine.serving.shape import ModelShape

QWEN3_4B = ModelShape(
    layers=36, hidden=2560, query=4096, kv=1024, intermediate=9728, vocabulary=151_936, tied=True, context=40_960
)
QWEN3_8B = ModelShape(
    layers=36, hidden=4096, query=4096, kv=1024, intermediate=12_288, vocabulary=151_936, tied=False, context=40_960
)


def gpus(count, mib=81_559):
    """That many equal GPUs."""
    return [Gpu(index=index, name="H100", total_mib=mib, free_mib=mib) for index in range(count)]


def config_of(policy=None, learner=None, tokens=16_000):
    """A run on GPUs with episodes of 16k tokens."""
    return validate(
        {
            "policy": {"launch": "sglang", "device": "cuda", **(policy or {})},
            "learner": {"micro_batch_tokens": tokens, **(learner or {})},
            "limits": {"tokens": tokens},
        },
        {},
    )


def test_sizes_are_those_of_the_models():
    """LEARNER.md sections 3 and 4 have them, from the published configurations."""
    assert (QWEN3_4B.lora_parameters(1), QWEN3_8B.lora_parameters(1)) == (2_064_384, 2_727_936)
    assert QWEN3_4B.parameters == pytest.approx(4.02e9, rel=0.01)
    assert QWEN3_8B.parameters == pytest.approx(8.19e9, rel=0.01)
    assert QWEN3_8B.activations(recompute=False) * 2 * 16_384 / 2**30 == pytest.approx(99, abs=1)
    assert QWEN3_8B.activations(recompute=True) * 2 * 16_384 / 2**30 == pytest.approx(4.5 + 2.8, abs=0.2)
    assert QWEN3_8B.kv_values * 2 == 147_456


def test_a_shape_is_read_from_a_model_directory():
    """The shipped one: 1.1 M parameters."""
    shape = ModelShape.read(find_model("tiny").path)
    assert shape.layers == 4
    assert 1_000_000 < shape.parameters < 1_200_000


def test_a_configuration_without_sizes_is_named(tmp_path):
    """The entry that is missing is told."""
    (tmp_path / "config.json").write_bytes(orjson.dumps({"num_attention_heads": 2}))
    with pytest.raises(ConfigError, match="no usable sizes of a decoder in it: KeyError\\('hidden_size'\\)"):
        ModelShape.read(tmp_path)


def test_servers_get_what_does_not_train():
    """Six of eight GPUs, two for each server."""
    placement = place(config_of({"servers": 3, "tensor_parallel": 2}, {"gpus": [0, 1]}), gpus(8))
    assert placement.learner == (0, 1)
    assert placement.servers == ((2, 3), (4, 5), (6, 7))
    assert placement.shared == frozenset()


def test_one_gpu_is_shared():
    """And the server is told what the learner leaves of it."""
    config = config_of(learner={"gpus": [0]}, tokens=4_000)
    placement = place(config, gpus(1))
    assert placement.shared == {0}
    share = memory_share(config, placement, QWEN3_4B, gpus(1))
    used = needs(config, placement, QWEN3_4B, gpus(1))
    assert {need.who for need in used} == {"learner", "server-0"}
    assert 0.9 * 81_559 < sum(need.mib for need in used) <= 81_559
    assert 0.3 < share < 0.7


def test_on_a_gpu_of_its_own_sglang_chooses():
    """Unless the share is set."""
    placement = place(config_of(), gpus(1))
    assert memory_share(config_of(), placement, QWEN3_4B, gpus(1)) is None
    assert memory_share(config_of({"memory_fraction": 0.5}), placement, QWEN3_4B, gpus(1)) == 0.5


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
