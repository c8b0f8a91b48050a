"""The commands that start SGLang for a run: as its policy servers, with room for adapters, and for its endpoints."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.config.endpoints import SglangSection
from engine.config.tree import Config
from engine.modeldir.shape import TARGET_MODULES, DecoderShape
from engine.processes.child import Command
from engine.rundir.layout import RunDir
from engine.serving.gpus import Gpu, gpus
from engine.serving.memory import memory_share, needs
from engine.serving.placement import Placement, place, without_gpu
from engine.serving.sglang import launcher, server_environment

SPARE_TOKENS = 16
"""Context beyond an episode's limit, or a call's: SGLang keeps the last seven tokens for itself."""
_CPU_TOKENS = 200_000
"""KV cache without a GPU; SGLang's own choice takes most of the memory and a minute to allocate (docs/sglang.md)."""
_ON_CPU = (
    *("--device", "cpu", "--dtype", "float32", "--attention-backend", "torch_native"),
    *("--disable-overlap-schedule", "--sleep-on-idle"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The GPUs of this machine, and which server of a run has which."""

    gpus: Sequence[Gpu]
    placement: Placement
    shape: DecoderShape
    """Of the policy's model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Server:
    """One SGLang of a run."""

    name: str
    table: str
    """The table of the configuration that describes it."""
    section: SglangSection
    gpus: tuple[int, ...]
    """None on the CPU."""
    threads: int
    port: int
    seed: int


def look_around(config: Config) -> Machine:
    """The machine as a run, whose models are directories, is placed on it; no GPU matters where all servers do without.

    Raises ConfigError if the GPUs are not there or too small."""
    here, shape = gpus(), DecoderShape.read(Path(config.model.path))
    if all(without_gpu(section, here) for section in (config.policy, *config.started_endpoints.values())):
        return Machine(gpus=here, placement=Placement(servers=(), endpoints={}, learner=()), shape=shape)
    placement = place(config, here)
    needs(config, placement, shape, here)
    return Machine(gpus=here, placement=placement, shape=shape)


def policy_commands(run: RunDir, config: Config, ports: Sequence[int], machine: Machine) -> list[Command]:
    """SGLang as the policy servers of a run, one on each port.

    Raises ConfigError if it is not installed."""
    policy, slots, places = config.policy, str(config.adapter_slots), machine.placement.servers
    tokens, cpu = policy.kv_tokens, not places
    flags = [
        *_serving(config.model.path, config.limits.tokens, machine.shape, policy.max_running),
        *("--enable-lora", "--max-lora-rank", str(config.learner.rank), "--lora-target-modules", *TARGET_MODULES),
        *("--max-loras-per-batch", slots, "--max-loaded-loras", slots),
        # On a GPU the learner's base has the same type (learner.device), whatever the checkpoint's is.
        *(("--lora-backend", "torch_native") if cpu else ("--dtype", "bfloat16")),
    ]
    if cpu and tokens == "auto":
        tokens = max(_CPU_TOKENS, config.limits.tokens)
    if tokens != "auto":
        flags += ["--max-total-tokens", str(tokens)]
    servers = (
        _Server(
            name=f"server-{index}",
            table="policy",
            section=policy,
            gpus=() if cpu else places[index],
            threads=policy.threads,
            port=port,
            seed=config.run.seed + index,
        )
        for index, port in enumerate(ports)
    )
    return [_command(run, config, machine, server, flags) for server in servers]


def endpoint_commands(run: RunDir, config: Config, ports: Sequence[int], machine: Machine) -> list[Command]:
    """SGLang for every endpoint that a run starts, one on each port, in their order.

    Raises ConfigError if it is not installed."""
    commands = []
    for (name, endpoint), port in zip(config.started_endpoints.items(), ports, strict=True):
        server = _Server(
            name=f"endpoint-{name}",
            table=f"endpoints.{name}",
            section=endpoint,
            gpus=machine.placement.endpoints.get(name, ()),
            threads=endpoint.threads,
            port=port,
            seed=config.run.seed,
        )
        shape = DecoderShape.read(Path(endpoint.model))
        flags = _serving(endpoint.model, endpoint.context_tokens, shape, endpoint.concurrency)
        # A small model that is held to JSON would else write blank lines until its tokens end.
        flags.append("--constrained-json-disable-any-whitespace")
        if not server.gpus:
            # No more than all its calls at once can fill.
            most = endpoint.concurrency * (endpoint.context_tokens + SPARE_TOKENS)
            flags += ["--max-total-tokens", str(max(endpoint.context_tokens + SPARE_TOKENS, min(most, _CPU_TOKENS)))]
        commands.append(_command(run, config, machine, server, flags))
    return commands


def _serving(model: str, tokens: int, shape: DecoderShape, running: int) -> list[str]:
    """`sglang.launch_server`'s flags for a model, requests of `tokens` and how many of them are decoded together."""
    return [
        *("--model-path", model, "--host", "127.0.0.1", "--log-level-http", "warning"),
        *("--context-length", str(min(tokens + SPARE_TOKENS, shape.context)), "--max-running-requests", str(running)),
    ]


def _command(run: RunDir, config: Config, machine: Machine, server: _Server, flags: Sequence[str]) -> Command:
    """The command of a server that has these flags, on its GPUs or the CPU."""
    cpu, section = not server.gpus, server.section
    where, variables = (_ON_CPU, {}) if cpu else _on_gpus(config, machine, server)
    return Command(
        name=server.name,
        argv=(
            *launcher(section, server.table, cpu=cpu),
            *(*flags, *where, "--port", str(server.port), "--random-seed", str(server.seed)),
            # What the user says comes last and wins.
            *shlex.split(section.flags),
        ),
        log=run.path / f"{server.name}.log",
        environment={**server_environment(cpu=cpu, threads=server.threads), **variables},
        leashed=True,
    )


def _on_gpus(config: Config, machine: Machine, server: _Server) -> tuple[tuple[str, ...], dict[str, str]]:
    """Flags and variables of a server on its GPUs."""
    flags: tuple[str, ...] = ()
    if (share := memory_share(config, server.section, server.gpus, machine.shape, machine.gpus)) is not None:
        flags += ("--mem-fraction-static", str(share))
    if len(server.gpus) > 1:
        flags += ("--tensor-parallel-size", str(len(server.gpus)))
    # As nvidia-smi counts them.
    return flags, {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(map(str, server.gpus))}
