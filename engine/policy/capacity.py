"""What a policy server says about its size, against what a run needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.errors import ConfigError, RunError

_REMEDIES = {
    "max_total_num_tokens": "raise the server's KV cache (policy.kv_tokens, or --max-total-tokens where it is started)",
    "context_length": "serve a model with a longer context",
}
"""Numbers of `/server_info` that bound one episode, and what makes each larger."""


def adapter_slots(url: str, info: Mapping[str, Any]) -> int:
    """How many adapters a server can hold at once.

    Raises RunError if it does not serve adapters."""
    count = info.get("max_loaded_loras") or info.get("max_loras_per_batch")
    if info.get("enable_lora") is False or not isinstance(count, int) or count < 2:
        raise RunError(f"{url} holds {count!r} adapters; start it with --enable-lora --max-loaded-loras N")
    return count


def refuse_small(url: str, info: Mapping[str, Any], tokens: int) -> None:
    """Raise ConfigError if a server that says its size cannot hold an episode of `tokens`."""
    for name, remedy in _REMEDIES.items():
        room = info.get(name)
        if isinstance(room, int) and room < tokens:
            raise ConfigError(
                f"{url} holds {room} tokens ({name}), an episode has up to limits.tokens = {tokens}: "
                f"{remedy}, or lower limits.tokens to {room}"
            )
