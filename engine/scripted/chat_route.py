"""`POST /v1/chat/completions` of the scripted endpoint: OpenAI's request and reply."""

from __future__ import annotations

import uuid
from functools import partial
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from engine.scripted.calls import BadRequestError, Item, Loose, ScriptedOutput, ScriptedRequest, token_count, validated
from engine.scripted.players import find_document
from engine.types import Json


class _Message(Loose):
    role: str
    content: str


class _Schema(Loose):
    name: str
    body: dict[str, Any] = Field(alias="schema")


class _Format(Loose):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: _Schema | None = None

    @model_validator(mode="after")
    def _schema_given(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema stands in a response_format of that type, and only there")
        return self


class _Chat(Loose):
    model: str
    messages: list[_Message] = Field(min_length=1)
    response_format: _Format | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stream: Literal[False] | None = None


def chat_call(raw: bytes, *, structured: bool) -> ScriptedRequest:
    """Understand a body; the document is in the last user message that has one.

    Raises RequestError for a body that a server would refuse, and for JSON schemas unless `structured`."""
    body = validated(_Chat, raw)
    if body.response_format is not None and body.response_format.type == "json_schema" and not structured:
        raise BadRequestError("response_format: type 'json_schema' is not supported by this server")
    users = [message.content for message in body.messages if message.role == "user"]
    document = next(filter(None, map(find_document, reversed(users))), None)
    prompt = "\n".join(message.content for message in body.messages)
    limit = body.max_completion_tokens or body.max_tokens
    item = Item.of(prompt, document, limit=limit, rid=f"chatcmpl-{uuid.uuid4().hex}")
    return ScriptedRequest([item], partial(_reply, body.model))


def _reply(model: str, outputs: list[ScriptedOutput]) -> Json:
    (said,) = outputs
    prompt, completion = token_count(said.item.prompt), token_count(said.text)
    message = {"role": "assistant", "content": said.text}
    return {
        "id": said.item.rid,
        "object": "chat.completion",
        "created": 0,
        "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": said.finish}],
        "usage": {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion},
    }
