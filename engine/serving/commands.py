"""The commands of the servers that a run starts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from engine.config.tree import Config
from engine.processes.child import PYTHON, Command, torch_environment
from engine.rundir.layout import RunDir
from engine.serving.addresses import Address
from engine.serving.sglang_commands import endpoint_commands, look_around, policy_commands


def server_commands(
    run: RunDir, config: Config, addresses: Sequence[Address], adapter_root: Path | None = None
) -> list[Command]:
    """A server at each of `addresses`, which are those of engine.serving.addresses: the policy's, then the endpoints'.

    An embedded one loads adapters from below `adapter_root` (default: the run). Raises ConfigError if SGLang is wanted
    and not installed, or its GPUs are not there or too small."""
    ports = [address.port for address in addresses]
    policy, endpoints = ports[: config.started_servers], ports[config.started_servers :]
    own = config.policy.launch == "sglang"
    machine = look_around(config) if own or endpoints else None
    servers = (
        policy_commands(run, config, policy, machine)
        if machine is not None and own
        else [_embedded(run, config, port, index, adapter_root or run.path) for index, port in enumerate(policy)]
    )
    return servers + (endpoint_commands(run, config, endpoints, machine) if machine is not None else [])


def _embedded(run: RunDir, config: Config, port: int, index: int, adapter_root: Path) -> Command:
    policy, name = config.policy, f"server-{index}"
    argv = (
        *(*PYTHON, "-m", "engine.embedded", "--model", config.model.path, "--port", str(port)),
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
