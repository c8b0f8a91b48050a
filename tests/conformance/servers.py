"""The two servers of the conformance suite, started on the same files.

The SGLang half is the real, unmodified server, in the environment that `synth-engine install-sglang --cpu` makes.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import orjson
from safetensors.torch import load_file, save_file

from engine.config.load import validate
from engine.rundir.layout import RunDir
from engine.serving.served import served
from engine.serving.sglang_commands import SPARE_TOKENS
from tests.conformance.differences import EMBEDDED, SGLANG, Differences
from tests.parts.children import python
from tests.parts.embedded_models import make_adapter, make_model
from tests.parts.places import ROOT

CONTEXT, KV_TOKENS, RUNNING, SLOTS, RANK = 2048, 60_000, 16, 4, 8
START, END, ANSWER_END = 256, 257, 259
"""Tokens of the model: two special ones, the second ends a turn, and one of nine ordinary characters."""
_CHAT_TEMPLATE = (
    "{%- for message in messages -%}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """What both servers read: a model and, under `adapters`, v00001 to v00006 and `wide` (of too large a rank)."""

    model: Path
    adapters: Path
    outside: Path
    """An adapter that is not below `adapters`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A running server."""

    url: str
    files: Files
    differs: Differences
    """What it does in its own way."""


def make_files(root: Path) -> Files:
    """A random model of 0.2 M parameters whose greedy text is ASCII, and random adapters."""
    sizes = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "max_position_embeddings": CONTEXT}
    model = make_model(root / "model", **sizes)
    weights = load_file(model / "model.safetensors")
    # Logits of 0 are never the largest: half characters, which each server shows in its own way, are not drawn.
    weights["lm_head.weight"][94:256] = 0
    weights["lm_head.weight"][260:] = 0
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "chat_template": _CHAT_TEMPLATE}
    (model / "tokenizer_config.json").write_bytes(orjson.dumps(names))
    for version in range(1, 7):
        make_adapter(root / "adapters" / f"v{version:05d}", model, seed=version)
    make_adapter(root / "adapters" / "wide", model, seed=9, rank=4 * RANK)
    return Files(model=model, adapters=root / "adapters", outside=make_adapter(root / "outside", model, seed=10))


@contextmanager
def embedded(files: Files, *more: str) -> Iterator[Subject]:
    """The embedded server for the time of the block, with `more` on its command line."""
    flags = ("--adapter-root", str(files.adapters), "--max-loras", str(SLOTS), "--max-lora-rank", str(RANK))
    size = ("--max-total-tokens", str(KV_TOKENS), "--max-running", str(RUNNING), "--served-name", "tiny")
    command = ("-m", "engine.embedded", "--model", files.model, *flags, *size, *more)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with python(*command, stdout=subprocess.PIPE, cwd=ROOT, env=environment) as process:
        yield Subject(url=json.loads(process.stdout.readline())["url"], files=files, differs=EMBEDDED)
        process.terminate()
        assert process.wait() == 0


@contextmanager
def sglang(files: Files) -> Iterator[Subject]:
    """The real SGLang on the CPU for the time of the block, started as a run starts it."""
    config = validate(
        {
            "model": {"path": str(files.model)},
            "policy": {
                "launch": "sglang",
                "device": "cpu",
                "kv_tokens": KV_TOKENS,
                "max_running": RUNNING,
                "start_s": 180.0,
                "flags": f"--served-model-name tiny --max-loras-per-batch {SLOTS} --max-loaded-loras {SLOTS}",
            },
            "limits": {"tokens": CONTEXT - SPARE_TOKENS},
            "learner": {"rank": RANK},
        },
        {},
    )
    with served(RunDir(files.outside), config) as [url]:
        yield Subject(url=url, files=files, differs=SGLANG)
