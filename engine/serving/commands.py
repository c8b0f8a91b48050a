"""The commands of the policy servers that a run starts."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from engine.config import Config
from engine.processes import Command, torch_environment
from engine.rundir import RunDir
from engine.serving import sglang


def server_commands(
    run: RunDir, config: Config, ports: Sequence[int], adapter_root: Path | None = None
) -> list[Command]:
    """A server on each of `ports`; an embedded one loads adapters from below `adapter_root` (default: the run).

    Raises ConfigError if SGLang is wanted and not installed."""
    if config.policy.launch == "sglang":
        return sglang.server_commands(run, config, ports)
    root = adapter_root or run.path
    return [_embedded(run, config, port, index, root) for index, port in enumerate(ports)]


def _embedded(run: RunDir, config: Config, port: int, index: int, adapter_root: Path) -> Command:
    policy, name = config.policy, f"server-{index}"
    argv = (
        *(sys.executable, "-m", "engine.embedded", "--model", config.model.path, "--port", str(port)),
        *(
            "--adapter-root",
            str(adapter_root),
            "--max-loras",
            str(config.adapter_slots),
            "--max-lora-rank",
            str(config.learner.rank),
        ),
        *("--max-running", str(policy.max_running), "--threads", str(policy.threads)),
        *("--seed", str(config.run.seed + index), "--parent-pid", str(os.getpid())),
        *(() if policy.kv_tokens == "auto" else ("--max-total-tokens", str(policy.kv_tokens))),
    )
    return Command(name=name, argv=argv, log=run.path / f"{name}.log", environment=torch_environment(policy.threads))
