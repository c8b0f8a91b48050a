"""Which GPUs serve and which train.

Who names GPUs has them. Of those that nobody names, each started endpoint without `gpus` takes the first that it
needs, in the order of the file; then the policy's servers take the rest, or share those that train. Two servers share a
GPU only where both say how much of it they fill.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from engine.config.endpoints import EndpointSection, SglangSection
from engine.config.tree import Config
from engine.errors import ConfigError
from engine.serving.gpus import Gpu


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """GPUs by index; all are empty on a machine without one."""

    servers: tuple[tuple[int, ...], ...]
    """Of each policy server, as many as tensor parallelism takes."""
    endpoints: Mapping[str, tuple[int, ...]]
    """Of the server of each endpoint that computes on GPUs, by name."""
    learner: tuple[int, ...]
    """One rank on each."""

    def on(self, gpu: int) -> list[str]:
        """The endpoints whose servers compute on a GPU."""
        return [name for name, members in self.endpoints.items() if gpu in members]


def without_gpu(section: SglangSection, gpus: Sequence[Gpu]) -> bool:
    """Whether what `section` starts computes on the CPU."""
    device = section.device if section.launch == "sglang" else "cpu"
    return device == "cpu" or (device == "auto" and not gpus)


def place(config: Config, gpus: Sequence[Gpu]) -> Placement:
    """Who gets which GPU.

    Raises ConfigError that names the key and the GPUs there are."""
    there = sorted(gpu.index for gpu in gpus)
    count = 0 if without_gpu(config.policy, gpus) else config.started_servers
    started = {name: one for name, one in config.started_endpoints.items() if not without_gpu(one, gpus)}
    named = {"policy.gpus": config.policy.gpus if count else (), "learner.gpus": config.learner.gpus}
    named |= {f"endpoints.{name}.gpus": one.gpus for name, one in started.items()}
    for key, wanted in named.items():
        if missing := sorted(set(wanted) - set(there)):
            raise ConfigError(f"{key}: there is no GPU {missing[0]} here; nvidia-smi shows {there or 'none'}")
        if len(set(wanted)) != len(wanted):
            raise ConfigError(f"{key} = {list(wanted)} names a GPU twice")
    taken = {gpu for wanted in named.values() for gpu in wanted}
    free = [gpu for gpu in there if gpu not in taken]
    endpoints = {}
    for name, endpoint in started.items():
        endpoints[name] = endpoint.gpus or tuple(free[: endpoint.tensor_parallel])
        _refuse_width(name, endpoint, endpoints[name], {key: gpus for key, gpus in named.items() if gpus})
        free = [gpu for gpu in free if gpu not in endpoints[name]]
    serving = (config.policy.gpus or tuple(free) or config.learner.gpus) if count else ()
    placement = Placement(
        servers=_split(config, count, serving), endpoints=endpoints, learner=tuple(config.learner.gpus)
    )
    _refuse_crowds(config, placement)
    return placement


def _refuse_width(
    name: str, endpoint: EndpointSection, members: Sequence[int], named: Mapping[str, Sequence[int]]
) -> None:
    """Raise ConfigError unless an endpoint has the GPUs that its server computes on."""
    key, width = f"endpoints.{name}", endpoint.tensor_parallel
    if len(members) == width:
        return
    if endpoint.gpus:
        raise ConfigError(
            f"{key}.gpus = {list(members)} names {len(members)} GPUs, and {key}.tensor_parallel = {width} of them "
            "compute: make the two equal"
        )
    others = ", ".join(f"{other} = {list(gpus)}" for other, gpus in named.items()) or "no key names any"
    raise ConfigError(
        f"{key} needs {width} GPUs (its tensor_parallel) and {len(members)} are left for it ({others}): name fewer "
        f"elsewhere, name GPUs to share in {key}.gpus, with a memory_fraction for each server on them, or set "
        f"{key}.device = 'cpu'"
    )


def _split(config: Config, count: int, serving: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """The GPUs of each policy server.

    Raises ConfigError if there are too few."""
    width = config.policy.tensor_parallel
    if width * count > len(serving):
        raise ConfigError(
            f"policy.servers = {count} with policy.tensor_parallel = {width} need {width * count} GPUs, and "
            f"{len(serving)} can serve ({list(serving)}): lower one of them, or name more in policy.gpus"
        )
    return tuple(tuple(serving[first * width : (first + 1) * width]) for first in range(count))


def _refuse_crowds(config: Config, placement: Placement) -> None:
    """Raise ConfigError if servers share a GPU and one of them would fill all that it finds."""
    servers = list(_servers(config, placement))
    for gpu in sorted({gpu for _, _, members in servers for gpu in members}):
        here = {table: section for table, section, members in servers if gpu in members}
        greedy = [f"{table}.memory_fraction" for table, section in here.items() if section.memory_fraction == "auto"]
        if len(here) > 1 and greedy:
            raise ConfigError(
                f"GPU {gpu} serves {' and '.join(here)}: set {' and '.join(greedy)}, so that what they fill together "
                "fits, or give each GPUs of its own"
            )


def _servers(config: Config, placement: Placement) -> Iterator[tuple[str, SglangSection, tuple[int, ...]]]:
    """Every server on GPUs: the table that describes it, and where it is."""
    yield from (("policy", config.policy, members) for members in placement.servers)
    yield from ((f"endpoints.{name}", config.endpoints[name], gpus) for name, gpus in placement.endpoints.items())
