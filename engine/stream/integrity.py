"""Whether the streams of a run hold what its other files say there must be; what does not agree is a `Gap`.

Looked for in trajectories/ and eval/ are the groups that steps.jsonl and the newest checkpoint name as trained or
dropped, and as many as checkpoint and progress.json say were read, closed.json and evaluations.jsonl say were written.
What no file speaks of is not missed: a torn tail was never acknowledged. A live run may be looked at too: the records
are read before the streams, which only grow.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum

from engine.errors import IncompleteError, RunError
from engine.learnerdir import UNUSABLE
from engine.learnerdir.checkpoint import CheckpointState, read_checkpoint
from engine.learnerdir.counters import LearnerCounters
from engine.learnerdir.progress import read_progress
from engine.learnerdir.steps import TrainedStep, read_steps
from engine.rundir.layout import RunDir, read_json, read_lines
from engine.stream.closed import read_closed
from engine.stream.listing import Listing, header_id, position_id
from engine.stream.segment import CLOSED

_RANGES = 6
_NUMBER = re.compile(r"(.*?)(\d+)")


class RecordsPart(StrEnum):
    """A part of the records, by its directory."""

    TRAINING = "trajectories"
    EVALUATIONS = "eval"
    STEPS = "learner"


_STREAMS = (RecordsPart.TRAINING, RecordsPart.EVALUATIONS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """One way in which the records of a run contradict each other."""

    part: RecordsPart
    told: str
    """A sentence without its full stop: the file, what is wrong, how many groups and which."""
    groups: tuple[str, ...] = ()
    """Ids of the groups that are missing, as far as they are known."""
    count: int = 0
    """How many are missing."""
    twice: bool = False
    """The groups are there more than once; none is missing."""
    unused: bool = False
    """Only a closed.json knows of them: no step and no evaluation that is recorded used them."""


def gaps(run: RunDir, *, checksums: bool = False) -> list[Gap]:
    """Everything that does not agree; empty for a run that has recorded nothing yet.

    Segments that were closed are taken at the word of their footers; with `checksums` every frame is read, which takes
    about a second per GB. Raises RunError for a record that is not JSON or has another format."""
    promised = _Promised.read(run)
    training = Listing.read(run.trajectories, position_id, run_id=promised.run_id, checksums=checksums)
    evaluations = Listing.read(run.eval, header_id, run_id=promised.run_id, checksums=checksums)
    found = [*_damaged(RecordsPart.TRAINING, training), *_twice(training), *_used(promised, training)]
    found += _uncounted(promised, training, {id_ for gap in found for id_ in gap.groups if not gap.twice})
    found += _damaged(RecordsPart.EVALUATIONS, evaluations)
    found += _measured(promised, evaluations)
    return [*found, *_unrecorded(promised)]


def require_complete(run: RunDir, *parts: RecordsPart, checksums: bool = False) -> None:
    """Refuse a run in whose records something is missing: in these parts, or in any.

    Raises IncompleteError that says what, where, and what to do; and RunError as `gaps` does. Nothing is changed."""
    found = [gap for gap in gaps(run, checksums=checksums) if not parts or gap.part in parts]
    if not found:
        return
    closed = " and ".join(dict.fromkeys(str(run.path / gap.part / CLOSED) for gap in found if gap.unused))
    instead = (
        f"remove {closed} to give up what is missing: no step and no evaluation used it, and --resume goes on"
        if all(gap.unused for gap in found)
        else f"`synth-engine show {run.path}` and `audit` still tell what there is, and `export --merged` works"
    )
    raise IncompleteError(
        f"{run.path}: its records are incomplete, so nothing is done with them. "
        f"{'. '.join(gap.told for gap in found)}. Restore what is missing from a copy; without one, {instead}"
    )


# --- what there must be -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Promised:
    """What the files beside the streams say; what an older version did not write is not asked for."""

    run_id: str
    checkpoint: LearnerCounters
    """Those of the newest checkpoint, where a resume begins."""
    checkpoint_name: str
    steps: Mapping[int, TrainedStep]
    frames_read: int
    """Groups that the learner has read, by progress.json."""
    closed: Mapping[RecordsPart, int]
    """Groups that the writer of a stream counted when it closed that; a stream that is open is not in it."""
    measured: Mapping[int, Mapping[str, int]]
    """Episodes per version and split, each a group of its own."""

    @classmethod
    def read(cls, run: RunDir) -> _Promised:
        """In an order in which a learner at work cannot make them disagree: a checkpoint comes before its row."""
        checkpoint = _newest_checkpoint(run)
        # A kill may have kept a step's row from being written to steps.jsonl.
        rows = [] if checkpoint.trained is None else [checkpoint.trained]
        return cls(
            run_id=(read_json(run.manifest) or {}).get("run_id", ""),
            checkpoint=checkpoint.counters,
            checkpoint_name=run.checkpoint(checkpoint.counters.step).name,
            steps={row.step: row for row in (*rows, *read_steps(run))},
            measured=_measurements(run),
            frames_read=read_progress(run).counters.frames_read,
            closed={part: closed.frames for part in _STREAMS if (closed := read_closed(run.path / part)) is not None},
        )


def _newest_checkpoint(run: RunDir) -> CheckpointState:
    """The newest; of one that cannot be read nothing is known, and the learner refuses it with its own words."""
    steps = run.checkpoints()
    with suppress(RunError):
        if steps:
            return read_checkpoint(run, steps[-1])
    return CheckpointState(counters=LearnerCounters(), trained=None)


def _measurements(run: RunDir) -> Mapping[int, Mapping[str, int]]:
    """Episodes per version and split, by evaluations.jsonl."""
    path = run.eval / "evaluations.jsonl"
    measured: dict[int, dict[str, int]] = {}
    try:
        for row in read_lines(path):
            splits, split = measured.setdefault(max(0, row["version"]), {}), row.get("split", "")
            # What is measured again with the same version is the same tasks, or more of them.
            splits[split] = max(splits.get(split, 0), row.get("episodes", 0))
    except UNUSABLE as error:
        raise RunError(f"{path}: a row is not what synth-engine writes ({error!r}); restore it from a copy") from error
    return measured


# --- what there is ------------------------------------------------------------------------------------------------


def _damaged(part: RecordsPart, listing: Listing) -> Iterator[Gap]:
    """Segments and frames that cannot be read."""
    for damage in listing.damage:
        named = f": {_named(damage.groups)}" if damage.groups else ""
        yield Gap(part=part, told=damage.reason + named, groups=damage.groups, count=len(damage.groups))
    for number in listing.gone:
        yield Gap(part=part, told=f"{part}/{number:05d}.seg is gone, and segments after it are there")


def _twice(training: Listing) -> Iterator[Gap]:
    """Training groups that are there more than once; an evaluation that was cut short is played anew."""
    if twice := [id_ for id_, count in training.ids.items() if count > 1]:
        told = f"{RecordsPart.TRAINING}/: {_groups(len(twice))} there more than once: {_named(twice)}"
        yield Gap(part=RecordsPart.TRAINING, told=told, groups=tuple(twice), twice=True)


def _used(promised: _Promised, training: Listing) -> Iterator[Gap]:
    """Groups that steps trained or dropped, by the segments in which the steps read them."""
    there, begun = training.ids, 0
    lost: dict[tuple[int, int], dict[str, int]] = {}
    for number, step in sorted(promised.steps.items()):
        if missing := [id_ for id_ in step.used if id_ not in there]:
            lost.setdefault((begun, step.cursor[0]), {}).update(dict.fromkeys(missing, number))
        begun = step.cursor[0]
    for (first, last), groups in lost.items():
        steps = sorted(set(groups.values()))
        who = f"step {steps[0]}" if len(steps) == 1 else f"steps {steps[0]} to {steps[-1]}"
        place = f"{first:05d}.seg" if first == last else f"{first:05d}.seg to {last:05d}.seg"
        left = (f"{len(training.segments.get(at, ()))} in {at:05d}.seg" for at in range(first, last + 1))
        told = f"{RecordsPart.TRAINING}/{place}: {_groups(len(groups))} missing that {who} trained or dropped"
        told = f"{told}: {_named(list(groups))} (there are {', '.join(left)})"
        yield Gap(part=RecordsPart.TRAINING, told=told, groups=tuple(groups), count=len(groups))


def _uncounted(promised: _Promised, training: Listing, named: set[str]) -> Iterator[Gap]:
    """Counts that come to more than there is, by more than the groups that are named already."""
    known, checkpoint = len(named), promised.checkpoint
    (segment, offset), there = checkpoint.cursor, training.before(checkpoint.cursor)
    if (short := checkpoint.frames_read - there) > known:
        place = f"byte {offset} of {segment:05d}.seg"
        counted = f"{promised.checkpoint_name} counts {checkpoint.frames_read} groups up to {place}"
        yield Gap(part=RecordsPart.TRAINING, told=f"{RecordsPart.TRAINING}/: {counted}, {there} are there", count=short)
        known = short
    if (short := promised.frames_read - training.size) > known:
        counted = f"learner/progress.json counts {promised.frames_read} groups"
        yield Gap(
            part=RecordsPart.TRAINING,
            told=f"{RecordsPart.TRAINING}/: {counted}, {training.size} are there",
            count=short,
        )
        known = short
    yield from _closed(RecordsPart.TRAINING, promised, training, known)


def _closed(part: RecordsPart, promised: _Promised, listing: Listing, known: int) -> Iterator[Gap]:
    """Groups that only the writer counted."""
    count = promised.closed.get(part, 0)
    if (short := count - listing.size) > known:
        told = f"{part}/: {CLOSED} counts {count} groups, {listing.size} are there"
        yield Gap(part=part, told=told, count=short, unused=True)


def _measured(promised: _Promised, evaluations: Listing) -> Iterator[Gap]:
    """Groups of evaluations; each has the version in its id, and one of every task of its split."""
    ids, lost = evaluations.ids, 0
    for version, splits in promised.measured.items():
        there, count = sum(id_.startswith(f"e{version:05d}-") for id_ in ids), sum(splits.values())
        if there < count:
            told = f"{RecordsPart.EVALUATIONS}/: {count - there} of {_groups(count)} missing that measured v{version}"
            yield Gap(part=RecordsPart.EVALUATIONS, told=f"{told} ({', '.join(splits)})", count=count - there)
            lost += count - there
    yield from _closed(RecordsPart.EVALUATIONS, promised, evaluations, lost)


def _unrecorded(promised: _Promised) -> Iterator[Gap]:
    """Steps that the newest checkpoint has behind it and steps.jsonl does not tell of."""
    checkpoint = promised.checkpoint
    if missing := sorted(set(range(1, checkpoint.step + 1)) - promised.steps.keys()):
        many, steps = _many(len(missing), "step"), _named([f"{step}" for step in missing])
        told = (
            f"{RecordsPart.STEPS}/steps.jsonl: no row of {many} that {promised.checkpoint_name} goes on from: {steps}"
        )
        yield Gap(part=RecordsPart.STEPS, told=told)


# --- words --------------------------------------------------------------------------------------------------------


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"


def _groups(count: int) -> str:
    return f"{_many(count, 'group')} {'is' if count == 1 else 'are'}"


def _named(ids: Sequence[str]) -> str:
    """Ids, those that follow each other as ranges; of many, the first."""
    ranges: list[list[str]] = []
    for id_ in sorted(ids, key=lambda id_: (len(id_), id_)):
        if ranges and id_ == _following(ranges[-1][-1]):
            ranges[-1].append(id_)
        else:
            ranges.append([id_])
    shown = [one[0] if len(one) == 1 else f"{one[0]} to {one[-1]}" for one in ranges[:_RANGES]]
    rest = sum(map(len, ranges[_RANGES:]))
    return ", ".join(shown) + (f" and {rest:,} more" if rest else "")


def _following(id_: str) -> str:
    """The id after this one; empty where it does not end in a number."""
    found = _NUMBER.fullmatch(id_)
    return f"{found[1]}{int(found[2]) + 1:0{len(found[2])}d}" if found else ""
