"""Check on the gauges: the two budgets held in every recorded row."""

from __future__ import annotations

from engine.audit.check import AuditFinding, RunRecords
from engine.telemetry import engine_metrics as keys
from engine.types import EpisodeGroup


class Budgets:
    """*Staleness is held by admission*: admitted - trained - dropped never passes the group budget."""

    def __init__(self, recorded: RunRecords) -> None:
        self._recorded = recorded

    def see(self, group: EpisodeGroup) -> None:
        """Nothing: this is about metrics.jsonl."""

    def finding(self) -> AuditFinding:
        """Rows over a budget."""
        config = self._recorded.config
        violations = []
        over = 0
        for row in self._recorded.rows:
            if not row[keys.EPISODES_STARTED]:
                # An engine that just started counts what the stream holds, and has not heard yet what the learner freed
                # of it. It admitted none of that: the budget is about what it admits.
                continue
            outstanding = row[keys.GROUPS_ADMITTED] - row[keys.GROUPS_TRAINED] - row[keys.GROUPS_DROPPED]
            if outstanding > config.group_budget or row[keys.EPISODES_LIVE] > config.max_live:
                over += 1
                violations.append(
                    f"at {row[keys.RUN_S]:.0f} s: {outstanding} groups outstanding (budget {config.group_budget}), "
                    f"{row[keys.EPISODES_LIVE]} episodes live (at most {config.max_live})"
                )
        return AuditFinding(
            name="budget_rows_over",
            promise=f"at most {config.group_budget} groups outstanding, {config.max_live} episodes live",
            checked=f"{len(self._recorded.rows)} rows",
            violations=violations[:3],
            count=over,
        )
