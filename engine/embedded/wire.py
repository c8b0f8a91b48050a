"""The JSON of `/generate`: validation of requests, construction of replies (SGLang's field names throughout)."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from engine.embedded.sampling import SamplingParams
from engine.embedded.sequence import Sequence
from engine.embedded.text import Text

_NEUTRAL: dict[str, object] = {
    "n": 1,
    "beam_width": 1,
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "repetition_penalty": 1,
    "stop_regex": None,
    "json_schema": None,
    "regex": None,
    "ebnf": None,
    "structural_tag": None,
    "spaces_between_special_tokens": True,
    "logit_bias": None,
    "watermark": False,
    "top_logprobs_num": 0,
    "token_ids_logprob": None,
    "return_text_in_logprobs": False,
    "return_hidden_states": False,
    "return_prompt_token_ids": False,
    "return_routed_experts": False,
    "return_sampling_mask": False,
    "return_entropy": False,
    "background": False,
}
"""SGLang fields that this server does not implement, and the one value besides null that asks for nothing."""

_MOST_STOPS = 32


class RequestError(Exception):
    """A request that cannot be served as it is: an HTTP status and a message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Body(BaseModel):
    """A strict JSON object; null means default, and unimplemented SGLang fields pass only when they ask for nothing."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    ignored: ClassVar[frozenset[str]]
    """SGLang fields without influence on what is sampled or answered; any value passes."""

    @model_validator(mode="before")
    @classmethod
    def _drop_neutral(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        kept = {}
        for key, item in value.items():
            if key in _NEUTRAL and item != _NEUTRAL[key] and item is not None:
                message = f"{key} is not supported by the embedded server"
                raise ValueError(message)
            if key not in _NEUTRAL and key not in cls.ignored and item is not None:
                kept[key] = item
        return kept


class SamplingBody(_Body):
    """`sampling_params`."""

    # SGLang's default sampler ignores the seed too; custom_params are for a logit processor, and there is none.
    ignored = frozenset({"sampling_seed", "custom_params", "stream_interval"})
    max_new_tokens: Annotated[int, Field(ge=1)] = 128
    min_new_tokens: Annotated[int, Field(ge=0)] = 0
    stop: str | list[str] = Field(default_factory=list)
    stop_token_ids: list[int] = Field(default_factory=list)
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=-1)] = -1
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    no_stop_trim: bool = False

    def params(self) -> SamplingParams:
        """The validated values; RequestError when they contradict one another."""
        stop = tuple(s for s in ([self.stop] if isinstance(self.stop, str) else self.stop) if s)
        if len(stop) > _MOST_STOPS:
            raise RequestError(400, f"stop holds {len(stop)} strings, at most {_MOST_STOPS} are allowed")
        if self.min_new_tokens > self.max_new_tokens:
            raise RequestError(400, f"min_new_tokens must be in [0, max_new_tokens({self.max_new_tokens})]")
        if self.top_k == 0:
            raise RequestError(400, "top_k must be -1 (disable) or at least 1, got 0.")
        values = self.model_dump(exclude={"stop", "stop_token_ids"})
        return SamplingParams(stop=stop, stop_token_ids=frozenset(self.stop_token_ids), **values)


class GenerateBody(_Body):
    """`POST /generate`: one prompt, or a batch of id lists that share everything else but rid and adapter."""

    ignored = frozenset(
        {
            *("priority", "extra_key", "cache_salt", "log_metrics", "no_logs", "custom_labels"),
            *("routing_key", "conversation_id", "session_id", "routed_dp_rank"),
        }
    )
    input_ids: list[int] | list[list[int]] | None = None
    text: str | list[str] | None = None
    sampling_params: SamplingBody = Field(default_factory=SamplingBody)
    rid: str | list[str] | None = None
    return_logprob: bool = False
    logprob_start_len: Annotated[int, Field(ge=-1)] = -1
    lora_path: str | list[str | None] | None = None
    stream: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestPrompt:
    """One prompt of a request."""

    rid: str
    ids: list[int]
    adapter: str | None


def parse_generate(raw: bytes) -> GenerateBody:
    """Validate a body; ValidationError for wrong types, RequestError is left to the meaning of the values."""
    return GenerateBody.model_validate_json(raw)


def error_json(error: ValidationError) -> dict[str, object]:
    """A 400's body: SGLang's plain shape for sampling parameters, its pydantic shape for the rest."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    message = f"{where}: {first['msg']}" if where else first["msg"]
    if first["loc"][:1] == ("sampling_params",):
        return {"error": {"message": message}}
    return {"object": "error", "message": message, "type": "BadRequestError", "param": None, "code": 400}


