"""SGLang's environment: where it is, how its server is started from it, and the variables that it is given.

SGLang pins torch and transformers to versions of its own, so it lives in a virtual environment of its own; the engine
knows it by that environment's interpreter, or by a command. Without a GPU the unmodified server runs on torch's native
operators, with the stand-ins of `engine/assets/sglang_cpu` in place of two CUDA-only packages.
"""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

from engine.config.endpoints import SglangSection
from engine.config.environment import child_environment, environment
from engine.config.load import ASSETS
from engine.errors import ConfigError
from engine.processes.child import torch_environment

VERSION = "0.5.23"
"""The release whose HTTP contract the client speaks, and which the conformance tests run against."""
STAND_INS = ASSETS / "sglang_cpu"


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


def launcher(section: SglangSection, table: str, *, cpu: bool) -> tuple[str, ...]:
    """The command that takes `sglang.launch_server`'s flags, with or without (`cpu`) GPUs.

    Raises ConfigError, with the remedy, if `sglang` of `section`, which is called `table`, names nothing that can be
    started."""
    named, key = section.sglang, f"{table}.sglang"
    directory = environment_directory(cpu=cpu) if named == "auto" else Path(named)
    if interpreter(directory).exists():
        return started_from(directory)
    if named == "auto":
        flag = " --cpu" if cpu else ""
        raise ConfigError(
            f"SGLang is not installed in {directory}: run `synth-engine install-sglang{flag}`, "
            f"or set {key} to its virtual environment"
        )
    try:
        words = shlex.split(named)
    except ValueError as error:
        raise ConfigError(f"{key}: {named!r} is no command: {error}") from error
    if not words or shutil.which(words[0]) is None:
        raise ConfigError(
            f"{key}: {named!r} is neither a virtual environment (it has no bin/python) nor a command; "
            "`synth-engine install-sglang` makes the environment"
        )
    return tuple(words)


def server_environment(*, cpu: bool, threads: int) -> dict[str, str]:
    """The environment variables of a server."""
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    if not cpu:
        return child_environment(**offline)
    return {**torch_environment(threads), **offline, "SGLANG_USE_CPU_ENGINE": "1", "PYTHONPATH": str(STAND_INS)}
