"""Making a run directory: the resolved configuration, a copy of the pack, and manifest.json.

manifest.json holds what must not change over the life of a run, and what a reader needs to trust its files: run id,
seed, versions of the packages, hashes of pack, base model, tokenizer and chat template, the commit of a hub model (the
policy's and each endpoint's), tasks per split, git commit, socket path.
"""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import zstandard

from engine.chat.chat_format import ChatFormat
from engine.config.load import asset, dump, load, refuse_changes
from engine.config.tree import Config
from engine.errors import ConfigError
from engine.packs.exported import read_exported
from engine.packs.pack import load_pack
from engine.preflight.judged import require_decided
from engine.rundir.layout import RunDir, new_run_id, point_link, read_json, write_atomic, write_json
from engine.rundir.rows import write_rows
from engine.serving.memory import check_placement
from engine.serving.models import (
    Model,
    ModelPaths,
    download,
    endpoint_key,
    find_model,
    find_models,
    model_revision,
    sha256,
)
from engine.serving.pinned import changed_text, changed_weights
from engine.task import Split
from engine.trust.opening import register, register_given
from engine.world.store import EntryStore

_PACKAGES = (
    "synth-engine", "torch", "transformers", "peft", "tokenizers", "numpy", "aiohttp", "anyio", "orjson", "pydantic",
    "safetensors", "zstandard",
)  # fmt: skip
_NAME_CHARACTERS = 36  # leaves room for a number within the pattern of run.name


def pack_file(name: str) -> Path:
    """A pack: a shipped one by its name, or a .jsonl or .jsonl.zst file.

    Raises ConfigError if there is none."""
    return asset("packs", name, (".jsonl.zst", ".jsonl")).resolve()


def create(config: Config) -> RunDir:
    """A fresh run directory for `config`, and `latest` beside it; a name that is taken gets a number (tiny-2).

    Raises ConfigError, and makes nothing, if the model, the pack or the answers to start from cannot be found or used,
    or the GPUs cannot hold them."""
    pack = pack_file(config.tasks.pack)
    tasks = load_pack(pack).tasks
    splits = Counter(str(task.split) for task in tasks)
    if not splits[Split.TRAIN]:
        raise ConfigError(f"tasks.pack: {pack} has no task with split = train: there is nothing to train on")
    require_decided(config, tasks)
    models = find_models(config)
    chat = ChatFormat.load(models.policy.path, config.policy.system)
    config = models.into(config)
    check_placement(config)
    answers = read_exported(Path(config.world.mapping), tasks) if config.world.mapping else None
    run = RunDir(_fresh(Path(config.run.dir).resolve(), config.run.name))
    run.create()
    resolved = config.model_copy(
        update={
            "run": config.run.model_copy(update={"name": run.path.name, "dir": str(run.path.parent)}),
            "policy": config.policy.model_copy(update={"system": chat.system}),
            "tasks": config.tasks.model_copy(update={"pack": str(pack)}),
            "world": config.world.model_copy(update={"mapping": _absolute(config.world.mapping)}),
            "learner": config.learner.model_copy(update={"warm_start": _absolute(config.learner.warm_start)}),
        }
    )
    copy_pack(pack, run.pack)
    if answers is not None:
        write_rows(EntryStore, run.world, answers)
    write_atomic(run.config, dump(resolved).encode())
    _write_manifest(run, resolved, {"tasks": splits, **_described(models, chat)})
    register(run, resolved)
    point_latest(run)
    return run


def _absolute(path: str) -> str:
    return str(Path(path).resolve()) if path else ""


def reopen(run: RunDir, overrides: tuple[str, ...]) -> Config:
    """The configuration of an existing run with `overrides`, which is then its configuration.

    Raises ConfigError if an override changes what a resumed run may not change, or a model is gone or another one."""
    before = load(run.config).config
    loaded = load(run.config, overrides)
    after = loaded.config
    refuse_changes(before, after)
    moved = after.model.path != before.model.path
    base = find_model(after.model.path).path if moved else base_model(run, before)
    _require_same_model(run, base, after.policy.system)
    after = ModelPaths(policy=Model(path=base), endpoints=_endpoint_models(run, after)).into(after)
    register_given(run, loaded, after)
    if after != before:
        write_atomic(run.config, dump(after).encode())
    return after