def prompts(body: GenerateBody, text: Text) -> tuple[list[RequestPrompt], bool]:
    """The prompts of a request, and whether it was a batch (answered by a list)."""
    ids, batch = _prompt_ids(body, text)
    rids = _spread(body.rid, len(ids), "rid") if isinstance(body.rid, list) else _rids(body.rid, len(ids), batch=batch)
    adapters = _spread(body.lora_path, len(ids), "lora_path")
    return [
        RequestPrompt(rid=r or _new_rid(), ids=i, adapter=a) for r, i, a in zip(rids, ids, adapters, strict=True)
    ], batch


def _prompt_ids(body: GenerateBody, text: Text) -> tuple[list[list[int]], bool]:
    if (body.input_ids is None) == (body.text is None):
        raise RequestError(400, "Either text or input_ids should be provided, and not both.")
    if body.text is not None:
        batch = isinstance(body.text, list)
        return [text.encode(t) for t in (body.text if isinstance(body.text, list) else [body.text])], batch
    given: list[Any] = body.input_ids or []
    batch = bool(given) and isinstance(given[0], list)
    ids = given if batch else [given]
    if not all(ids):
        raise RequestError(400, "input_ids cannot be empty.")
    return ids, batch


def _new_rid() -> str:
    return uuid.uuid4().hex


def _rids(rid: str | None, count: int, *, batch: bool) -> list[str | None]:
    """In a batch one string is only a prefix."""
    if rid is None:
        return [None] * count
    return [f"{rid}_{i}" for i in range(count)] if batch else [rid]


def _spread(value: str | list[str] | list[str | None] | None, count: int, name: str) -> list[str | None]:
    if not isinstance(value, list):
        return [value] * count
    if len(value) != count:
        raise RequestError(400, f"The length of {name} ({len(value)}) does not match the batch size ({count}).")
    return list(value)


def generate_reply(sequence: Sequence, text: Text, *, logprobs: bool) -> dict[str, object]:
    """SGLang's reply for one prompt, complete or (streaming) so far."""
    finish, output = sequence.finish, sequence.output()
    meta: dict[str, object] = {
        "id": sequence.rid,
        "finish_reason": None if finish is None else finish.as_json(sequence.params.max_new_tokens),
        "prompt_tokens": sequence.prompt_tokens,
        "completion_tokens": len(output),
        "cached_tokens": sequence.cached_tokens,
        "cached_tokens_details": {"device": sequence.cached_tokens, "host": 0},
        "reasoning_tokens": 0,
        "num_retractions": 0,
        "dp_rank": None,
        "weight_version": "default",
        "lora_path": sequence.adapter,
        "e2e_latency": time.monotonic() - sequence.received_s,
    }
    if logprobs:
        count = len(output)
        meta["output_token_logprobs"] = list(zip(sequence.logprobs[:count], output, [None] * count, strict=True))
        meta["output_token_logprobs_length"] = count
        meta["input_token_logprobs"] = _input_logprobs(sequence)
    return {"text": text.decode(output, sequence.params, finish), "output_ids": output, "meta_info": meta}


def _input_logprobs(sequence: Sequence) -> list[tuple[float | None, int, None]]:
    """Triples from `logprob_start_len` on; the first has no log-probability, as in SGLang."""
    start = sequence.prompt_logprob_start
    if start is None:
        return []
    values = [None, *sequence.prompt_logprobs]
    ids = sequence.ids[start : sequence.prompt_tokens]
    return [(value, id_, None) for value, id_ in zip(values, ids, strict=False)]
