"""What this machine lacks for a configuration: one finding per question, each with the remedy.

Nothing is started or changed: `synth-engine doctor` prints the findings. The model server's environment is looked into
by importing SGLang there, which takes some seconds.
"""

from __future__ import annotations

import platform
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata
from pathlib import Path

import psutil

from engine.config.endpoints import EndpointSection, SglangSection
from engine.config.environment import api_key
from engine.config.plugins import plugins
from engine.config.tree import Config
from engine.errors import ConfigError, RunError
from engine.packs.pack import load_pack
from engine.preflight.judged import require_decided
from engine.preflight.manifest import pack_file
from engine.preflight.rehearsal import rehearse
from engine.processes.event_loop import UVLOOP
from engine.run.served_policy import descriptors_needed, raise_descriptor_limit
from engine.serving.gpus import gpus
from engine.serving.install import inspect_environment
from engine.serving.models import endpoint_key, find_model
from engine.serving.placement import without_gpu
from engine.serving.probe import answers, server_is_ready
from engine.serving.sglang import VERSION, launcher, started_from

_GB = 1e9
_TIGHT_GB = 4.0
"""Memory below which the tiny run, its three processes and a terminal get tight."""


class Severity(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    NOTE = "note"
    """It works, not as well as it could."""
    BAD = "bad"
    """A run with this configuration would fail."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorFinding:
    """The answer to one question about this machine."""

    about: str
    state: Severity
    what: str
    remedy: str = ""


def examine(config: Config) -> Iterator[DoctorFinding]:
    """Every finding, quick ones first; each is made when it is asked for."""
    for check in (_python, _packages, _memory, _disk, _descriptors, _ports, _gpus, _model, _tasks):
        yield check(config)
    if config.policy.launch == "none":
        for url in config.policy.urls:
            yield _answers(url)
    for name, endpoint in config.endpoints.items():
        yield _endpoint(name, endpoint)
    if plugins(config):
        yield _told("plug-ins", lambda: _plugins(config))
    yield from _environments(config)


def _found(about: str, what: str, *, good: bool, remedy: str, otherwise: Severity = Severity.BAD) -> DoctorFinding:
    return DoctorFinding(
        about=about, state=Severity.OK if good else otherwise, what=what, remedy="" if good else remedy
    )


def _told(about: str, ask: Callable[[], str]) -> DoctorFinding:
    """What `ask` says; its error's sentence is the remedy."""
    try:
        return DoctorFinding(about=about, state=Severity.OK, what=ask())
    except (ConfigError, RunError) as error:
        return DoctorFinding(about=about, state=Severity.BAD, what="not usable", remedy=str(error))


def _python(_: Config) -> DoctorFinding:
    loop = "uvloop" if UVLOOP else "asyncio's loop"
    return _found(
        "python",
        f"{platform.python_version()} ({sys.executable}), {loop}",
        good=UVLOOP,
        otherwise=Severity.NOTE,
        remedy="`pip install uvloop` makes the event loop faster",
    )


def _packages(_: Config) -> DoctorFinding:
    names = ("torch", "transformers", "peft", "aiohttp", "anyio")
    return DoctorFinding(
        about="packages", state=Severity.OK, what=", ".join(f"{name} {metadata.version(name)}" for name in names)
    )


def _memory(_: Config) -> DoctorFinding:
    memory = psutil.virtual_memory()
    free, cores = memory.available / _GB, psutil.cpu_count() or 1
    return _found(
        "memory",
        f"{free:.1f} GB of {memory.total / _GB:.1f} GB free, {cores} cores",
        good=free >= _TIGHT_GB,
        otherwise=Severity.NOTE,
        remedy="close other programs, or lower schedule.live_slots and policy.kv_tokens",
    )


def _disk(config: Config) -> DoctorFinding:
    place = next(
        path for path in (Path(config.run.dir).resolve(), *Path(config.run.dir).resolve().parents) if path.exists()
    )
    free_mb = shutil.disk_usage(place).free / 1e6
    return _found(
        "disk",
        f"{free_mb / 1e3:.1f} GB free for {config.run.dir}",
        good=free_mb > config.stream.low_water_mb,
        remedy=f"a run stops below stream.low_water_mb = {config.stream.low_water_mb:g}: free some, or set run.dir",
    )


def _descriptors(config: Config) -> DoctorFinding:
    def ask() -> str:
        needed = descriptors_needed(config)
        raise_descriptor_limit(needed)
        return f"{needed:,} needed at most, and allowed"

    return _told("open files", ask)


def _ports(_: Config) -> DoctorFinding:
    def ask() -> str:
        try:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
        except OSError as error:
            raise RunError(f"no port of 127.0.0.1 can be bound: {error}; servers need one each") from error
        return "free ones on 127.0.0.1"

    return _told("ports", ask)


def _gpus(_: Config) -> DoctorFinding:
    found = gpus()
    shown = ", ".join(f"{gpu.index}: {gpu.name}, {gpu.free_mib:,} of {gpu.total_mib:,} MiB free" for gpu in found)
    return DoctorFinding(
        about="GPUs", state=Severity.OK, what=shown or "none (nvidia-smi shows none): everything runs on the CPU"
    )


def _model(config: Config) -> DoctorFinding:
    return _told("model", lambda: str(find_model(config.model.path).path))


def _tasks(config: Config) -> DoctorFinding:
    def ask() -> str:
        pack = pack_file(config.tasks.pack)
        tasks = load_pack(pack).tasks
        require_decided(config, tasks)
        return f"{len(tasks):,} in {pack}"

    return _told("tasks", ask)


def _endpoint(name: str, endpoint: EndpointSection) -> DoctorFinding:
    """Its model is found, where its files are needed, and what it does not start itself answers."""

    def ask() -> str:
        if not endpoint.has_model_directory:
            model = endpoint.model or "the server's model"
        else:
            model = str(find_model(endpoint.model, endpoint_key(name), weights=endpoint.launch == "sglang").path)
        if endpoint.launch == "sglang":
            return f"{model}, served by an SGLang of its own"
        return f"{model}: {answers(endpoint.url, api_key(endpoint.api_key_env, f'endpoints.{name}.api_key_env'))}"

    return _told(f"endpoint {name}", ask)


def _environments(config: Config) -> Iterator[DoctorFinding]:
    """SGLang's environments, each once: a look into one takes seconds."""
    sections: dict[str, SglangSection] = {"policy": config.policy} if config.policy.launch == "sglang" else {}
    sections |= {f"endpoints.{name}": endpoint for name, endpoint in config.started_endpoints.items()}
    here, seen = gpus(), set()
    for table, section in sections.items():
        cpu = without_gpu(section, here)
        if (section.sglang, cpu) not in seen:
            seen.add((section.sglang, cpu))
            yield _sglang(section, table, cpu=cpu)


def _sglang(section: SglangSection, table: str, *, cpu: bool) -> DoctorFinding:
    def ask() -> str:
        words = launcher(section, table, cpu=cpu)
        program = Path(words[0])
        if words != started_from(program.parent.parent):
            return f"started by `{' '.join(words)}`; not looked into"
        facts = inspect_environment(program.parent.parent, cpu=cpu)
        if not cpu and not facts.cuda:
            raise RunError(f"{program}: its torch {facts.torch} sees no GPU; look at the driver with `nvidia-smi`")
        if facts.sglang != VERSION:
            raise RunError(f"{program} has SGLang {facts.sglang}, the client speaks {VERSION}: install that one")
        return f"{facts.sglang} with torch {facts.torch} on the {'CPU' if cpu else 'GPU'} ({program})"

    return _told("SGLang", ask)


def _plugins(config: Config) -> str:
    rehearse(config, pack_file(config.tasks.pack))
    return ", ".join(f"{key} = {name}" for key, name in plugins(config).items())


def _answers(url: str) -> DoctorFinding:
    return _found(
        "server",
        url,
        good=server_is_ready(url),
        remedy="it does not answer GET /ready with 200: start it, or correct policy.urls",
    )
