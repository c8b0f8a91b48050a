"""Continuous batching: which requests run, which tokens they run this step, and what becomes of them.

Runs in the model thread only, in inference mode. Invariants:

- **no preemption**: a request is admitted when its worst case (prompt + max_new_tokens, rounded to a size class) fits
  the token budget beside all others; the prefix cache gives way, running requests never do.
- **no loss**: a request is in the queue or running until it has ended, whatever fails; `fail_all` ends those that
  a failure may have touched.
- **no stall**: prompts are read at most `PREFILL_TOKENS` a step, beside one token of every decoding row.
- **no double work**: of several requests that open alike, one reads the prompt and the others wait one step for it.
"""

from __future__ import annotations

import math
import time
from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.embedded.decoder import Decoder
from engine.embedded.lora import Adapter
from engine.embedded.plan import StepPlan, Work, plan_step
from engine.embedded.sampling import draw_tokens
from engine.embedded.sequence import ABORTED, Finish, FinishKind, Sequence
from engine.embedded.text import Text

PREFILL_TOKENS = 1024
_SHARED_START = 16
_LOGIT_TILE = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLimits:
    """How much runs at once; `kv_tokens` bounds running rows and the prefix cache together."""

    max_running: int
    kv_tokens: int


@dataclass(slots=True, kw_only=True)
class ServerGauges:
    """Numbers that other threads read; each is replaced whole."""

    running: int = 0
    waiting: int = 0
    used_tokens: int = 0
    """Tokens of running requests alone: what is cached gives way to them."""
    generated_tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    busy_s: float = 0.0
    last_token_s: float = -math.inf
    """When the last token was drawn, on time.monotonic."""


