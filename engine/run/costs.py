"""What language models were asked, answered and cost, and how the tools' mapping found its answers: a metrics row."""

from __future__ import annotations

from collections.abc import Iterator

from engine.llm.asking import FAULTS, Tally
from engine.llm.endpoint import Endpoint
from engine.run.simulators import Models
from engine.telemetry import simulator_metrics as keys
from engine.world.mapping import MappingCounts

Row = dict[str, float | int]


def account(models: Models, mapping: MappingCounts | None) -> Row:
    """The counts since the start; of faults and refusals those that occurred. Empty for a run without endpoints."""
    if not models.endpoints:
        return {}
    row: Row = {}
    for endpoint in models.endpoints.values():
        row |= _endpoint(endpoint)
    for part, tally, endpoint in _parts(models):
        row |= _part(part, tally, endpoint)
    if mapping is not None:
        row |= {keys.mapping_key(how): count for how, count in mapping._asdict().items()}
    return row


def _endpoint(endpoint: Endpoint) -> Row:
    name, counted = endpoint.name, endpoint.account
    row: Row = {
        keys.endpoint_key(name, "requests_count"): counted.requests,
        keys.endpoint_key(name, "calls_count"): counted.calls,
        keys.endpoint_key(name, "retries_count"): counted.retries,
        keys.endpoint_key(name, "failed_count"): counted.failed,
        keys.endpoint_key(name, "abandoned_count"): counted.abandoned,
        keys.endpoint_key(name, "prompt_tokens_count"): counted.prompt_tokens,
        keys.endpoint_key(name, "completion_tokens_count"): counted.completion_tokens,
    }
    waits = (len(endpoint.queue), *endpoint.queue.waits.quantiles_s(0.5, 0.99))
    row |= {keys.endpoint_now_key(name, what): value for what, value in zip(keys.ENDPOINT_NOW, waits, strict=True)}
    row |= {keys.batch_key(name, size): count for size, count in sorted(endpoint.queue.batches.items())}
    row |= {keys.fault_key(name, kind): count for kind, count in counted.faults.items()}
    if endpoint.settings.priced:
        cost = endpoint.settings.money(counted.prompt_tokens, counted.completion_tokens)
        row[keys.endpoint_key(name, "cost_money")] = cost
    return row


def _parts(models: Models) -> Iterator[tuple[str, Tally, Endpoint]]:
    """Every part that is played; each has one endpoint."""
    for part in FAULTS:
        for name, asker in models.askers.items():
            if asker.tallies[part].asked:
                yield part, asker.tallies[part], models.endpoints[name]


def _part(part: str, tally: Tally, endpoint: Endpoint) -> Row:
    row: Row = {
        keys.part_key(part, "asked_count"): tally.asked,
        keys.part_key(part, "recorded_count"): tally.recorded,
        keys.part_key(part, "replies_count"): tally.replies,
        keys.part_key(part, "given_up_count"): tally.given_up,
        keys.part_key(part, "prompt_tokens_count"): tally.prompt_tokens,
        keys.part_key(part, "completion_tokens_count"): tally.completion_tokens,
    }
    row |= {keys.refused_key(part, kind): count for kind, count in tally.refused.items()}
    if endpoint.settings.priced:
        row[keys.part_key(part, "cost_money")] = endpoint.settings.money(tally.prompt_tokens, tally.completion_tokens)
    return row
