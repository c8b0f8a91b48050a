"""One request's state, written by the model thread and read by the event loop after each update."""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import StrEnum

import anyio

from engine.embedded.kv import KvRow
from engine.embedded.sampling import SamplingParams


class FinishKind(StrEnum):
    """Why a request ended; the values of SGLang's `finish_reason.type`, and an error that becomes HTTP 500."""

    STOP = "stop"
    """An end-of-sequence token, a stop token or a stop string."""
    LENGTH = "length"
    """`max_new_tokens` were generated."""
    ABORT = "abort"
    """Somebody aborted it; the partial output is kept."""
    ERROR = "error"
    """The server failed on it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """The end of a request; `matched` is the token id or string that stopped it."""

    kind: FinishKind
    matched: int | str | None = None
    message: str = ""

    def as_json(self, max_new_tokens: int) -> dict[str, object]:
        """SGLang's `finish_reason`."""
        match self.kind:
            case FinishKind.STOP:
                return {"type": "stop", "matched": self.matched}
            case FinishKind.LENGTH:
                return {"type": "length", "length": max_new_tokens}
            case FinishKind.ABORT | FinishKind.ERROR:
                return {"type": "abort", "message": self.message, "status_code": None, "err_type": None}


SharedStart = tuple[int, int, tuple[int, ...]]
"""Load id, cached prefix length and the next tokens: what requests that will share a prompt have in common."""

ABORTED = Finish(kind=FinishKind.ABORT, message="Aborted")


class Sequence:
    """Prompt, output so far and place in the KV pool.

    The model thread only appends to the lists; the event loop reads `output` up to a length it took first."""

    __slots__ = (
        "adapter",
        "cached_tokens",
        "changed",
        "finish",
        "ids",
        "load_id",
        "logprobs",
        "params",
        "prompt_logprob_start",
        "prompt_logprobs",
        "prompt_tokens",
        "received_s",
        "rid",
        "row",
        "shared_start",
        "stop_ids",
        "stream",
    )

    def __init__(self, rid: str, prompt: list[int], load_id: int, params: SamplingParams) -> None:
        self.rid = rid
        self.ids = prompt.copy()
        self.prompt_tokens = len(prompt)
        self.load_id = load_id
        self.adapter: str | None = None
        self.params = params
        self.stop_ids: frozenset[int] = frozenset()
        self.stream = False
        self.prompt_logprob_start: int | None = None
        self.prompt_logprobs: list[float] = []
        self.logprobs: list[float] = []
        self.cached_tokens = 0
        self.shared_start: SharedStart | None = None
        self.row: KvRow | None = None
        self.finish: Finish | None = None
        self.received_s = time.monotonic()
        self.changed = anyio.Event()

    def __repr__(self) -> str:
        return f"<Sequence {self.rid}: {self.prompt_tokens} + {len(self.logprobs)} tokens, {self.finish}>"

    @property
    def most_tokens(self) -> int:
        """Tokens that can ever hold keys and values."""
        return self.prompt_tokens + self.params.max_new_tokens

    def output(self) -> list[int]:
        """The generated ids that have a log-probability already."""
        return self.ids[self.prompt_tokens : self.prompt_tokens + len(self.logprobs)]