class BatchScheduler:
    """The waiting and running requests of one decoder."""

    def __init__(self, decoder: Decoder, text: Text, limits: BatchLimits, seed: int) -> None:
        self._decoder = decoder
        self._text = text
        self._limits = limits
        self._pool = decoder.new_pool(limits.kv_tokens)
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._reserved = 0
        self._generator = torch.Generator().manual_seed(seed)
        self.gauges = ServerGauges()

    def __repr__(self) -> str:
        return f"<Scheduler {len(self._running)} running, {len(self._waiting)} waiting, {self._pool!r}>"

    @property
    def has_work(self) -> bool:
        """Whether a step would do something."""
        return bool(self._running or self._waiting)

    def add(self, sequence: Sequence) -> None:
        """Queue a validated request whose adapter is installed."""
        self._waiting.append(sequence)
        self._measure()

    def install(self, load_id: int, adapter: Adapter) -> None:
        """Serve a new adapter from the next step on."""
        self._decoder.install(load_id, adapter)

    def remove(self, load_id: int) -> None:
        """Forget an adapter that no request uses, and what it cached."""
        self._decoder.remove(load_id)
        self._pool.cache.drop(load_id)

    def flush(self) -> bool:
        """Empty the prefix cache; False (and nothing done) while requests are running or waiting."""
        if self.has_work:
            return False
        self._pool.cache.clear()
        self._measure()
        return True

    def abort(self, rid: str | None) -> list[Sequence]:
        """End one request, or all (None); partial output is kept. Returns those that ended."""
        ended = [s for s in (*self._waiting, *self._running) if rid is None or s.rid == rid]
        for sequence in ended:
            sequence.finish = ABORTED
            self._release(sequence)
        self._drop_finished()
        return ended

    def fail_all(self, message: str) -> list[Sequence]:
        """End every running request with an error and start from empty caches (theirs may be half written).

        Those that had ended when something failed, and nobody was told, keep their end."""
        ended = [*self._running, *(s for s in self._waiting if s.finish is not None)]
        for sequence in ended:
            sequence.finish = sequence.finish or Finish(kind=FinishKind.ERROR, message=message)
            sequence.row = None
        self._reserved = 0
        self._pool = self._decoder.new_pool(self._limits.kv_tokens)
        self._drop_finished()
        return ended

    def step(self) -> list[Sequence]:
        """Run one forward pass; returns the requests that ended, and the streaming ones that advanced."""
        started = time.perf_counter()
        self._admit()
        if not self._running:
            return []
        works = self._works()
        advanced = self._run(works, plan_step(works, self._pool.active()))
        told = [s for s in advanced if s.finish is not None or s.stream]
        for sequence in advanced:
            if sequence.finish is not None:
                self._release(sequence)
        broken = {s.load_id for s in told if s.finish is not None and s.finish.kind is FinishKind.ERROR}
        for load_id in broken:
            self._pool.cache.drop(load_id)
            self._pool.scrub()
        self._drop_finished()
        self.gauges.busy_s += time.perf_counter() - started
        return told

    def _admit(self) -> None:
        budget = PREFILL_TOKENS
        reading = {s.shared_start for s in self._running if s.shared_start is not None} if self._waiting else set()
        deferred: list[Sequence] = []
        try:
            while self._waiting and budget > 0 and len(self._running) < self._limits.max_running:
                sequence = self._waiting[0]
                limit = sequence.prompt_tokens - 1
                if sequence.prompt_logprob_start is not None:
                    limit = min(limit, sequence.prompt_logprob_start)
                found, parts = self._pool.cache.match(sequence.load_id, sequence.ids, limit)
                start = (sequence.load_id, found, tuple(sequence.ids[found : found + _SHARED_START]))
                if start in reading and limit > found:
                    deferred.append(self._waiting.popleft())
                    continue
                worst = self._pool.row_tokens(sequence.most_tokens)
                if self._reserved + worst > self._limits.kv_tokens:
                    break
                self._reserved += worst
                # Running from here on: were it still waiting when its start fails, it would be tried without end.
                self._running.append(self._waiting.popleft())
                self._start(sequence, found, parts)
                # The siblings of a prompt that is mostly new follow: it is shared as soon as it is read.
                if 2 * found < sequence.prompt_tokens:
                    sequence.shared_start = start
                    reading.add(start)
                budget -= sequence.prompt_tokens - found
        finally:
            self._waiting.extendleft(reversed(deferred))

    def _start(self, sequence: Sequence, found: int, parts: list[Tensor]) -> None:
        row = self._pool.open(found + 1)
        for part in parts:
            self._pool.write(row, part)
        sequence.row = row
        sequence.cached_tokens = found
        self.gauges.prompt_tokens += sequence.prompt_tokens
        self.gauges.cached_tokens += found

    def _works(self) -> list[Work]:
        """The tokens of every running row in this step: all rows get at least one, prompts share the budget."""
        self._running.sort(key=lambda s: s.load_id)
        budget = PREFILL_TOKENS
        works = []
        for sequence in self._running:
            row = sequence.row
            assert row is not None
            start = row.length
            count = len(sequence.ids) - start
            if count > 1:
                count = max(1, min(count, budget))
                budget -= count
            self._pool.grow(row, start + count)
            works.append(Work(row, sequence.load_id, sequence.ids[start : start + count]))
        return works

    def _run(self, works: list[Work], plan: StepPlan) -> list[Sequence]:
        """Forward, draw and record; returns the requests that got a token (or failed)."""
        drawing: list[Sequence] = []
        wanted: list[int] = []
        prompts: list[tuple[Sequence, int, int]] = []
        for sequence, work, flat in zip(self._running, works, plan.starts, strict=True):
            start, count = work.row.length, len(work.tokens)
            if start + count == len(sequence.ids):
                drawing.append(sequence)
                wanted.append(flat + count - 1)
            if sequence.prompt_logprob_start is not None and start < sequence.prompt_tokens - 1:
                first = max(start, sequence.prompt_logprob_start)
                last = min(start + count, sequence.prompt_tokens - 1)
                prompts.append((sequence, first, last))
                wanted.extend(range(flat + first - start, flat + last - start))
        hidden = self._decoder.forward(plan, torch.tensor(wanted, dtype=torch.int64))
        for work in works:
            work.row.length += len(work.tokens)
        for sequence in self._running:
            self._share_prompt(sequence)
        self._record_prompts(prompts, hidden[len(drawing) :])
        if drawing:
            self._draw(drawing, self._decoder.logits(hidden[: len(drawing)]))
        return drawing

    def _record_prompts(self, prompts: list[tuple[Sequence, int, int]], hidden: Tensor) -> None:
        """Log-probabilities (T = 1) of prompt tokens, a tile of rows at a time: no `[prompt, vocabulary]` tensor."""
        at = 0
        for sequence, first, last in prompts:
            for start in range(first, last, _LOGIT_TILE):
                stop = min(last, start + _LOGIT_TILE)
                tile = self._decoder.logits(hidden[at : at + stop - start]).log_softmax(-1)
                following = torch.tensor(sequence.ids[start + 1 : stop + 1])
                sequence.prompt_logprobs.extend(tile.gather(1, following[:, None])[:, 0].tolist())
                at += stop - start

    def _draw(self, drawing: list[Sequence], logits: Tensor) -> None:
        for row, sequence in enumerate(drawing):
            if len(sequence.logprobs) < sequence.params.min_new_tokens and sequence.stop_ids:
                logits[row, list(sequence.stop_ids)] = -torch.inf
        draws = draw_tokens(logits, [s.params for s in drawing], self._generator)
        for sequence, token, logprob, finite in zip(drawing, draws.tokens, draws.logprobs, draws.finite, strict=True):
            if not finite:
                message = f"the model's logits for request {sequence.rid} are not finite; its adapter is unusable"
                sequence.finish = Finish(kind=FinishKind.ERROR, message=message)
                continue
            sequence.ids.append(token)
            sequence.logprobs.append(logprob)
            sequence.finish = self._finish(sequence, token)
            self.gauges.last_token_s = time.monotonic()
        self.gauges.generated_tokens += len(drawing)

    def _finish(self, sequence: Sequence, token: int) -> Finish | None:
        """Stop strings before stop tokens before the length: SGLang's order."""
        params = sequence.params
        if params.stop:
            matched = self._text.find_stop(sequence.output(), params.stop)
            if matched is not None:
                return Finish(kind=FinishKind.STOP, matched=matched)
        if token in sequence.stop_ids:
            return Finish(kind=FinishKind.STOP, matched=token)
        if len(sequence.logprobs) >= params.max_new_tokens:
            return Finish(kind=FinishKind.LENGTH)
        return None

    def _share_prompt(self, sequence: Sequence) -> None:
        row = sequence.row
        if sequence.shared_start is not None and row is not None and row.length >= sequence.prompt_tokens:
            sequence.shared_start = None
            self._pool.remember(sequence.load_id, sequence.ids[: sequence.prompt_tokens], row, leaving=False)

    def _release(self, sequence: Sequence) -> None:
        """Give a running request's place back; what it computed goes to the prefix cache."""
        row = sequence.row
        if row is None:
            return
        self._reserved -= self._pool.row_tokens(sequence.most_tokens)
        if sequence.finish is None or sequence.finish.kind is not FinishKind.ERROR:
            self._pool.remember(sequence.load_id, sequence.ids[: row.length], row, leaving=True)
        self._pool.close(row)
        sequence.row = None

    def _drop_finished(self) -> None:
        self._running = [s for s in self._running if s.finish is None]
        if any(s.finish is not None for s in self._waiting):
            self._waiting = deque(s for s in self._waiting if s.finish is None)
        if not self._running or self._pool.used > self._limits.kv_tokens:
            self._pool.active()
        self._measure()

    def _measure(self) -> None:
        self.gauges.running = len(self._running)
        self.gauges.waiting = len(self._waiting)
        self.gauges.used_tokens = sum(s.row.length for s in self._running if s.row is not None)
