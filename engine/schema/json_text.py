"""The JSON object in what a language model wrote."""

from __future__ import annotations

import json
import re
from typing import Any

import orjson

_THOUGHT = re.compile(r"^.*?</think>", re.DOTALL)


def parsed(text: str) -> dict[str, Any] | None:
    """The first JSON object in `text`, whatever stands around it (a thought, a fence, a sentence); None without one."""
    text = _THOUGHT.sub("", text, count=1).strip()
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        value = _embedded(text)
    return value if isinstance(value, dict) else None


def _embedded(text: str) -> Any:
    start = text.find("{")
    if start < 0:
        return None
    try:
        # NaN and its like are no JSON, though this decoder would take them.
        value, _ = json.JSONDecoder(parse_constant=_refused).raw_decode(text, start)
    except (ValueError, RecursionError):
        return None
    return value


def _refused(constant: str) -> Any:
    raise ValueError(constant)
