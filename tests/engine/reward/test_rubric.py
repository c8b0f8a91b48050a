"""R = F · (N + I) / 2, its parts, and what becomes of items that code cannot decide."""

from collections.abc import Sequence
from typing import Any

import pytest

from engine.core.seams import ScoringRecord
from engine.errors import RewardError
from engine.reward.rubric import OpenItem, RubricScorer, reward
from engine.types import Event, StopReason, Verdict
from tests.engine.reward.test_checks import EVENTS, called
from tests.parts.worlds import shop, task_json


def record(events: Sequence[Event], **changes: Any) -> ScoringRecord:
    """What a scorer sees of an episode with these events."""
    return ScoringRecord(task=shop(**changes), messages=[], events=events, final_state={}, stop=StopReason.ANSWER)


class ScriptedJudge:
    """Decides every open item the same way, or fails to."""

    def __init__(self, met: bool | None) -> None:
        self.met = met
        self.asked: list[list[str]] = []

    async def decide(self, items: Sequence[OpenItem], record: ScoringRecord) -> Sequence[Verdict]:
        """One verdict per item; none at all where the script has none."""
        self.asked.append([entry.item.id for entry in items])
        if self.met is None:
            return []
        return [Verdict(id=entry.item.id, part=entry.part, met=self.met, by="judge") for entry in items]


@pytest.mark.parametrize(
    ("events", "value", "parts"),
    [
        (EVENTS, 1.0, (1.0, 1.0, 1.0)),
        (EVENTS[1:], 0.5, (1.0, 1.0, 0.0)),
        (EVENTS[:-1], 0.75, (1.0, 0.5, 1.0)),
        ([*EVENTS, called(5, "rush_order", item="x")], 0.0, (0.0, 1.0, 1.0)),
        ([], 0.0, (1.0, 0.0, 0.0)),
    ],
)
async def test_the_reward_and_its_parts(events: list[Event], value: float, parts: tuple[float, ...]) -> None:
    """F gates, N and I are averaged; doing nothing earns 0."""
    made = await RubricScorer().score(record(events))
    assert made.value == value
    assert parts == (made.F, made.N, made.I)
    assert [verdict.id for verdict in made.items] == ["rushed", "ordered", "told", "asked"]


async def test_verdicts_point_at_their_evidence() -> None:
    """A met item names the event that decided it."""
    made = await RubricScorer().score(record(EVENTS))
    assert {verdict.id: verdict.evidence for verdict in made.items} == {
        "rushed": None,
        "ordered": 3,
        "told": 4,
        "asked": 0,
    }


@pytest.mark.parametrize("absent", ["subgoals", "interactions"])
async def test_an_absent_part_does_not_count(absent: str) -> None:
    """Without interactions R = F · N, without subgoals R = F · I."""
    rubric = {name: items for name, items in task_json()["rubric"].items() if name != absent}
    made = await RubricScorer().score(record(EVENTS[:-1], rubric=rubric))
    assert made.value == (1.0 if absent == "subgoals" else 0.5)


def test_no_items_is_no_reward() -> None:
    """A rubric that nothing can miss gives no reward at all."""
    with pytest.raises(RewardError, match="no reward"):
        reward([Verdict(id="f", part="forbidden", met=False)])


OPEN = {
    "subgoals": [
        {"id": "kind", "text": "was kind"},
        {"id": "told", "text": "", "check": {"answered": {"matches": "47"}}},
    ]
}


@pytest.mark.parametrize(("met", "value"), [(True, 1.0), (False, 0.5)])
async def test_open_items_go_to_the_judge_together(met: bool, value: float) -> None:
    """One call decides every item without a check, and only those."""
    judge = ScriptedJudge(met)
    made = await RubricScorer(judge).score(record(EVENTS, rubric=OPEN))
    assert (made.value, judge.asked) == (value, [["kind"]])
    assert [verdict.by for verdict in made.items] == ["judge", "check"]


@pytest.mark.parametrize("judge", [None, ScriptedJudge(None)])
async def test_an_undecided_item_leaves_the_episode_unscored(judge: ScriptedJudge | None) -> None:
    """No judge, or one that does not decide: unscored, never 0."""
    with pytest.raises(RewardError, match="kind"):
        await RubricScorer(judge).score(record(EVENTS, rubric=OPEN))
