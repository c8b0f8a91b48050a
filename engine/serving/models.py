"""The base models of policy and endpoints: found once, before anything starts, and handed to everyone as directories in
Hugging Face format.

`tiny` is the shipped model. What exists as a directory is that directory. `owner/name` and `owner/name@revision` (a
branch, a tag or a commit) are models of the Hugging Face hub: they are pinned to a commit, and only what is needed of
them is downloaded, into the hub library's cache; a second use downloads nothing, and an offline one is served from
there. Login, mirror and cache are the hub library's own settings (`hf auth login`, HF_ENDPOINT, HF_HOME).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from engine.config.load import ASSETS
from engine.config.tree import Config
from engine.errors import ConfigError

_CHUNK_BYTES = 1 << 20
_POLICY = "model.path"
_HUB_ID = re.compile(r"(\w[\w.-]*/[\w.-]+)(?:@(\S+))?", re.ASCII)
_FILES = [
    "config.json", "generation_config.json", "tokenizer*", "chat_template*", "special_tokens_map.json",
    "added_tokens.json", "vocab*", "merges.txt",
]  # fmt: skip
_WEIGHTS = ["model*.safetensors", "model.safetensors.index.json"]
_NOT = ["*/*"]
"""Directories of a repository hold other formats and checkpoints (the hub's patterns let `*` match a slash)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """Where a base model lies, and where it came from."""

    path: Path
    hub_id: str | None = None
    hub_commit: str | None = None
    """The commit that the revision meant when it was resolved, 40 hex digits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPaths:
    """Every model of a configuration that is needed here."""

    policy: Model
    endpoints: Mapping[str, Model]
    """By name; an endpoint that knows its model by a name of its own has none."""

    def into(self, config: Config) -> Config:
        """`config` with the directories in place of what it named."""
        moved = {
            name: config.endpoints[name].model_copy(update={"model": str(model.path)})
            for name, model in self.endpoints.items()
        }
        base = config.model.model_copy(update={"path": str(self.policy.path)})
        return config.model_copy(update={"model": base, "endpoints": {**config.endpoints, **moved}})


def find_models(config: Config) -> ModelPaths:
    """The models of policy and endpoints, as find_model finds each; of one that runs elsewhere, without the weights.

    Raises ConfigError that names the key."""
    endpoints = {
        name: find_model(endpoint.model, endpoint_key(name), weights=endpoint.launch == "sglang")
        for name, endpoint in config.endpoints.items()
        if endpoint.has_model_directory
    }
    return ModelPaths(policy=find_model(config.model.path), endpoints=endpoints)


def endpoint_key(name: str) -> str:
    """The key that names an endpoint's model."""
    return f"endpoints.{name}.model"


def find_model(name: str, key: str = _POLICY, *, weights: bool = True) -> Model:
    """The model that `key` names: `tiny`, a directory, or a hub id, which is downloaded (progress on a terminal).

    Raises ConfigError, with the remedy, if there is no such model."""
    path = ASSETS / "tiny-model" if name == "tiny" else Path(name)
    if not path.is_dir() and (hub := _HUB_ID.fullmatch(name)):
        return download(hub[1], hub[2], key=key, weights=weights)
    if not (path / "config.json").is_file():
        raise ConfigError(
            f"{key}: {path} is no model directory (it has no config.json); give the path of one, "
            "or the id of a model on the Hugging Face hub, such as Qwen/Qwen3-4B"
        )
    return Model(path=path.resolve())


def download(
    hub_id: str,
    revision: str | None,
    *,
    key: str = _POLICY,
    weights: bool = True,
    endpoint: str | None = None,
    cache: Path | None = None,
) -> Model:
    """A model of the hub (default: of huggingface.co, or the mirror at `endpoint`) as a directory below `cache`.

    Raises ConfigError, with `key` and the remedy, if the hub does not give it or cannot be reached and the cache lacks
    it."""
    # The hub library takes longer to import than a command that needs no download takes to start.
    import httpx2  # noqa: PLC0415
    from huggingface_hub import errors, snapshot_download  # noqa: PLC0415

    named = f"{key}: {hub_id}@{revision}" if revision else f"{key}: {hub_id}"
    wanted = _FILES + _WEIGHTS if weights else _FILES
    try:
        path = snapshot_download(
            hub_id, revision=revision, endpoint=endpoint, cache_dir=cache, allow_patterns=wanted, ignore_patterns=_NOT
        )
    except errors.GatedRepoError as error:
        raise ConfigError(
            f"{named} is gated: accept its terms on its page of the hub, then log in with `hf auth login`"
        ) from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise ConfigError(
            f"{named} is neither a directory here nor a model that the hub shows you: check the spelling, "
            "or log in with `hf auth login` if it is private"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ConfigError(f"{named}: the model has no such revision; name a branch, a tag or a commit") from error
    except errors.LocalEntryNotFoundError as error:
        raise ConfigError(
            f"{named} is no directory here, the hub cannot be reached for it, and its cache has no whole copy: go "
            f"online (`hf download {hub_id}` fills the cache), or give the path of a directory"
        ) from error
    except httpx2.HTTPError as error:
        raise ConfigError(
            f"{named}: the download broke off ({_first_line(error)}); the same command goes on where it stopped"
        ) from error
    found = Path(path)
    if weights and not any(found.glob("*.safetensors")):
        raise ConfigError(f"{named} has no weights in safetensors format; use a model that has")
    return Model(path=found, hub_id=hub_id, hub_commit=found.name)


def model_revision(model: Path) -> str:
    """sha256 over the names and contents of configuration and weights: one id for exactly these weights."""
    digest = hashlib.sha256()
    for path in (model / "config.json", *sorted(model.glob("*.safetensors"))):
        digest.update(f"{path.name}:{sha256(path)}\n".encode())
    return digest.hexdigest()


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
