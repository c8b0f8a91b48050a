"""`synth-engine serve`: the embedded policy server in the foreground, for any model and adapters."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from engine.processes.child import PYTHON, torch_environment
from engine.serving.models import find_model


@click.command()
@click.option(
    "--model",
    default="tiny",
    show_default=True,
    metavar="MODEL",
    help="`tiny` (shipped), a model directory, or a model of the Hugging Face hub, such as Qwen/Qwen3-0.6B.",
)
@click.option(
    "--adapter", "adapters", multiple=True, metavar="NAME=DIR", help="An adapter to load at start; repeatable."
)
@click.option("--adapter-root", metavar="DIR", help="Over HTTP, adapters are loaded from below this directory only.")
@click.option("--threads", default=1, show_default=True, help="Torch threads.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=30000, show_default=True, help="Port; 0 picks a free one.")
@click.option(
    "--max-total-tokens",
    type=click.IntRange(1),
    help="Tokens of KV cache: what all running requests, prompt and output, may hold together, and what stays cached "
    "for the next ones. A longer request is refused. Default: a quarter of the free memory, at most 262,144 tokens.",
)
@click.option(
    "--max-running",
    default=256,
    show_default=True,
    type=click.IntRange(1),
    help="Requests that decode together; more of them wait. Each takes its share of the KV cache.",
)
@click.option(
    "--max-lora-rank",
    default=64,
    show_default=True,
    type=click.IntRange(1),
    help="Adapters of a larger rank are refused.",
)
def command(
    model: str, adapters: tuple[str, ...], adapter_root: str | None, threads: int, **options: str | int | None
) -> None:
    """Serve a model and adapters on the CPU over SGLang's native HTTP API.

    Prints one JSON line with its URL when it is ready; Ctrl-C ends it. Select an adapter per request with "lora_path".
    """
    argv = [*PYTHON, "-m", "engine.embedded", "--model", str(find_model(model).path)]
    argv += ["--threads", str(threads), "--max-loras", str(max(8, len(adapters)))]
    for name, value in options.items():
        argv += [] if value is None else ["--" + name.replace("_", "-"), str(value)]
    if adapters:
        argv += ["--lora-paths", *adapters]
    if adapter_root:
        argv += ["--adapter-root", str(Path(adapter_root).resolve())]
    sys.stdout.flush()
    # The server takes this process's place: signals and the exit code are its own.
    os.execve(sys.executable, argv, torch_environment(threads))  # noqa: S606 - no shell, our own module
