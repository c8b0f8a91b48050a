"""Reads the JSON files of a model or adapter directory: any as an object, and the stop tokens that they name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson

from engine.errors import ConfigError

MODEL_CONFIG = "config.json"


def read_object(path: Path) -> dict[str, Any]:
    """Returns the JSON object in `path`.

    Raises ConfigError that names the file if it is missing, cannot be read, or holds something else."""
    try:
        value = orjson.loads(path.read_bytes())
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); a model is a directory in Hugging Face format"
        ) from error
    except orjson.JSONDecodeError as error:
        raise ConfigError(f"{path}: not valid JSON ({error}); copy or download it again") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: not a JSON object; copy or download it again")
    return value


def read_config(model: Path) -> dict[str, Any]:
    """Returns the config.json of a model directory.

    Raises ConfigError as `read_object` does."""
    return read_object(model / MODEL_CONFIG)


def stop_token_ids(model: Path, token_id: Callable[[str], int | None]) -> tuple[int, ...]:
    """Returns the ids that end a turn, each once: those of generation_config.json, of config.json, and of the
    tokenizer's `eos_token` (looked up by `token_id`), as SGLang does; empty if no file names one.

    Raises ConfigError for a file that is there and is no JSON object, and for an id that is none."""
    return tuple(dict.fromkeys(_declared(model, token_id)))


def _declared(model: Path, token_id: Callable[[str], int | None]) -> Iterator[int]:
    for path in (model / "generation_config.json", model / MODEL_CONFIG):
        value = read_object(path).get("eos_token_id") if path.exists() else None
        for number in value if isinstance(value, list) else [] if value is None else [value]:
            if not isinstance(number, int) or number < 0:
                raise ConfigError(f"{path}: eos_token_id = {value!r} must be a token id or a list of token ids")
            yield number
    path = model / "tokenizer_config.json"
    token = read_object(path).get("eos_token") if path.exists() else None
    content = token.get("content") if isinstance(token, dict) else token
    if content and (found := token_id(str(content))) is not None:
        yield found
