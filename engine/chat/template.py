"""A model's own chat template and special tokens, read from its directory without transformers.

The template runs in jinja2's immutable sandbox with what transformers offers to it (trimmed blocks, `tojson`,
`raise_exception`, loop controls), except the clock: the same messages always render to the same text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from engine.errors import ConfigError
from engine.modeldir.files import read_object
from engine.types import ChatMessage

_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatTemplate:
    """The compiled template of one model."""

    source: str
    place: Path
    tokens: Mapping[str, str]
    """bos_token, eos_token, pad_token and unk_token, where the model has them."""
    compiled: Template

    @classmethod
    def load(cls, model: Path) -> ChatTemplate:
        """Read and compile it.

        Raises ConfigError if the model has none, or jinja2 refuses it."""
        settings = read_object(model / "tokenizer_config.json")
        tokens = {name: _content(settings[name]) for name in _TOKENS if settings.get(name)}
        file = model / "chat_template.jinja"
        source = file.read_text(encoding="utf-8") if file.exists() else _default(settings.get("chat_template"))
        if not source:
            raise ConfigError(
                f"{model}: no chat template in tokenizer_config.json or chat_template.jinja; use a chat model"
            )
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            autoescape=False,  # the output is tokens, not HTML
            extensions=["jinja2.ext.loopcontrols"],
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise
        try:
            compiled = environment.from_string(source)
        except TemplateError as error:
            raise ConfigError(f"{model}: its chat template does not compile: {error}") from error
        return cls(source=source, place=model, tokens=tokens, compiled=compiled)

    def render(self, messages: Sequence[ChatMessage], tools: Sequence[Mapping[str, Any]]) -> str:
        """The text of a conversation up to the assistant's next words; thinking is off where a model has it.

        Raises ConfigError if the template refuses the messages."""
        try:
            return self.compiled.render(
                messages=messages,
                tools=tools or None,
                add_generation_prompt=True,
                enable_thinking=False,
                **self.tokens,
            )
        except TemplateError as error:
            raise ConfigError(f"{self.place}: its chat template refuses the conversation: {error}") from error


def _content(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token)


def _default(template: Any) -> str:
    """The template of a tokenizer_config.json, which may name several."""
    if isinstance(template, list):
        named = {entry["name"]: entry["template"] for entry in template}
        template = named.get("tool_use", named.get("default"))
    return template or ""


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _tojson(value: Any, *, indent: int | None = None, ensure_ascii: bool = False, sort_keys: bool = False) -> str:
    """Not jinja2's own, which escapes for HTML."""
    return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii, sort_keys=sort_keys)
