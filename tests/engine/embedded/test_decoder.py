"""The decoder against transformers and peft, and what it refuses."""

from __future__ import annotations

import random
from pathlib import Path

import orjson
import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.embedded import lora
from engine.embedded.decoder import Decoder
from engine.embedded.kv import KvRow
from engine.embedded.lora import AdapterError, read_adapter
from engine.embedded.plan import Work, plan_step
from engine.errors import ConfigError
from tests.parts.embedded_models import LLAMA3_ROPE, make_adapter, make_model, reference_logprobs

# peft reads an attribute that transformers deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

ARCHITECTURES = {
    "qwen3": ("Qwen3", {"tie_word_embeddings": True}),
    "qwen2": ("Qwen2", {}),
    "llama": ("Llama", {"rope_parameters": LLAMA3_ROPE}),
    "llama-biased": ("Llama", {"attention_bias": True, "tie_word_embeddings": True}),
}


def score_in_one_batch(decoder: Decoder, rows: list[tuple[int, list[int]]], dice: random.Random) -> list[list[float]]:
    """Log-probabilities of ids[1:] of (load id, ids) rows, fed together in random pieces while rows come and go."""
    pool, scores = decoder.new_pool(1 << 20), [[] for _ in rows]
    open_rows: dict[int, KvRow] = {}
    with torch.inference_mode():
        while any(len(scores[i]) < len(ids) - 1 for i, (_, ids) in enumerate(rows)):
            works, running = [], []
            for i, (load_id, ids) in enumerate(rows):
                row = open_rows.setdefault(i, pool.open(1)) if i not in open_rows else open_rows[i]
                left = len(ids) - 1 - row.length
                if left == 0:
                    continue
                count = min(left, dice.choice([1, 1, 3, 20]))
                pool.grow(row, row.length + count)
                works.append(Work(row, load_id, ids[row.length : row.length + count]))
                running.append(i)
            plan = plan_step(works, pool.active())
            hidden = decoder.forward(plan, torch.arange(len(plan.tokens)))
            logprobs = decoder.logits(hidden).log_softmax(-1)
            for i, work, flat in zip(running, works, plan.starts, strict=True):
                following = rows[i][1][work.row.length + 1 : work.row.length + 1 + len(work.tokens)]
                scores[i].extend(logprobs[flat + j, token].item() for j, token in enumerate(following))
                work.row.length += len(work.tokens)
                if len(scores[i]) == len(rows[i][1]) - 1:
                    pool.close(work.row)
    return scores


