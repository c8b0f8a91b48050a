"""How fast is the embedded server, against batched `model.generate` of transformers?

Both arms sample 64 new tokens at temperature 1 after 64 and 256 random prompts of 128 tokens, on one thread, in
processes of their own with the same allocator settings. The figure is generated tokens per second of CPU time of the
process, the best of four passes (the machine may be shared). The server's includes HTTP, JSON and log-probabilities;
`generate` gives neither.

    python -m bench.embedded            # the packaged tiny model, or a random one of its size
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import orjson
import psutil

from engine.modeldir.shape import DecoderShape

ROOT = Path(__file__).resolve().parent.parent
TINY = ROOT / "engine" / "assets" / "tiny-model"
PROMPT, NEW = 128, 64
PASSES = 4
GOAL_RATIO = 0.8


def make_random_model(path: Path) -> Path:
    """A random model of the packaged tiny model's size, for a checkout without it."""
    import transformers  # noqa: PLC0415
    from tokenizers import Tokenizer, models  # noqa: PLC0415

    config = transformers.Qwen3Config(
        vocab_size=900,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=448,
        max_position_embeddings=32768,
        tie_word_embeddings=True,
        eos_token_id=1,
    )
    transformers.Qwen3ForCausalLM(config).save_pretrained(path)
    Tokenizer(models.WordLevel({f"t{i}": i for i in range(900)}, unk_token="t0")).save(str(path / "tokenizer.json"))
    return path


def prompts(count: int, vocabulary: int) -> list[list[int]]:
    """Random prompts: no two share a prefix."""
    dice = random.Random(count)
    return [[dice.randrange(vocabulary) for _ in range(PROMPT)] for _ in range(count)]


def run_generate(model: Path, counts: list[int]) -> dict[int, float]:
    """Tokens per CPU second of `generate`, measured in this process (the child of `measure_generate`)."""
    import torch  # noqa: PLC0415
    import transformers  # noqa: PLC0415

    from engine.embedded.allocator import keep_memory  # noqa: PLC0415

    keep_memory()
    torch.set_num_threads(1)
    decoder: Any = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    rates: dict[int, float] = {}
    for count in counts:
        ids = torch.tensor(prompts(count, decoder.config.vocab_size))
        settings = {"do_sample": True, "top_k": 0, "top_p": 1.0, "min_new_tokens": NEW, "max_new_tokens": NEW}
        for _ in range(PASSES):
            started = time.process_time()
            out = decoder.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **settings)
            rate = (out.shape[1] - PROMPT) * count / (time.process_time() - started)
            rates[count] = max(rate, rates.get(count, 0.0))
    return rates


def measure_generate(model: Path, counts: list[int]) -> dict[int, float]:
    """`run_generate` in a process of its own."""
    command = [sys.executable, "-m", "bench.embedded", "--generate", str(model), *map(str, counts)]
    done = subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    return {int(k): v for k, v in json.loads(done.stdout.splitlines()[-1]).items()}


async def _burst(url: str, ids: list[list[int]], adapters: list[str | None]) -> int:
    """Send all prompts at once as requests of their own; returns the generated tokens."""
    generated = 0

    async def one(session: aiohttp.ClientSession, prompt: list[int], adapter: str | None) -> None:
        nonlocal generated
        sampling = {"max_new_tokens": NEW, "ignore_eos": True}
        body = {"input_ids": prompt, "sampling_params": sampling, "return_logprob": True, "lora_path": adapter}
        async with session.post(f"{url}/generate", data=orjson.dumps(body)) as response:
            reply = orjson.loads(await response.read())
            assert response.status == 200, reply
            generated += len(reply["meta_info"]["output_token_logprobs"])

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session, anyio.create_task_group() as tg:
        for i, prompt in enumerate(ids):
            tg.start_soon(one, session, prompt, adapters[i % len(adapters)])
    return generated


def measure_server(model: Path, counts: list[int], adapters: list[Path]) -> dict[int, dict[str, float]]:
    """Start a server and send bursts: tokens per CPU second of its process, and per second of wall time."""
    command = [sys.executable, "-m", "engine.embedded", "--model", str(model), "--parent-pid", str(os.getpid())]
    names: list[str | None] = [path.name for path in adapters] or [None]
    command += ["--lora-paths", *(f"{p.name}={p}" for p in adapters)] if adapters else []
    rates: dict[int, dict[str, float]] = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            url = json.loads(process.stdout.readline())["url"]
            vocabulary = DecoderShape.read(model).vocabulary
            clock = psutil.Process(process.pid)
            for count in counts:
                for _ in range(PASSES):
                    before, started = sum(clock.cpu_times()[:2]), time.monotonic()
                    # New first tokens, so that the second burst finds nothing in the prefix cache.
                    ids = [[random.randrange(vocabulary), *p[1:]] for p in prompts(count, vocabulary)]
                    tokens = anyio.run(_burst, url, ids, names)
                    cpu, wall = sum(clock.cpu_times()[:2]) - before, time.monotonic() - started
                    best = rates.get(count, {"tokens_per_cpu_s": 0.0, "tokens_per_s": 0.0})
                    rates[count] = {
                        "tokens_per_cpu_s": max(best["tokens_per_cpu_s"], tokens / cpu),
                        "tokens_per_s": max(best["tokens_per_s"], tokens / wall),
                    }
        finally:
            process.terminate()
    return rates


def main(argv: list[str]) -> int:
    """Measure both arms, print a table, write `bench/results/embedded.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="model directory")
    parser.add_argument("--adapters", type=Path, nargs="*", default=[], help="adapters that the requests cycle through")
    parser.add_argument("--generate", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.generate:
        rates = run_generate(Path(arguments.generate[0]), [int(n) for n in arguments.generate[1:]])
        print(json.dumps(rates))
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        model = arguments.model or (TINY if (TINY / "config.json").exists() else make_random_model(Path(scratch)))
        return _report(model, arguments.adapters)


def _report(model: Path, adapters: list[Path]) -> int:
    counts = [64, 256]
    server, plain = measure_server(model, counts, adapters), measure_generate(model, counts)
    print(f"{'prompts':>8} {'server tok/cpu-s':>17} {'generate tok/cpu-s':>19} {'ratio':>6} {'server tok/s':>13}")
    measured: dict[str, float] = {}
    for count in counts:
        ours, theirs = server[count]["tokens_per_cpu_s"], plain[count]
        wall = server[count]["tokens_per_s"]
        print(f"{count:>8} {ours:>17.0f} {theirs:>19.0f} {ours / theirs:>6.2f} {wall:>13.0f}")
        measured |= {f"server_{count}_tokens_per_cpu_s": ours, f"generate_{count}_tokens_per_cpu_s": theirs}
        measured[f"ratio_{count}"] = ours / theirs
    goal = {f"ratio_{count}": GOAL_RATIO for count in counts}
    met = {key: measured[key] >= value for key, value in goal.items()}
    results = ROOT / "bench" / "results"
    results.mkdir(exist_ok=True)
    (results / "embedded.json").write_text(
        json.dumps({"measured": measured, "goal": goal, "met": met}, indent=1) + "\n"
    )
    return 0 if all(met.values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
