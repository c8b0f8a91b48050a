"""The two servers of the conformance suite, started on the same files.

The SGLang half runs the real, unmodified server in an environment of its own, whose interpreter `--sglang` names.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError

import orjson
from safetensors.torch import load_file, save_file

from tests.conformance.differences import EMBEDDED, SGLANG, Differences
from tests.embedded_models import make_adapter, make_model

ROOT = Path(__file__).resolve().parents[2]
STAND_INS = ROOT / "engine" / "assets" / "sglang_cpu"
CONTEXT, KV_TOKENS, RUNNING, SLOTS, RANK = 2048, 60_000, 16, 4, 8
START, END, ANSWER_END = 256, 257, 259
"""Tokens of the model: two special ones, the second ends a turn, and one of nine ordinary characters."""
_START_S = 180.0
_POLL_S = 0.2
_STOP_S = 10.0
_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
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


def start_embedded(model: Path, *arguments: str) -> tuple[subprocess.Popen[bytes], dict[str, Any]]:
    """Start the embedded server as a user would; returns once it printed its line."""
    command = [sys.executable, "-m", "engine.embedded", "--model", str(model), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, env=environment)
    assert process.stdout is not None
    return process, json.loads(process.stdout.readline())


@contextmanager
def embedded(files: Files, *more: str) -> Iterator[Subject]:
    """The embedded server for the time of the block, with `more` on its command line."""
    flags = ("--adapter-root", str(files.adapters), "--max-loras", str(SLOTS), "--max-lora-rank", str(RANK))
    size = ("--max-total-tokens", str(KV_TOKENS), "--max-running", str(RUNNING), "--served-name", "tiny")
    process, line = start_embedded(files.model, *flags, *size, *more)
    with process:
        yield Subject(url=line["url"], files=files, differs=EMBEDDED)
        process.terminate()
    assert process.returncode == 0


def _sglang_command(python: str, model: Path, port: int) -> list[str]:
    flags = {
        "--model-path": str(model),
        "--served-model-name": "tiny",
        "--host": "127.0.0.1",
        "--port": str(port),
        "--device": "cpu",
        "--dtype": "float32",
        "--attention-backend": "torch_native",
        "--max-total-tokens": str(KV_TOKENS),
        "--max-running-requests": str(RUNNING),
        "--log-level-http": "warning",
        "--lora-backend": "torch_native",
        "--max-lora-rank": str(RANK),
        "--max-loras-per-batch": str(SLOTS),
        "--max-loaded-loras": str(SLOTS),
    }
    switches = ("--disable-overlap-schedule", "--sleep-on-idle", "--enable-lora")
    words = [word for flag in flags.items() for word in flag]
    return [python, "-m", "sglang.launch_server", *words, *switches, "--lora-target-modules", *_PROJECTIONS]


@contextmanager
def sglang(files: Files, python: str) -> Iterator[Subject]:
    """SGLang on the CPU for the time of the block; the stand-ins are on its path, this project is not."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "SGLANG_USE_CPU_ENGINE": "1"}
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    environment = {**os.environ, **offline, **threads, "PYTHONPATH": str(STAND_INS)}
    log, command = files.model.parent / "sglang.log", _sglang_command(python, files.model, port)
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command, stdout=output, stderr=output, cwd=files.outside, env=environment, start_new_session=True
        ) as process,
    ):
        try:
            _until_ready(f"http://127.0.0.1:{port}", process, log)
            yield Subject(url=f"http://127.0.0.1:{port}", files=files, differs=SGLANG)
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_S)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(URLError, ConnectionError, TimeoutError), urllib.request.urlopen(f"{url}/ready", timeout=5):
            return
        time.sleep(_POLL_S)
    raise AssertionError(f"SGLang did not start (exit status {process.poll()}):\n{log.read_text()[-4000:]}")
