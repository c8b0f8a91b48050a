"""The keys that metrics.jsonl has for language models that play users, tools and judges, and for the tools' mapping.

Counts since the start of the process, like those of engine.telemetry.engine_metrics. Those of an endpoint bear its
name, `endpoint.sim/requests_count`, those of a part the part's, `judge/replies_count`. A key is declared when a run
first has it, or asked for with a placeholder as its name (engine.telemetry.names).
"""

from __future__ import annotations

from collections.abc import Mapping

from engine.telemetry.metrics import declare

ENDPOINT: Mapping[str, str] = {
    "requests_count": "Requests sent, second attempts included",
    "calls_count": "Prompts answered",
    "retries_count": "Requests that were made again",
    "failed_count": "Calls without an answer after all attempts",
    "abandoned_count": "Requests given up on the way, because nobody waited for the answer any more",
    "prompt_tokens_count": "Prompt tokens of what was answered",
    "completion_tokens_count": "Sampled tokens of what was answered",
    "cost_money": "What these tokens cost, by the endpoint's prices",
}
ENDPOINT_NOW: Mapping[str, str] = {
    "waiting_count": "Prompts that wait for their batch now",
    "batch_wait_p50_s": "Median seconds that the newest 512 prompts waited for their batch",
    "batch_wait_p99_s": "99th percentile of these",
}
FAULTS: Mapping[str, str] = {
    "timeout": "no answer in time",
    "reset": "the connection broke",
    "busy": "429 or 503",
    "error": "another 5xx, or 408",
    "garbage": "an answer that is none",
    "refused": "another 4xx: making it again is of no use",
}
PART: Mapping[str, str] = {
    "asked_count": "Questions",
    "recorded_count": "Questions that the journal answered",
    "replies_count": "Replies of the model",
    "given_up_count": "Questions without an acceptable reply: simulator faults",
    "prompt_tokens_count": "Prompt tokens of the replies",
    "completion_tokens_count": "Sampled tokens of the replies",
    "cost_money": "What these tokens cost, by the endpoint's prices",
}
PARTS = ("tool", "user", "judge")
"""What is played."""
MAPPING: Mapping[str, str] = {
    "exact": "by an entry for the very call",
    "seeded": "by the task",
    "equivalent": "by an entry that means the same, as a model said",
    "simulated": "by the tool simulator",
}


def endpoint_key(name: str, what: str) -> str:
    """The key of a count of ENDPOINT."""
    return declare(f"endpoint.{name}/{what}", _unit(what), ENDPOINT[what], "counter")


def endpoint_now_key(name: str, what: str) -> str:
    """The key of a figure of ENDPOINT_NOW."""
    return declare(f"endpoint.{name}/{what}", "s" if what.endswith("_s") else "1", ENDPOINT_NOW[what])


def batch_key(name: str, size: int | str) -> str:
    """The key of an endpoint's batches of up to `size` prompts, and more than half of it."""
    return declare(f"endpoint.{name}/batch_{size}_count", "1", "Batches of up to so many prompts", "counter")


def fault_key(name: str, kind: str) -> str:
    """The key of an endpoint's requests that failed in one way."""
    return declare(f"endpoint.{name}/fault_{kind}_count", "1", f"Requests that failed: {FAULTS[kind]}", "counter")


def part_key(part: str, what: str) -> str:
    """The key of a count of PART."""
    return declare(f"{part}/{what}", _unit(what), PART[what], "counter")


def refused_key(part: str, kind: str) -> str:
    """The key of a part's replies that broke their contract in one way."""
    meaning = f"Replies that were refused, and asked for again: {kind}"
    return declare(f"{part}/refused_{kind}_count", "1", meaning, "counter")


def mapping_key(how: str) -> str:
    """The key of the calls that the mapping answered in one way."""
    return declare(f"mapping/{how}_count", "1", f"Tool calls answered {MAPPING[how]}", "counter")


def _unit(what: str) -> str:
    return "money" if what.endswith("_money") else "1"
