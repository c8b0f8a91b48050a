"""What language models were asked, answered and cost, and how the tools' mapping found its answers: a metrics row."""

from __future__ import annotations

from collections.abc import Iterator

from engine.llm.asking import ROLE_ERRORS, Tally
from engine.llm.endpoint import Endpoint
from engine.run.models import SimulatorModels
from engine.telemetry import simulator_metrics as keys
from engine.telemetry.metrics import MetricRow, key_with
from engine.world.mapping import MappingCounts


def account(models: SimulatorModels, mapping: MappingCounts | None) -> MetricRow:
    """The counts since the start; of faults and refusals those that occurred. Empty for a run without endpoints."""
    if not models.endpoints:
        return {}
    row: MetricRow = {}
    for endpoint in models.endpoints.values():
        row |= _endpoint(endpoint)
    for part, tally, endpoint in _parts(models):
        row |= _part(part, tally, endpoint)
    if mapping is not None:
        row |= {keys.MAPPING[how]: count for how, count in mapping._asdict().items()}
    return row


def _endpoint(endpoint: Endpoint) -> MetricRow:
    counted, queue = endpoint.account, endpoint.queue
    batch_wait_p50_s, batch_wait_p99_s = queue.waits.quantiles_s(0.5, 0.99)
    row: MetricRow = {
        keys.REQUESTS: counted.requests,
        keys.CALLS: counted.calls,
        keys.RETRIES: counted.retries,
        keys.FAILED: counted.failed,
        keys.ABANDONED: counted.abandoned,
        keys.PROMPT_TOKENS: counted.prompt_tokens,
        keys.COMPLETION_TOKENS: counted.completion_tokens,
        keys.WAITING: len(queue),
        keys.BATCH_WAIT_P50: batch_wait_p50_s,
        keys.BATCH_WAIT_P99: batch_wait_p99_s,
        **{key_with(keys.BATCHES, size=size): n for size, n in sorted(queue.batches.items())},
        **{keys.FAULT_COUNTS[kind]: count for kind, count in counted.faults.items()},
    }
    if endpoint.settings.priced:
        row[keys.COST] = endpoint.settings.money(counted.prompt_tokens, counted.completion_tokens)
    return {key_with(key, endpoint=endpoint.name): value for key, value in row.items()}


def _parts(models: SimulatorModels) -> Iterator[tuple[str, Tally, Endpoint]]:
    """Every part that is played; each has one endpoint."""
    for part in ROLE_ERRORS:
        for name, asker in models.askers.items():
            if asker.tallies[part].asked:
                yield part, asker.tallies[part], models.endpoints[name]


def _part(part: str, tally: Tally, endpoint: Endpoint) -> MetricRow:
    mine = keys.PARTS[part]
    row: MetricRow = {
        mine.asked: tally.asked,
        mine.recorded: tally.recorded,
        mine.replies: tally.replies,
        mine.given_up: tally.given_up,
        mine.prompt_tokens: tally.prompt_tokens,
        mine.completion_tokens: tally.completion_tokens,
        **{key_with(mine.refused, kind=kind): count for kind, count in tally.refused.items()},
    }
    if endpoint.settings.priced:
        row[mine.cost] = endpoint.settings.money(tally.prompt_tokens, tally.completion_tokens)
    return row
