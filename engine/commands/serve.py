"""`synth-engine serve`: the embedded policy server in the foreground, for any model and adapters."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from engine.manifest import model_directory
from engine.processes import torch_environment


@click.command()
@click.option(
    "--model", default="tiny", show_default=True, metavar="DIR", help="`tiny` (shipped), or a model directory."
)
@click.option(
    "--adapter", "adapters", multiple=True, metavar="NAME=DIR", help="An adapter to load at start; repeatable."
)
@click.option("--adapter-root", metavar="DIR", help="Over HTTP, adapters are loaded from below this directory only.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=30000, show_default=True, help="Port; 0 picks a free one.")
@click.option("--threads", default=1, show_default=True, help="Torch threads.")
def command(
    model: str, adapters: tuple[str, ...], adapter_root: str | None, host: str, port: int, threads: int
) -> None:
    """Serve a model and adapters on the CPU over SGLang's native HTTP API.

    Prints one JSON line with its URL when it is ready; Ctrl-C ends it. Select an adapter per request with "lora_path".
    """
    argv = [sys.executable, "-m", "engine.embedded", "--model", str(model_directory(model))]
    argv += ["--host", host, "--port", str(port), "--threads", str(threads), "--max-loras", str(max(8, len(adapters)))]
    if adapters:
        argv += ["--lora-paths", *adapters]
    if adapter_root:
        argv += ["--adapter-root", str(Path(adapter_root).resolve())]
    sys.stdout.flush()
    # The server takes this process's place: signals and the exit code are its own.
    os.execve(sys.executable, argv, torch_environment(threads))  # noqa: S606 - no shell, our own module
