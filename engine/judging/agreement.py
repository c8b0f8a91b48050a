"""How far a judge and executable checks agree, and how far the judge agrees with itself: numbers from verdicts.

An interval counts a decision (on one item of one transcript) once, however often it was repeated and however many
episodes went that way, and less where whole tasks agree or disagree: verdicts on one task resemble each other.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import NamedTuple

import orjson

from engine.judging.repeats import Judged
from engine.reward.rubric import OpenItem, checked, rubric_items
from engine.types import Verdict

_Z95 = 1.96


class VerdictPair(NamedTuple):
    """A check's verdict and a judge's, on the same item of the same episode."""

    judged: Judged
    open: OpenItem
    check: Verdict
    judge: Verdict
    decision: bytes
    """What was decided: the same for all repeats, and for episodes of a task that went the same way."""

    @property
    def agrees(self) -> bool:
        """Whether they say the same; what they point at may differ."""
        return self.check.met == self.judge.met


class Agreement(NamedTuple):
    """Of a set of verdicts."""

    verdicts: int
    both: int
    """That say met (of a forbidden act: violated)."""
    check_only: int
    judge_only: int
    neither: int
    low: float
    """Of the 95 % interval."""
    high: float

    @property
    def share(self) -> float:
        """How many agree."""
        return (self.both + self.neither) / self.verdicts

    @property
    def kappa(self) -> float | None:
        """Cohen's: agreement beyond what chance gives; None where chance alone gives all of it."""
        check, judge = self.both + self.check_only, self.both + self.judge_only
        chance = (check * judge + (self.verdicts - check) * (self.verdicts - judge)) / self.verdicts**2
        return None if chance == 1 else (self.share - chance) / (1 - chance)


class Disagreement(NamedTuple):
    """An item, by id and text, on which its check and the judge disagree."""

    first: VerdictPair
    """The first disagreement, to be looked at."""
    differ: int
    verdicts: int


class Spread(NamedTuple):
    """The reward of one episode over the repeats."""

    judged: Judged
    mean: float
    deviation: float


def pairs(judged: Sequence[Judged]) -> list[VerdictPair]:
    """Every verdict of the judge on an item that has a check."""
    found = []
    for one in judged:
        record = one.record
        checks = {(verdict.part, verdict.id): verdict for verdict in checked(record)}
        went = blake2b(orjson.dumps([one.task.id, record.messages, record.events, record.stop]), digest_size=16)
        for repeat in sorted(one.rewards):
            for entry, verdict in zip(rubric_items(one.task.rubric), one.rewards[repeat].items, strict=True):
                if (check := checks.get((entry.part, entry.item.id))) is not None:
                    decision = went.digest() + f"{entry.part} {entry.item.id}".encode()
                    found.append(VerdictPair(one, entry, check, verdict, decision))
    return found


def agreement(found: Sequence[VerdictPair]) -> Agreement:
    """What pairs, at least one, say together."""
    says = Counter((pair.check.met, pair.judge.met) for pair in found)
    low, high = _interval(found)
    return Agreement(
        verdicts=len(found),
        both=says[True, True],
        check_only=says[True, False],
        judge_only=says[False, True],
        neither=says[False, False],
        low=low,
        high=high,
    )


def _interval(found: Sequence[VerdictPair]) -> tuple[float, float]:
    """Wilson's 95 % interval of the agreement, for as many independent verdicts as there are in effect."""
    share = sum(pair.agrees for pair in found) / len(found)
    tasks: dict[str, list[bool]] = defaultdict(list)
    for pair in found:
        tasks[pair.judged.task.id].append(pair.agrees)
    count = float(len({pair.decision for pair in found}))
    if len(tasks) > 1:
        squares = sum((sum(agrees) - share * len(agrees)) ** 2 for agrees in tasks.values())
        variance = len(tasks) / (len(tasks) - 1) * squares / len(found) ** 2
        if variance:
            count = min(count, share * (1 - share) / variance)
    scale = 1 + _Z95**2 / count
    middle = share + _Z95**2 / (2 * count)
    half = _Z95 * math.sqrt(share * (1 - share) / count + _Z95**2 / (4 * count**2))
    return (middle - half) / scale, (middle + half) / scale


def disagreements(found: Sequence[VerdictPair]) -> list[Disagreement]:
    """Items on which they disagree, those with most disagreements first; the same item of several tasks is one."""
    grouped: dict[tuple[str, str, str], list[VerdictPair]] = defaultdict(list)
    for pair in found:
        grouped[pair.open.part, pair.open.item.id, pair.open.item.text].append(pair)
    wrong = [
        Disagreement(first=differ[0], differ=len(differ), verdicts=len(group))
        for group in grouped.values()
        if (differ := [pair for pair in group if not pair.agrees])
    ]
    return sorted(wrong, key=lambda item: -item.differ)


def spreads(judged: Sequence[Judged]) -> list[Spread]:
    """Mean and standard deviation of the rewards of every episode that was judged at least twice."""
    found = []
    for one in judged:
        values = [reward.value for reward in one.rewards.values()]
        if len(values) > 1:
            found.append(Spread(one, statistics.fmean(values), statistics.stdev(values)))
    return found


def wavering(judged: Sequence[Judged]) -> tuple[int, int]:
    """Decisions (an item of an episode) that changed over the repeats, and all that were made at least twice."""
    changed = total = 0
    for one in judged:
        if len(one.rewards) > 1:
            for verdicts in zip(*(reward.items for reward in one.rewards.values()), strict=True):
                total += 1
                changed += len({verdict.met for verdict in verdicts}) > 1
    return changed, total


def by_version(found: Sequence[Spread], bins: int) -> Iterator[tuple[str, list[Spread]]]:
    """Spreads by the adapter version that played, at most `bins` ranges of versions, each with its name."""
    versions = [spread.judged.episode.version for spread in found]
    if not versions:
        return
    first, last = min(versions), max(versions)
    width = math.ceil((last - first + 1) / bins)
    for start in range(first, last + 1, width):
        end = min(last, start + width - 1)
        inside = [spread for spread, version in zip(found, versions, strict=True) if start <= version <= end]
        if inside:
            yield (f"v{start}" if start == end else f"v{start} to v{end}"), inside
