"""What a run would start, and whether it fits: `synth-engine run --plan`."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

from rich.console import Console
from rich.table import Table

from engine.config.tree import Config
from engine.modeldir.shape import DecoderShape
from engine.rundir.layout import RunDir
from engine.serving.addresses import addresses
from engine.serving.gpus import Gpu, gpus
from engine.serving.memory import Need, needs
from engine.serving.placement import Placement, place
from engine.supervise.supervisor import commands

_FIRST_PORT = 30_000
_SHOWN = ("CUDA_DEVICE_ORDER", "CUDA_VISIBLE_DEVICES", "SGLANG_USE_CPU_ENGINE", "PYTHONPATH", "OMP_NUM_THREADS")
"""Variables that matter to whoever starts a server by hand."""


def show_plan(console: Console, config: Config) -> None:
    """Print placement, memory, commands and expected staleness; nothing is started or written.

    Raises ConfigError if the configuration cannot be placed on this machine."""
    shape = DecoderShape.read(Path(config.model.path))
    lora = shape.lora_parameters(config.learner.rank)
    console.print(
        f"{Path(config.model.path).name}: {shape.parameters / 1e6:,.1f} M parameters, adapter of rank "
        f"{config.learner.rank}: {lora / 1e6:,.2f} M",
        markup=False,
        soft_wrap=True,
    )
    here = gpus()
    placement = place(config, here)
    for line in _endpoints(config, placement):
        console.print(line, markup=False, soft_wrap=True)
    if used := needs(config, placement, shape, here):
        console.print(_memory(config, here, used))
    else:
        console.print("Everything that this run starts computes on the CPU.")
    console.print(staleness_sentence(config), markup=False, soft_wrap=True)
    console.print("\nCommands (ports and paths as an example):")
    for name, command in _commands(config):
        console.print(f"  {name}: {command}", markup=False, soft_wrap=True, highlight=False)


def staleness_sentence(config: Config) -> str:
    """How old the data of a step will be, in one sentence."""
    most = config.schedule.max_staleness
    if not most:
        return (
            "Staleness 0: rollouts and learner take turns, and neither works while the other does; "
            "schedule.max_staleness = 1 lets them overlap."
        )
    return (
        f"Staleness at most {most}: where the learner is the slower one, most tokens of a step are {most} old; where "
        "rollouts are, nearly all of them 0. At most "
        f"{config.max_live} episodes are live = ({most} + 1) x {config.schedule.groups_per_step} groups x "
        f"{config.schedule.group_size}."
    )


def _memory(config: Config, here: Sequence[Gpu], used: Sequence[Need]) -> Table:
    """Every process on every GPU; estimates, in GiB."""
    parts = list(dict.fromkeys(part for need in used for part in need.parts))
    table = Table(title="GPU memory in GiB, estimated", title_justify="left", caption_justify="left")
    for heading in ("GPU", "process", *parts, "sum", "of"):
        table.add_column(heading, justify="left" if heading in ("GPU", "process") else "right")
    for gpu in here:
        mine = [need for need in used if need.gpu == gpu.index]
        for need in mine:
            cells = (_gib(need.parts[part]) if part in need.parts else "" for part in parts)
            table.add_row(str(gpu.index), need.who, *cells, _gib(need.mib), _gib(gpu.total_mib))
        if len(mine) > 1:
            both = sum(need.mib for need in mine)
            table.add_row(str(gpu.index), "together", *[""] * len(parts), _gib(both), _gib(gpu.total_mib))
    caches = (_cached(config, need) for need in used if need.cached_tokens)
    table.caption = "; ".join(dict.fromkeys(caches))
    return table


def _cached(config: Config, need: Need) -> str:
    tokens = need.cached_tokens
    if name := need.endpoint:
        calls = tokens / config.endpoints[name].context_tokens
        return f"{need.who} {tokens:,.0f}: {calls:,.0f} calls of its context_tokens"
    return f"a server caches {tokens:,.0f} tokens: {tokens / config.limits.tokens:,.0f} episodes of limits.tokens"


def _endpoints(config: Config, placement: Placement) -> Iterator[str]:
    """Who plays users, tools and judges, and where."""
    for name, endpoint in config.endpoints.items():
        roles = ", ".join(key for key, named in config.endpoint_of.items() if named == name)
        if endpoint.launch == "none":
            yield f"endpoint {name} ({roles}): {endpoint.model or 'the model'} at {endpoint.url}"
            continue
        on = placement.endpoints.get(name, ())
        where = f"GPU {', '.join(map(str, on))}" if on else "the CPU"
        yield f"endpoint {name} ({roles}): {Path(endpoint.model).name}, an SGLang of its own on {where}"


def _gib(mib: float) -> str:
    return f"{mib / 1024:,.1f}"


def _commands(config: Config) -> Iterator[tuple[str, str]]:
    run = RunDir(Path(config.run.dir) / config.run.name)
    servers, learner, engine = commands(run, config, addresses(config, count(_FIRST_PORT)))
    for command in (*servers, learner, engine):
        variables = (
            f"{name}={shlex.quote(command.environment[name])}" for name in _SHOWN if name in command.environment
        )
        yield command.name, " ".join((*variables, shlex.join(command.argv)))
