"""engine.modeldir: one reader of a model's JSON files, one shape, one list of architectures, one of stop tokens."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from engine.errors import ConfigError
from engine.modeldir.files import read_object, stop_token_ids
from engine.modeldir.shape import DecoderShape, check_architecture
from engine.serving.models import find_model
from tests.parts.places import ROOT

CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 512,
    "max_position_embeddings": 256,
}


def model(directory: Path, **files: object) -> Path:
    """A directory of JSON files, given without their `.json`."""
    for name, value in files.items():
        (directory / f"{name}.json").write_bytes(orjson.dumps(value))
    return directory


def test_defaults_of_a_shape_are_those_of_hugging_face(tmp_path):
    """Heads of hidden / heads, as many key heads as heads, an untied head, norms with 1e-6."""
    shape = DecoderShape.read(model(tmp_path, config=CONFIG))
    assert (shape.head_dim, shape.kv_heads, shape.query, shape.kv) == (16, 4, 64, 64)
    assert (shape.tied, shape.norm_eps, shape.query_key_norm) == (False, 1e-6, True)
    assert shape.parameters == 2 * (4 * 64 * 64 + 3 * 64 * 128 + 2 * 64) + 2 * 512 * 64
    assert shape.lora_parameters(8) == 2 * 8 * (4 * 128 + 3 * 192)


def test_any_architecture_has_a_shape_and_only_ours_are_trained_or_served(tmp_path):
    """SGLang serves simulators of other families: their memory is planned, and the learner refuses them by name."""
    for architectures in (["MistralForCausalLM"], [], None):
        named = (architectures or ["unnamed"])[0]
        path = model(tmp_path, config={**CONFIG, "architectures": architectures})
        assert DecoderShape.read(path).architecture == named
        with pytest.raises(ConfigError, match=rf"{named} cannot be trained; these can: LlamaForCausalLM, "):
            check_architecture(path, "trained")


@pytest.mark.parametrize("entry", [{"use_sliding_window": True}, {"layer_types": ["sliding_attention"]}])
def test_windowed_attention_is_refused(tmp_path, entry):
    """The learner's attention and the embedded server's know full attention alone."""
    with pytest.raises(ConfigError, match="sliding-window attention cannot be served here"):
        check_architecture(model(tmp_path, config={**CONFIG, **entry}), "served here")


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "cannot be read"), (b"{", "not valid JSON"), (b"[]", "not a JSON object"), (b"\xff{}", "not valid JSON")],
)
def test_a_file_that_cannot_be_used_is_named_with_the_remedy(tmp_path, content, reason):
    """Missing, half written, of another kind, not UTF-8."""
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"config\.json: {reason}.*; (a model is|copy or download)"):
        read_object(path)


@pytest.mark.parametrize(
    ("files", "ids"),
    [
        ({}, ()),
        ({"config": {"eos_token_id": 2}}, (2,)),
        ({"generation_config": {"eos_token_id": [7, 2]}, "config": {"eos_token_id": 2}}, (7, 2)),
        ({"config": {"eos_token_id": None}, "tokenizer_config": {"eos_token": "</s>"}}, (5,)),
        ({"tokenizer_config": {"eos_token": {"content": "</s>"}}}, (5,)),
        ({"config": {"eos_token_id": 0}, "tokenizer_config": {"eos_token": "unknown"}}, (0,)),
    ],
)
def test_stop_tokens_are_those_of_all_three_files(tmp_path, files, ids):
    """Each once, in the order of the files; a token that the tokenizer lacks is none."""
    assert stop_token_ids(model(tmp_path, **files), {"</s>": 5}.get) == ids


@pytest.mark.parametrize("wrong", ["x", -1, [2, None], 1.5])
def test_a_stop_token_that_is_no_id_is_refused_by_name(tmp_path, wrong):
    """A server would wait for it for ever."""
    path = model(tmp_path, generation_config={"eos_token_id": wrong})
    with pytest.raises(ConfigError, match=rf"generation_config\.json: eos_token_id = {re.escape(repr(wrong))} must be"):
        stop_token_ids(path, {}.get)


def test_embedded_server_and_chat_format_stop_at_the_same_tokens():
    """Both ask this module: of the shipped model, the end of a turn."""
    script = (
        "from pathlib import Path; import sys; from engine.embedded.text import Text; "
        "from engine.chat.chat_format import ChatFormat; p = Path(sys.argv[1]); "
        "print(Text(p).eos_ids == set(ChatFormat.load(p).stop_token_ids) != set())"
    )
    argv = [sys.executable, "-c", script, str(find_model("tiny").path)]
    assert subprocess.run(argv, capture_output=True, text=True, check=True, cwd=ROOT).stdout == "True\n"


def test_reading_a_shape_loads_no_torch():
    """The memory plan and the learner's start use it long before a model is loaded."""
    script = "import sys, engine.modeldir.shape; print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    argv = [sys.executable, "-c", script]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, cwd=ROOT, env={**os.environ})
    assert done.stdout == "[]\n"
