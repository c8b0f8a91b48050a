"""Compares a run's pack and base model with what manifest.json pinned when the run was made."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from engine.chat.chat_format import ChatFormat
from engine.rundir.layout import RunDir, read_json
from engine.serving.models import model_revision, sha256

_Fact = tuple[str, str, str]
"""What is compared in words, its sha256 now, and the key of manifest.json that has the sha256 of before."""


def changed_pack(run: RunDir) -> list[str]:
    """Returns a sentence if the run's copy of its pack is another one now."""
    return _changed(run, [(str(run.pack), sha256(run.pack), "pack_sha256")])


def changed_text(run: RunDir, model: Path, chat: ChatFormat) -> list[str]:
    """Returns a sentence for each of tokenizer and chat template that is another one in the directory `model`."""
    tokenizer = (f"the tokenizer of {model}", chat.tokenizer_sha256, "tokenizer_sha256")
    return _changed(run, [tokenizer, (f"the chat template of {model}", chat.template_sha256, "template_sha256")])


def changed_weights(run: RunDir, model: Path) -> list[str]:
    """Returns a sentence if configuration or weights in the directory `model` are others; reads all of them."""
    return _changed(run, [(f"the model {model} (config.json and weights)", model_revision(model), "model_revision")])


def _changed(run: RunDir, facts: Iterable[_Fact]) -> list[str]:
    manifest = read_json(run.manifest) or {}
    return [
        f"{what} is not what the run began with: sha256 {found}, manifest.json has {manifest.get(name)}"
        for what, found, name in facts
        if found != manifest.get(name)
    ]
