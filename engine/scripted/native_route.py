"""`POST /generate` of the scripted endpoint: SGLang's request and reply, for one text or a batch of them."""

from __future__ import annotations

import uuid
from typing import Literal, Self, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, model_validator

from engine.scripted.calls import BadRequestError, Item, Loose, ScriptedOutput, ScriptedRequest, token_count, validated
from engine.scripted.players import find_document
from engine.types import Json

_DEFAULT_NEW_TOKENS = 128
"""SGLang's, where the request does not say."""
_OTHER_SAMPLING = frozenset(
    {
        *("min_new_tokens", "stop", "stop_token_ids", "stop_regex", "temperature", "top_p", "top_k", "min_p"),
        *("frequency_penalty", "presence_penalty", "repetition_penalty", "n", "beam_width", "regex", "ebnf"),
        *("structural_tag", "ignore_eos", "skip_special_tokens", "spaces_between_special_tokens", "no_stop_trim"),
        *("stream_interval", "logit_bias", "sampling_seed", "custom_params", "watermark"),
    }
)
"""What SGLang takes besides the fields below; anything else is a 400 there, and so here."""

_Value = TypeVar("_Value")


class _Sampling(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="allow")

    max_new_tokens: int | None = None
    json_schema: str | None = None

    @model_validator(mode="after")
    def _known(self) -> Self:
        for name in sorted(set(self.model_extra or ()) - _OTHER_SAMPLING):
            raise ValueError(f"Unexpected keyword argument '{name}'")
        if self.json_schema is not None and not isinstance(orjson.loads(self.json_schema), dict):
            raise ValueError("json_schema is the text of a JSON object")
        return self


class _Generate(Loose):
    text: str | list[str]
    sampling_params: _Sampling | list[_Sampling] = Field(default_factory=_Sampling)
    rid: str | list[str] | None = None
    stream: Literal[False] | None = None


def native_call(raw: bytes, *, structured: bool) -> ScriptedRequest:
    """Understand a body.

    Raises RequestError for a body that SGLang would refuse, and for JSON schemas unless `structured`."""
    body = validated(_Generate, raw)
    batch = isinstance(body.text, list)
    prompts = body.text if isinstance(body.text, list) else [body.text]
    sampling = _spread(body.sampling_params, len(prompts), "sampling_params")
    if not structured and any(params.json_schema is not None for params in sampling):
        raise BadRequestError("json_schema is not supported: the grammar backend is none")
    items = [
        Item.of(prompt, find_document(prompt), limit=params.max_new_tokens or _DEFAULT_NEW_TOKENS, rid=rid)
        for prompt, params, rid in zip(prompts, sampling, _rids(body.rid, len(prompts), batch=batch), strict=True)
    ]
    return ScriptedRequest(items, _replies if batch else lambda outputs: _reply(outputs[0]))


def _rids(given: str | list[str] | None, count: int, *, batch: bool) -> list[str]:
    if given is None:
        return [uuid.uuid4().hex for _ in range(count)]
    # In a batch one string is only a prefix.
    return [f"{given}_{i}" for i in range(count)] if batch and isinstance(given, str) else _spread(given, count, "rid")


def _spread(value: _Value | list[_Value], count: int, name: str) -> list[_Value]:
    if not isinstance(value, list):
        return [value] * count
    if len(value) != count:
        raise BadRequestError(f"The length of {name} ({len(value)}) does not match the batch size ({count}).")
    return value


def _replies(outputs: list[ScriptedOutput]) -> Json:
    return [_reply(said) for said in outputs]


def _reply(said: ScriptedOutput) -> dict[str, Json]:
    stopped = {"type": "stop", "matched": 0}
    meta = {
        "id": said.item.rid,
        "finish_reason": stopped if said.finish == "stop" else {"type": "length", "length": said.item.limit},
        "prompt_tokens": token_count(said.item.prompt),
        "completion_tokens": token_count(said.text),
        "cached_tokens": 0,
    }
    return {"text": said.text, "meta_info": meta}
