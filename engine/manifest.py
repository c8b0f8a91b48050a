"""Making a run directory: the resolved configuration, a copy of the pack, and manifest.json.

manifest.json holds what must not change over the life of a run, and what a reader needs to trust its files: run id,
seed, versions of the packages, hashes of pack, base model, tokenizer and chat template, tasks per split, git commit,
socket path.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson
import zstandard

from engine.config import ASSETS, Config, asset, dump, load, refuse_changes
from engine.errors import ConfigError
from engine.rundir import RunDir, new_run_id, point_link, write_atomic, write_json
from engine.task import Split
from engine.world.tasks import load_pack

_PACKAGES = (
    "synth-engine", "torch", "transformers", "peft", "tokenizers", "numpy", "aiohttp", "anyio", "orjson", "pydantic",
    "safetensors", "zstandard",
)  # fmt: skip
_CHUNK_BYTES = 1 << 20
_NAME_CHARACTERS = 36  # leaves room for a number within the pattern of run.name


def model_directory(name: str) -> Path:
    """The base model: `tiny` is the shipped one, anything else a directory in Hugging Face format.

    Raises ConfigError if there is no model."""
    path = ASSETS / "tiny-model" if name == "tiny" else Path(name)
    if not (path / "config.json").is_file():
        raise ConfigError(
            f"model.path: {path} is no model directory (it has no config.json); "
            "download the model first, for example with `hf download`, and give its path"
        )
    return path.resolve()


def pack_file(name: str) -> Path:
    """A pack: a shipped one by its name, or a .jsonl or .jsonl.zst file.

    Raises ConfigError if there is none."""
    return asset("packs", name, (".jsonl.zst", ".jsonl")).resolve()


def create(config: Config) -> RunDir:
    """A fresh run directory for `config`, and `latest` beside it; a name that is taken gets a number (tiny-2).

    Raises ConfigError, and makes nothing, if the model or the pack cannot be found or the pack cannot be used."""
    model, pack = model_directory(config.model.path), pack_file(config.tasks.pack)
    splits = Counter(str(task.split) for task in load_pack(pack).tasks)
    if not splits[Split.TRAIN]:
        raise ConfigError(f"tasks.pack: {pack} has no task with split = train: there is nothing to train on")
    run = RunDir(_fresh(Path(config.run.dir).resolve(), config.run.name))
    run.create()
    resolved = config.model_copy(
        update={
            "run": config.run.model_copy(update={"name": run.path.name, "dir": str(run.path.parent)}),
            "model": config.model.model_copy(update={"path": str(model)}),
            "tasks": config.tasks.model_copy(update={"pack": str(pack)}),
            "learner": config.learner.model_copy(update={"warm_start": _absolute(config.learner.warm_start)}),
        }
    )
    copy_pack(pack, run.pack)
    write_atomic(run.config, dump(resolved).encode())
    _write_manifest(run, resolved, splits)
    point_latest(run)
    return run


def _absolute(path: str) -> str:
    return str(Path(path).resolve()) if path else ""


def reopen(run: RunDir, overrides: tuple[str, ...]) -> Config:
    """The configuration of an existing run with `overrides`, which is then its configuration.

    Raises ConfigError if an override changes what a resumed run may not change."""
    before = load(run.config).config
    after = load(run.config, overrides).config
    refuse_changes(before, after)
    if after != before:
        write_atomic(run.config, dump(after).encode())
    return after


def copy_pack(source: Path, target: Path) -> None:
    """Copy a pack, compressed where it was not."""
    if source.suffix == ".zst":
        shutil.copyfile(source, target)
    else:
        target.write_bytes(zstandard.ZstdCompressor(level=10).compress(source.read_bytes()))


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def model_revision(model: Path) -> str:
    """sha256 over the names and contents of configuration and weights: one id for exactly these weights."""
    digest = hashlib.sha256()
    for path in _model_files(model):
        digest.update(f"{path.name}:{sha256(path)}\n".encode())
    return digest.hexdigest()


def _model_files(model: Path) -> Iterator[Path]:
    yield model / "config.json"
    yield from sorted(model.glob("*.safetensors"))


def _template_sha256(model: Path) -> str:
    file = model / "chat_template.jinja"
    if file.exists():
        return sha256(file)
    config = model / "tokenizer_config.json"
    template = orjson.loads(config.read_bytes()).get("chat_template", "") if config.exists() else ""
    return hashlib.sha256(orjson.dumps(template)).hexdigest()


def _write_manifest(run: RunDir, config: Config, splits: Mapping[str, int]) -> None:
    model = Path(config.model.path)
    shape = orjson.loads((model / "config.json").read_bytes())
    tokenizer = model / "tokenizer.json"
    manifest: dict[str, Any] = {
        "run_id": new_run_id(config.run.name),
        "name": config.run.name,
        "created_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seed": config.run.seed,
        "model_path": str(model),
        "model_revision": model_revision(model),
        "vocab_size": shape.get("vocab_size"),
        "tokenizer_sha256": sha256(tokenizer) if tokenizer.exists() else None,
        "template_sha256": _template_sha256(model),
        "pack_path": config.tasks.pack,
        "pack_sha256": sha256(run.pack),
        "tasks": splits,
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