@pytest.mark.parametrize("merged", [True, False], ids=["merged", "low-rank"])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_logprobs_agree_with_transformers_and_peft(kind, merged, tmp_path: Path, monkeypatch):
    """Base and two adapters in one batch, prompts in pieces, rows of many lengths: within 1e-4 of the reference."""
    monkeypatch.setattr(lora, "MERGE_LIMIT_BYTES", lora.MERGE_LIMIT_BYTES if merged else 0)
    architecture, changes = ARCHITECTURES[kind]
    model = make_model(tmp_path / "model", architecture, **changes)
    full = make_adapter(tmp_path / "full", model, seed=1)
    partial = make_adapter(tmp_path / "partial", model, seed=2, rank=8, modules=("q", "v", "up"))
    decoder = Decoder(model)
    for load_id, path in ((1, full), (2, partial)):
        decoder.install(load_id, read_adapter(path, decoder.shape, decoder.weights, 8))
    dice = random.Random(0)
    rows = [(i // 3, [dice.randrange(300) for _ in range(20 + 23 * i)]) for i in range(9)]
    scores = score_in_one_batch(decoder, rows, dice)
    for (load_id, ids), score in zip(rows, scores, strict=True):
        expected = reference_logprobs(model, ids, {0: None, 1: full, 2: partial}[load_id])
        assert score == pytest.approx(expected, abs=1e-4)


def test_an_adapter_changes_the_distribution(tmp_path: Path):
    """Else the agreement above would hold for a decoder that ignores adapters."""
    model = make_model(tmp_path / "model")
    adapter = make_adapter(tmp_path / "adapter", model, seed=1)
    decoder = Decoder(model)
    decoder.install(1, read_adapter(adapter, decoder.shape, decoder.weights, 8))
    ids = list(range(40))
    base, adapted = score_in_one_batch(decoder, [(0, ids), (1, ids)], random.Random(1))
    assert sum(abs(a - b) for a, b in zip(base, adapted, strict=True)) / len(base) > 0.05
    decoder.remove(1)
    (removed,) = score_in_one_batch(decoder, [(1, ids)], random.Random(1))
    assert removed == pytest.approx(base, abs=1e-5)


def test_sharded_weights_load(tmp_path: Path):
    """A model in several safetensors files gives the same numbers as in one."""
    model = make_model(tmp_path / "model", shard_size="40KB")
    assert not (model / "model.safetensors").exists()
    (score,) = score_in_one_batch(Decoder(model), [(0, list(range(30)))], random.Random(2))
    assert score == pytest.approx(reference_logprobs(model, list(range(30))), abs=1e-4)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"architectures": ["MistralForCausalLM"]}, "MistralForCausalLM"),
        ({"use_sliding_window": True}, "sliding-window"),
        ({"layer_types": ["sliding_attention", "full_attention"]}, "sliding-window"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "yarn"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"quantization_config": {"bits": 4}}, "quantized"),
    ],
)
def test_other_decoders_are_refused_by_name(change, named, tmp_path: Path):
    """A model that would be computed wrongly does not load, and the message names the reason."""
    model = make_model(tmp_path / "model")
    config = orjson.loads((model / "config.json").read_bytes()) | change
    (model / "config.json").write_bytes(orjson.dumps(config))
    with pytest.raises(ConfigError, match=named):
        Decoder(model)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"r": 4, "use_rslora": True}, "use_rslora"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias"),
        ({"layers_to_transform": 0}, "layers_to_transform"),
        ({"layers_to_transform": [1]}, "layers_to_transform"),
        ({"target_modules": ["lm_head"]}, "lm_head"),
        ({"target_modules": [["q_proj"]]}, "q_proj"),
        ({"target_modules": []}, "target_modules"),
        ({"target_modules": "q_p.*"}, "q_p"),
        ({"target_modules": ["q_proj"]}, r"layers.0.mlp.down_proj.lora_A.weight belongs to no target module"),
        ({"r": 5}, "lora_[AB]"),
        ({"r": 99}, "99"),
    ],
)
def test_adapters_that_do_not_fit_are_refused(change, named, tmp_path: Path):
    """The reason is in the message, and nothing is half loaded."""
    model = make_model(tmp_path / "model")
    path = make_adapter(tmp_path / "adapter", model, seed=1)
    config = orjson.loads((path / "adapter_config.json").read_bytes()) | change
    (path / "adapter_config.json").write_bytes(orjson.dumps(config))
    decoder = Decoder(model)
    with pytest.raises(AdapterError, match=named):
        read_adapter(path, decoder.shape, decoder.weights, 16)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("empty", "layers.0.mlp.down_proj.lora_A.weight is missing"),
        ("partial", "layers.1.self_attn.v_proj.lora_B.weight is missing"),
        ("shallow", "layers.1.mlp.down_proj.lora_A.weight is missing"),
        ("deep", "layers.2.mlp.down_proj.lora_A.weight belongs to no target module"),
    ],
)
def test_an_adapter_file_holds_exactly_what_its_configuration_says(change, named, tmp_path: Path):
    """Where a tensor is missing the base would answer under the adapter's name: the first is named instead."""
    model = make_model(tmp_path / "model")
    path = make_adapter(tmp_path / "adapter", model, seed=1)
    file = path / "adapter_model.safetensors"
    tensors = load_file(file)
    if change == "empty":
        tensors = {}
    elif change == "partial":
        del tensors["base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"]
    elif change == "shallow":
        tensors = {name: tensor for name, tensor in tensors.items() if ".layers.1." not in name}
    else:
        tensors |= {n.replace(".layers.1.", ".layers.2."): t.clone() for n, t in tensors.items() if ".layers.1." in n}
    save_file(tensors, file)
    decoder = Decoder(model)
    with pytest.raises(AdapterError, match=named):
        read_adapter(path, decoder.shape, decoder.weights, 16)


def test_all_linear_means_all_modules(tmp_path: Path):
    """The word that peft has for every projection."""
    model = make_model(tmp_path / "model")
    path = make_adapter(tmp_path / "adapter", model, seed=1)
    config = orjson.loads((path / "adapter_config.json").read_bytes()) | {"target_modules": "all-linear"}
    (path / "adapter_config.json").write_bytes(orjson.dumps(config))
    decoder = Decoder(model)
    assert len(read_adapter(path, decoder.shape, decoder.weights, 16).changes) == 2
