"""What the routes act on: accepting prompts, following them, and the numbers about the server."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio

from engine.embedded.adapters import LoadedAdapter, LoadedAdapters
from engine.embedded.decoder import Decoder
from engine.embedded.projection import BASE
from engine.embedded.sampling import SamplingParams
from engine.embedded.scheduler import BatchLimits, ServerGauges
from engine.embedded.sequence import Sequence
from engine.embedded.text import Text
from engine.embedded.wire import GenerateBody, RequestError, RequestPrompt, prompts
from engine.embedded.worker import Worker

_FRESH_S = 5.0
_LOOK_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The command line, resolved."""

    model: Path
    served_name: str
    max_queued: int
    limits: BatchLimits
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerParts:
    """The objects a server is made of."""

    decoder: Decoder
    text: Text
    worker: Worker
    adapters: LoadedAdapters
    gauges: ServerGauges


class PolicyServer:
    """Accepts validated bodies; lives in the event loop."""

    def __init__(self, settings: Settings, parts: ServerParts) -> None:
        self.settings = settings
        self.parts = parts
        self._live: dict[str, Sequence] = {}
        self._rate = (time.monotonic(), 0, 0.0)

    @property
    def live(self) -> int:
        """Requests accepted and not yet answered."""
        return len(self._live)

    @asynccontextmanager
    async def accepted(self, body: GenerateBody) -> AsyncIterator[tuple[list[Sequence], bool]]:
        """Queue a request's prompts for the time of the block; leaving it early (client gone) aborts them."""
        params = body.sampling_params.params()
        asked, batch = prompts(body, self.parts.text)
        self._check(asked, params, body)
        entries: list[LoadedAdapter | None] = []
        sequences: list[Sequence] = []
        try:
            for prompt in asked:
                entries.append(self.parts.adapters.acquire(prompt.adapter))
                sequences.append(self._sequence(prompt, entries[-1], params, body))
            for sequence in sequences:
                self._submit(sequence)
            yield sequences, batch
        finally:
            for sequence in sequences:
                self._live.pop(sequence.rid, None)
                if sequence.finish is None:
                    self.parts.worker.abort(sequence.rid)
            for entry in entries:
                self.parts.adapters.release(entry)

    async def alive(self) -> None:
        """Return once a token was drawn in the last few seconds; an idle server draws one for this.

        Anybody's token will do: behind a long queue one's own would come late."""
        if self._drew_lately():
            return
        async with anyio.create_task_group() as tg:
            tg.start_soon(self._generate_once)
            while not self._drew_lately():  # noqa: ASYNC110 - the model thread leaves a time, not an event
                await anyio.sleep(_LOOK_S)
            tg.cancel_scope.cancel()

    def _drew_lately(self) -> bool:
        return time.monotonic() - self.parts.gauges.last_token_s < _FRESH_S

    async def _generate_once(self) -> None:
        """One real token from the base model."""
        sequence = Sequence(f"health-{time.monotonic_ns()}", [0], BASE, SamplingParams(max_new_tokens=1))
        self._submit(sequence)
        try:
            await sequence.changed.wait()
        finally:
            self._live.pop(sequence.rid, None)
            if sequence.finish is None:
                self.parts.worker.abort(sequence.rid)

    def abort(self, rid: str | None) -> None:
        """Abort one live request (exact match; unknown ids are ignored) or all (None)."""
        if rid is None or rid in self._live:
            self.parts.worker.abort(rid)

    def load(self) -> dict[str, object]:
        """One rank's entry of `/v1/loads`."""
        gauges, limits = self.parts.gauges, self.settings.limits
        hits = gauges.cached_tokens / gauges.prompt_tokens if gauges.prompt_tokens else 0.0
        adapters = self.parts.adapters
        return {
            "dp_rank": 0,
            "timestamp": time.time(),
            "num_running_reqs": gauges.running,
            "num_waiting_reqs": max(0, self.live - gauges.running),
            "num_used_tokens": gauges.used_tokens,
            "num_total_tokens": gauges.used_tokens,
            "max_total_num_tokens": limits.kv_tokens,
            "token_usage": gauges.used_tokens / limits.kv_tokens,
            "gen_throughput": self._throughput(gauges.generated_tokens),
            "cache_hit_rate": hits,
            "max_running_requests": limits.max_running,
            "lora": {"slots_used": adapters.slots_used, "slots_total": adapters.limits.max_adapters},
        }

    def _throughput(self, generated: int) -> float:
        """Tokens/s since the last question at least a second ago."""
        asked_s, before, rate = self._rate
        now = time.monotonic()
        if now - asked_s >= 1:
            rate = (generated - before) / (now - asked_s)
            self._rate = (now, generated, rate)
        return rate

    def _check(self, asked: list[RequestPrompt], params: SamplingParams, body: GenerateBody) -> None:
        rids = [prompt.rid for prompt in asked]
        for rid in rids:
            if rid in self._live or rids.count(rid) > 1:
                raise RequestError(400, f"Duplicate request ID detected: {rid}")
        if self.live + len(asked) > self.settings.max_queued:
            raise RequestError(503, "The request queue is full.")
        if body.stream and len(asked) > 1:
            raise RequestError(400, "stream needs a single prompt on the embedded server")
        for prompt in asked:
            self._check_prompt(prompt, params, body)

    def _check_prompt(self, prompt: RequestPrompt, params: SamplingParams, body: GenerateBody) -> None:
        shape, count = self.parts.decoder.shape, len(prompt.ids)
        if count >= shape.context:
            message = f"The input ({count} tokens) is longer than the model's context length ({shape.context} tokens)."
            raise RequestError(400, message)
        total = count + params.max_new_tokens
        if total > shape.context:
            raise RequestError(
                400,
                f"Requested token count exceeds the model's maximum context length of {shape.context} tokens. You "
                f"requested a total of {total} tokens: {count} tokens from the input messages and "
                f"{params.max_new_tokens} tokens for the completion. Please reduce the number of tokens in the input "
                "messages or the completion to fit within the limit.",
            )
        if total > self.settings.limits.kv_tokens:
            message = f"{total} tokens do not fit the server's KV cache of {self.settings.limits.kv_tokens} tokens"
            raise RequestError(400, f"{message}; raise --max-total-tokens.")
        if min(prompt.ids) < 0 or max(prompt.ids) >= shape.vocabulary:
            raise RequestError(400, f"input_ids must lie between 0 and {shape.vocabulary - 1}.")
        if any(not 0 <= id_ < shape.vocabulary for id_ in params.stop_token_ids):
            raise RequestError(400, f"stop_token_ids must lie between 0 and {shape.vocabulary - 1}.")
        if body.return_logprob and body.logprob_start_len >= count:
            message = f"logprob_start_len ({body.logprob_start_len}) must be below the prompt's length ({count})"
            raise RequestError(400, message)

    def _sequence(
        self, prompt: RequestPrompt, entry: LoadedAdapter | None, params: SamplingParams, body: GenerateBody
    ) -> Sequence:
        sequence = Sequence(prompt.rid, prompt.ids, BASE if entry is None else entry.load_id, params)
        sequence.adapter = prompt.adapter
        sequence.stream = body.stream
        if not params.ignore_eos:
            sequence.stop_ids = params.stop_token_ids | self.parts.text.eos_ids
        if body.return_logprob and body.logprob_start_len >= 0:
            sequence.prompt_logprob_start = body.logprob_start_len
        return sequence

    def _submit(self, sequence: Sequence) -> None:
        self._live[sequence.rid] = sequence
        self.parts.worker.submit(lambda scheduler: scheduler.add(sequence))
