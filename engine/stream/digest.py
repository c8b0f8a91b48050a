"""The hash of a transcript: equal for two episodes in which the same was said, done and seen.

Times, servers and log-probabilities are no part of it.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import orjson

from engine.types import Episode


def transcript_sha256(episode: Episode) -> str:
    """SHA-256 over the canonical JSON of messages, events and token ids, as a frame records them."""
    ids = None if episode.tokens is None else episode.tokens.ids
    return sha256(as_recorded({"messages": episode.messages, "events": episode.events, "ids": ids})).hexdigest()


def as_recorded(value: Any) -> bytes:
    """The canonical JSON of a part of an episode: the same before it was written and after it was read.

    Raises TypeError for what no frame can hold."""
    return orjson.dumps(value, default=dict, option=orjson.OPT_SORT_KEYS | orjson.OPT_SERIALIZE_NUMPY)