def _require_same_model(run: RunDir, model: Path, system: str) -> None:
    """Raises ConfigError that names what of the model is not as it was when the run was made."""
    changed = [*changed_weights(run, model), *changed_text(run, model, ChatFormat.load(model, system))]
    if changed:
        raise ConfigError(f"model.path: {'; '.join(changed)}; give the model that the run began with")


def base_model(run: RunDir, config: Config) -> Path:
    """The directory of a run's base model; a hub model that is gone from the cache is downloaded again.

    Raises ConfigError if there is none."""
    manifest, path = read_json(run.manifest) or {}, Path(config.model.path)
    if not path.is_dir() and manifest.get("hub_id"):
        return download(manifest["hub_id"], manifest["hub_commit"]).path
    return find_model(config.model.path).path


def _endpoint_models(run: RunDir, config: Config) -> dict[str, Model]:
    """The same of every endpoint whose model is needed here."""
    manifest, found = read_json(run.manifest) or {}, {}
    for name, endpoint in config.endpoints.items():
        if not endpoint.has_model_directory:
            continue
        hub, path = manifest.get("endpoints", {}).get(name, {}), Path(endpoint.model)
        weights = endpoint.launch == "sglang"
        # One that ran elsewhere so far has left its weights there.
        there = path.is_dir() and (not weights or any(path.glob("*.safetensors")))
        found[name] = (
            download(hub["hub_id"], hub["hub_commit"], key=endpoint_key(name), weights=weights)
            if hub.get("hub_id") and not there
            else find_model(endpoint.model, endpoint_key(name), weights=weights)
        )
    return found


def copy_pack(source: Path, target: Path) -> None:
    """Copy a pack, compressed where it was not."""
    if source.suffix == ".zst":
        shutil.copyfile(source, target)
    else:
        target.write_bytes(zstandard.ZstdCompressor(level=10).compress(source.read_bytes()))


def _described(models: ModelPaths, chat: ChatFormat) -> dict[str, Any]:
    """What the manifest says of the models."""
    return {
        **_origin(models.policy),
        "model_revision": model_revision(models.policy.path),
        "vocab_size": chat.vocab_size,
        "tokenizer_sha256": chat.tokenizer_sha256,
        "template_sha256": chat.template_sha256,
        "endpoints": {name: _origin(model) for name, model in models.endpoints.items()},
    }


def _origin(model: Model) -> dict[str, str | None]:
    return {"model_path": str(model.path), "hub_id": model.hub_id, "hub_commit": model.hub_commit}


def _write_manifest(run: RunDir, config: Config, facts: Mapping[str, Any]) -> None:
    manifest: dict[str, Any] = {
        "run_id": new_run_id(config.run.name),
        "name": config.run.name,
        "created_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seed": config.run.seed,
        **facts,
        "pack_path": config.tasks.pack,
        "pack_sha256": sha256(run.pack),
        "versions": {"python": platform.python_version(), **dict(_versions())},
        "platform": platform.platform(),
        "git_commit": _git_commit(),
    }
    write_json(run.manifest, manifest)
    # The socket's place depends on the run id, which is read from the manifest.
    write_json(run.manifest, {**manifest, "socket": str(run.socket)})


def _versions() -> Iterator[tuple[str, str]]:
    for name in _PACKAGES:
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue


def _git_commit() -> str | None:
    git = shutil.which("git")
    source = Path(__file__).resolve().parent.parent
    if git is None or not (source / ".git").exists():
        return None
    found = subprocess.run(
        [git, "-C", str(source), "rev-parse", "HEAD"], capture_output=True, text=True, check=False, timeout=10
    )
    return found.stdout.strip() or None


def _fresh(base: Path, name: str) -> Path:
    """A new directory `name`, or `name-2`, `name-3`, ...; claimed by making it."""
    base.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        path = base / (name if number == 1 else f"{name[:_NAME_CHARACTERS]}-{number}")
        try:
            path.mkdir()
        except FileExistsError:
            number += 1
        else:
            return path


def point_latest(run: RunDir) -> None:
    """Turn `runs/latest` to this run."""
    point_link(run.path.parent / "latest", run.path.name)
