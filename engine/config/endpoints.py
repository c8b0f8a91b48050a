"""`[endpoints.NAME]`: a language model that plays users, tools or judges; and what every SGLang of a run has."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from engine.config.keys import Modes, Section, key

_STARTED: Modes = {"launch": "sglang"}
_NATIVE: Modes = {"api": "sglang"}
_MILLION = 1_000_000
Mode = Literal["json_schema", "json_object_schema", "json_object", "prompt"]
"""How replies are made JSON, the strictest way first."""
ENDPOINT_NAME = r"^[a-z][a-z0-9_-]{0,30}$"


class SglangSection(Section):
    """An SGLang that the run starts, where `launch` says so."""

    launch: str = key("none", "Who starts the server")
    sglang: str = key(
        "auto",
        "SGLang's virtual environment, or a command that takes launch_server's flags; auto: the environment that "
        "`synth-engine install-sglang` made",
        only_if=_STARTED,
        resumable=True,
    )
    device: Literal["auto", "cuda", "cpu"] = key(
        "auto", "Where SGLang computes; auto: on the GPUs if there are any", only_if=_STARTED, resumable=True
    )
    gpus: tuple[Annotated[int, Field(ge=0)], ...] = key(
        (), "GPUs that serve, by index; empty: all that nobody else names", only_if=_STARTED, resumable=True
    )
    tensor_parallel: int = key(1, "GPUs of each server", ge=1, only_if=_STARTED, resumable=True)
    memory_fraction: Annotated[float, Field(gt=0, lt=1)] | Literal["auto"] = key(
        "auto",
        "Share of a GPU's memory for weights and KV cache; auto: SGLang's choice, or what a learner on it leaves",
        only_if=_STARTED,
        resumable=True,
    )
    flags: str = key("", "More flags for sglang.launch_server; they win over ours", only_if=_STARTED, resumable=True)


class EndpointSection(SglangSection):
    """One language model that simulators and judges may name."""

    launch: Literal["none", "sglang"] = key("none", "none: use `url`; sglang: start an SGLang for it", resumable=True)
    url: str = key(
        "",
        "Base URL, without /v1",
        pattern=r"^(https?://.+)?$",
        only_if={"launch": "none"},
        resumable=True,
    )
    api: Literal["openai", "sglang"] = key(
        "openai", "openai: POST /v1/chat/completions; sglang: batches to SGLang's native POST /generate"
    )
    model: str = key(
        "",
        "The model: the name that the server knows it by, or (api or launch = sglang) its directory or its id on the "
        "Hugging Face hub, whose chat template is used",
    )
    api_key_env: str = key(
        "",
        "Environment variable that holds the API key; empty: none is sent",
        only_if={"launch": "none"},
        resumable=True,
    )
    structured: Literal["auto", Mode] = key(
        "auto",
        "How replies are made JSON: by a schema that the server enforces (OpenAI's way, or llama.cpp's), as some JSON "
        "object, or by asking for it; auto: the first of them that the server accepts",
        only_if={"api": "openai"},
        resumable=True,
    )
    temperature: float = key(0.0, "Sampling temperature; a reply that is refused is sampled again at 0.7 or more", ge=0)
    max_tokens: int = key(512, "Sampled tokens of one reply", ge=1)
    timeout_s: float = key(60.0, "How long one attempt may take", gt=0, resumable=True)
    retries: int = key(
        4, "Attempts after one that failed (no answer, 5xx, 429), with jitter and Retry-After", ge=0, resumable=True
    )
    concurrency: int = key(64, "Calls in flight at once", ge=1, resumable=True)
    requests_per_minute: float = key(0.0, "Most requests of a minute; 0: no limit", ge=0, resumable=True)
    batch: int = key(32, "Most calls of one request", ge=1, only_if=_NATIVE, resumable=True)
    batch_wait_s: float = key(
        0.02, "How long the first call of a batch waits for others", ge=0, only_if=_NATIVE, resumable=True
    )
    input_price: float = key(0.0, "Money per million prompt tokens, for the account", ge=0, resumable=True)
    output_price: float = key(0.0, "Money per million sampled tokens, for the account", ge=0, resumable=True)
    start_s: float = key(
        600.0, "How long it may take to get ready before the run gives up", gt=0, only_if=_STARTED, resumable=True
    )
    threads: int = key(1, "Threads of a server that computes on the CPU", ge=1, only_if=_STARTED, resumable=True)
    context_tokens: int = key(16_384, "Prompt and reply of one call, at most", ge=256, only_if=_STARTED, resumable=True)

    @model_validator(mode="after")
    def _complete(self) -> EndpointSection:
        if self.launch == "none" and not self.url:
            raise ValueError("it has no url: give the server's, or set launch = 'sglang'")
        if not self.model and self.has_model_directory:
            raise ValueError("it has no model: name its directory or its id on the Hugging Face hub")
        return self

    @property
    def has_model_directory(self) -> bool:
        """Whether `model` is a directory or an id on the hub; otherwise it is a name that the server knows."""
        return self.launch == "sglang" or self.api == "sglang"

    @property
    def priced(self) -> bool:
        """Whether tokens have a price."""
        return self.input_price > 0 or self.output_price > 0

    def money(self, prompt_tokens: int, completion_tokens: int) -> float:
        """What these tokens cost."""
        return (prompt_tokens * self.input_price + completion_tokens * self.output_price) / _MILLION

    @property
    def batch_size(self) -> int:
        """Most calls of one request; a chat completion is one call."""
        return self.batch if self.api == "sglang" else 1
