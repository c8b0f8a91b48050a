"""SGLang as the policy server: where its environment is, and the command that starts it for a run.

SGLang pins torch and transformers to versions of its own, so it lives in a virtual environment of its own; the engine
knows it by that environment's interpreter, or by a command. Without a GPU the unmodified server runs on torch's native
operators, with the stand-ins of `engine/assets/sglang_cpu` in place of two CUDA-only packages.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

from engine.config import ASSETS, Config, child_environment, environment
from engine.errors import ConfigError
from engine.processes import Command, torch_environment
from engine.rundir import RunDir
from engine.serving.gpus import Gpu, gpus
from engine.serving.placement import memory_share, needs, place, without_gpu
from engine.serving.shape import ModelShape

VERSION = "0.5.23"
"""The release whose HTTP contract the client speaks, and which the conformance tests run against."""
STAND_INS = ASSETS / "sglang_cpu"
LORA_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""What the learner's adapters change (learner.model.TARGET_MODULES)."""
_CPU_TOKENS = 200_000
"""KV cache without a GPU; SGLang's own choice takes most of the memory and a minute to allocate (SGLANG_CPU.md)."""
SPARE_TOKENS = 16
"""Context beyond an episode's limit: SGLang keeps the last seven tokens for itself."""


def environment_directory(*, cpu: bool) -> Path:
    """Where `synth-engine install-sglang` puts the environment unless it is told otherwise."""
    home = environment("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(home) / "synth-engine" / f"sglang-{VERSION}-{'cpu' if cpu else 'cuda'}"


def interpreter(directory: Path) -> Path:
    """The Python of a virtual environment."""
    return directory / "bin" / "python"


def started_from(directory: Path) -> tuple[str, ...]:
    """The command of the server in a virtual environment."""
    return (str(interpreter(directory)), "-m", "sglang.launch_server")


def launcher(config: Config, *, cpu: bool) -> tuple[str, ...]:
    """The command that takes `sglang.launch_server`'s flags, with or without (`cpu`) GPUs.

    Raises ConfigError, with the remedy, if policy.sglang names nothing that can be started."""
    named = config.policy.sglang
    directory = environment_directory(cpu=cpu) if named == "auto" else Path(named)
    if interpreter(directory).exists():
        return started_from(directory)
    if named == "auto":
        flag = " --cpu" if cpu else ""
        raise ConfigError(
            f"SGLang is not installed in {directory}: run `synth-engine install-sglang{flag}`, "
            "or set policy.sglang to its virtual environment"
        )
    try:
        words = shlex.split(named)
    except ValueError as error:
        raise ConfigError(f"policy.sglang: {named!r} is no command: {error}") from error
    if not words or shutil.which(words[0]) is None:
        raise ConfigError(
            f"policy.sglang: {named!r} is neither a virtual environment (it has no bin/python) nor a command; "
            "`synth-engine install-sglang` makes the environment"
        )
    return tuple(words)


def server_environment(*, cpu: bool, threads: int) -> dict[str, str]:
    """The environment variables of a server."""
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    if not cpu:
        return child_environment(**offline)
    return {**torch_environment(threads), **offline, "SGLANG_USE_CPU_ENGINE": "1", "PYTHONPATH": str(STAND_INS)}


def server_commands(run: RunDir, config: Config, ports: Sequence[int]) -> list[Command]:
    """SGLang as the servers of a run, one on each port.

    Raises ConfigError if it is not installed, or the GPUs are not there or too small."""
    here, shape = gpus(), ModelShape.read(Path(config.model.path))
    cpu = without_gpu(config, here)
    start, flags = launcher(config, cpu=cpu), _flags(config, shape)
    environment = server_environment(cpu=cpu, threads=config.policy.threads)
    places: list[tuple[list[str], dict[str, str]]] = (
        [(_cpu_flags(config), {})] * len(ports) if cpu else _on_gpus(config, shape, here)
    )
    commands = []
    for index, (port, (more, variables)) in enumerate(zip(ports, places, strict=True)):
        own = ("--port", str(port), "--random-seed", str(config.run.seed + index))
        commands.append(
            Command(
                name=f"server-{index}",
                # What the user says comes last and wins.
                argv=(*start, *flags, *own, *more, *shlex.split(config.policy.flags)),
                log=run.path / f"server-{index}.log",
                environment={**environment, **variables},
                leashed=True,
            )
        )
    return commands


def _flags(config: Config, shape: ModelShape) -> list[str]:
    """`sglang.launch_server`'s flags that every server of a run has."""
    slots = str(config.adapter_slots)
    return [
        *("--model-path", config.model.path, "--host", "127.0.0.1", "--log-level-http", "warning"),
        *("--context-length", str(min(config.limits.tokens + SPARE_TOKENS, shape.context))),
        *("--max-running-requests", str(config.policy.max_running)),
        *("--enable-lora", "--max-lora-rank", str(config.learner.rank), "--lora-target-modules", *LORA_MODULES),
        *("--max-loras-per-batch", slots, "--max-loaded-loras", slots),
    ]


def _cpu_flags(config: Config) -> list[str]:
    tokens = config.policy.kv_tokens
    return [
        *("--device", "cpu", "--dtype", "float32", "--attention-backend", "torch_native"),
        *("--lora-backend", "torch_native", "--disable-overlap-schedule", "--sleep-on-idle"),
        *("--max-total-tokens", str(max(_CPU_TOKENS, config.limits.tokens) if tokens == "auto" else tokens)),
    ]


def _on_gpus(config: Config, shape: ModelShape, here: Sequence[Gpu]) -> list[tuple[list[str], dict[str, str]]]:
    """Flags and variables of each server on its GPUs."""
    # The learner's base has the same type there (learner.device), whatever the checkpoint's is.
    flags, placement = ["--dtype", "bfloat16"], place(config, here)
    needs(config, placement, shape, here)
    if (share := memory_share(config, placement, shape, here)) is not None:
        flags += ["--mem-fraction-static", str(share)]
    if config.policy.kv_tokens != "auto":
        flags += ["--max-total-tokens", str(config.policy.kv_tokens)]
    if config.policy.tensor_parallel > 1:
        flags += ["--tensor-parallel-size", str(config.policy.tensor_parallel)]
    # As nvidia-smi counts them.
    order = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    return [(flags, {**order, "CUDA_VISIBLE_DEVICES": ",".join(map(str, members))}) for members in placement.servers]
