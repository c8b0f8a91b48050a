"""R = F · (N + I) / 2 from a rubric: items with a check are decided by code, the others by a judge.

An item that nobody decides makes the episode unscored (RewardError), never 0 (invariant *trusted-reward*). The same
function scores live episodes and recorded ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, Protocol

from engine.core.seams import ScoringRecord
from engine.errors import RewardError
from engine.reward.checks import comparable, evaluate_check
from engine.task import Rubric, RubricItem
from engine.types import Reward, Verdict

RubricPart = Literal["forbidden", "subgoal", "interaction"]


class OpenItem(NamedTuple):
    """A rubric item and its part, as a judge is asked about it."""

    item: RubricItem
    part: RubricPart


class Judge(Protocol):
    """Decides the rubric items that code cannot."""

    async def decide(self, items: Sequence[OpenItem], record: ScoringRecord) -> Sequence[Verdict]:
        """One verdict per item, in one call.

        Raises RewardError after its own retries."""
        ...


def rubric_items(rubric: Rubric) -> Iterator[OpenItem]:
    """Every item with the part it belongs to, in the order in which rewards list them."""
    for item in rubric.forbidden:
        yield OpenItem(item, "forbidden")
    for item in rubric.subgoals:
        yield OpenItem(item, "subgoal")
    for item in rubric.interactions:
        yield OpenItem(item, "interaction")


def open_items(rubric: Rubric) -> list[OpenItem]:
    """Those that have no check."""
    return [entry for entry in rubric_items(rubric) if entry.item.check is None]


def checked(record: ScoringRecord) -> list[Verdict]:
    """What the checks say of an episode: a verdict on every item that has one."""
    events = comparable(record.task, record.events)
    verdicts = []
    for item, part in rubric_items(record.task.rubric):
        if item.check is not None:
            met, evidence = evaluate_check(item.check, events)
            verdicts.append(Verdict(id=item.id, part=part, met=met, evidence=evidence))
    return verdicts


def reward(verdicts: Sequence[Verdict]) -> Reward:
    """The reward that verdicts add up to.

    Without interactions R = F · N, without subgoals R = F · I; the absent part is 1 in the breakdown."""
    violated = any(verdict.met for verdict in verdicts if verdict.part == "forbidden")
    gate = 0.0 if violated else 1.0
    subgoals, interactions = _fraction(verdicts, "subgoal"), _fraction(verdicts, "interaction")
    present = [fraction for fraction in (subgoals, interactions) if fraction is not None]
    if not present:
        raise RewardError("a rubric without subgoals and interactions has no reward")
    return Reward(
        value=gate * sum(present) / len(present),
        F=gate,
        N=1.0 if subgoals is None else subgoals,
        I=1.0 if interactions is None else interactions,
        items=tuple(verdicts),
    )


def _fraction(verdicts: Sequence[Verdict], part: RubricPart) -> float | None:
    met = [verdict.met for verdict in verdicts if verdict.part == part]
    return sum(met) / len(met) if met else None


class RubricScorer:
    """Scores an episode by its task's rubric."""

    def __init__(self, judge: Judge | None = None) -> None:
        self._judge = judge

    async def score(self, record: ScoringRecord) -> Reward:
        """Decide every item and add up.

        Raises RewardError where an item stays undecided."""
        verdicts = checked(record)
        undecided = open_items(record.task.rubric)
        if undecided:
            decided = {(verdict.part, verdict.id): verdict for verdict in verdicts}
            decided |= await self._judged(undecided, record)
            verdicts = [decided[part, item.id] for item, part in rubric_items(record.task.rubric)]
        return reward(verdicts)

    async def _judged(self, undecided: list[OpenItem], record: ScoringRecord) -> dict[tuple[RubricPart, str], Verdict]:
        named = ", ".join(entry.item.id for entry in undecided)
        if self._judge is None:
            raise RewardError(f"task {record.task.id}: no check and no judge decides {named}")
        verdicts = {(verdict.part, verdict.id): verdict for verdict in await self._judge.decide(undecided, record)}
        if verdicts.keys() != {(entry.part, entry.item.id) for entry in undecided}:
            raise RewardError(f"task {record.task.id}: the judge did not decide exactly {named}")
        return verdicts
