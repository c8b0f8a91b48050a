"""The keys that metrics.jsonl has for language models that play users, tools and judges, and for the tools' mapping.

Counts since the start of the process, like those of engine.telemetry.engine_metrics. Those of an endpoint bear its
name, `endpoint.sim/requests_count`, those of a part the part's, `judge/replies_count`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from engine.telemetry.metrics import MetricKind, declare


def _endpoint(what: str, meaning: str, kind: MetricKind = "counter", unit: str = "1") -> str:
    return declare(f"endpoint.<endpoint>/{what}", unit, meaning, kind)


REQUESTS = _endpoint("requests_count", "Requests sent, second attempts included")
CALLS = _endpoint("calls_count", "Prompts answered")
RETRIES = _endpoint("retries_count", "Requests that were made again")
FAILED = _endpoint("failed_count", "Calls without an answer after all attempts")
ABANDONED = _endpoint("abandoned_count", "Requests given up on the way, because nobody waited for the answer any more")
PROMPT_TOKENS = _endpoint("prompt_tokens_count", "Prompt tokens of what was answered")
COMPLETION_TOKENS = _endpoint("completion_tokens_count", "Sampled tokens of what was answered")
COST = _endpoint("cost_money", "What these tokens cost, by the endpoint's prices", unit="money")
WAITING = _endpoint("waiting_count", "Prompts that wait for their batch now", "gauge")
BATCH_WAIT_P50 = _endpoint(
    "batch_wait_p50_s", "Median seconds that the newest 512 prompts waited for their batch", "gauge", "s"
)
BATCH_WAIT_P99 = _endpoint("batch_wait_p99_s", "99th percentile of these", "gauge", "s")
BATCHES = _endpoint("batch_<size>_count", "Batches of up to so many prompts")
"""And more than half of it."""
_FAILURES = {
    "timeout": "no answer in time",
    "reset": "the connection broke",
    "busy": "429 or 503",
    "error": "another 5xx, or 408",
    "garbage": "an answer that is none",
    "refused": "another 4xx: making it again is of no use",
}
FAULT_COUNTS: Mapping[str, str] = {
    kind: _endpoint(f"fault_{kind}_count", f"Requests that failed: {meaning}") for kind, meaning in _FAILURES.items()
}
"""By the way in which a request failed."""


class PartKeys(NamedTuple):
    """The keys of what one part asked."""

    asked: str
    recorded: str
    replies: str
    given_up: str
    prompt_tokens: str
    completion_tokens: str
    cost: str
    refused: str


def _part(part: str) -> PartKeys:
    def count(what: str, meaning: str, unit: str = "1") -> str:
        return declare(f"{part}/{what}", unit, meaning, "counter")

    return PartKeys(
        asked=count("asked_count", "Questions"),
        recorded=count("recorded_count", "Questions that the journal answered"),
        replies=count("replies_count", "Replies of the model"),
        given_up=count("given_up_count", "Questions without an acceptable reply: simulator faults"),
        prompt_tokens=count("prompt_tokens_count", "Prompt tokens of the replies"),
        completion_tokens=count("completion_tokens_count", "Sampled tokens of the replies"),
        cost=count("cost_money", "What these tokens cost, by the endpoint's prices", "money"),
        refused=count("refused_<kind>_count", "Replies that were refused, and asked for again: <kind>"),
    )


PARTS: Mapping[str, PartKeys] = {part: _part(part) for part in ("tool", "user", "judge")}
"""By what is played."""
_ANSWERS = {
    "exact": "by an entry for the very call",
    "seeded": "by the task",
    "equivalent": "by an entry that means the same, as a model said",
    "simulated": "by the tool simulator",
}
MAPPING: Mapping[str, str] = {
    how: declare(f"mapping/{how}_count", "1", f"Tool calls answered {meaning}", "counter")
    for how, meaning in _ANSWERS.items()
}
"""By the way in which the mapping answered."""
