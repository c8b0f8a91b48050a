"""What the clients of policy servers and of language models share: pauses between attempts, and quoting a reply."""

from __future__ import annotations

import random

_EXCERPT_BYTES = 300


def backoff_s(attempt: int, first_s: float, longest_s: float) -> float:
    """Returns the seconds to pause after attempt 0, 1, ... has failed: twice as long each time, up to `longest_s`.

    Of that between a half and all, so that many that failed together do not come again together."""
    return min(first_s * 2.0**attempt, longest_s) * random.uniform(0.5, 1.0)


def excerpt(content: bytes) -> str:
    """Returns the beginning of a reply as text for an error message, whatever bytes it holds."""
    return content[:_EXCERPT_BYTES].decode("utf-8", "replace")
