"""A plan is executed: what is asked, called and told, in a world that follows from the draft alone.

The same plan is executed twice over: as it is (*gold*), and for each fact with its wrong value and without its question
(the *mistaken* plan), as somebody would who does not ask. No model takes part: what a tool answers is decided by its
effect or by a response of the draft, or the plan cannot be executed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from engine.errors import SynthError
from engine.synthesis.drafts.draft import AnswerStep, AskStep, BranchStep, CallStep, Step
from engine.synthesis.drafts.expressions import (
    WORDS,
    WRONG,
    DraftScope,
    ExpressionError,
    evaluated,
    holds,
    references,
)
from engine.synthesis.planted import DONE, spelled_call
from engine.task import Task
from engine.types import Json, ToolCall
from engine.world.admission import OpenAnswer, admit, content, outputs
from engine.world.effects import RefusedError
from engine.world.mapping import ruled
from engine.world.states import TaskWorld, WorldState, key_of


class DraftError(SynthError):
    """A draft that no task can be made of: why, where, and what to do."""

    def __init__(self, code: str, place: str, reason: str, remedy: str) -> None:
        super().__init__(f"{place}: {reason} ({remedy})")
        self.code = code
        """The reason in one word; a funnel counts by it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedAsk:
    """A question of the plan."""

    step: str
    fact: str
    named: Mapping[str, Json]
    """What the question says first, by label."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedCall:
    """A call of the plan, and what the world answered."""

    step: str
    call: ToolCall
    answer: Json
    writes: bool
    optional: bool
    facts: frozenset[str]
    """Facts on which it depends, also by way of other answers and of branches."""
    follows: frozenset[str]
    """Steps that must come before: those whose answers it uses, those that lead to it, those that the draft names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanTrace:
    """What happened when a plan was executed."""

    steps: tuple[PlannedAsk | PlannedCall, ...]
    told: Mapping[str, tuple[Json, ...]]
    """What the answer says, by label."""

    @property
    def asked(self) -> list[PlannedAsk]:
        """The questions, in order."""
        return [step for step in self.steps if isinstance(step, PlannedAsk)]

    @property
    def made(self) -> list[PlannedCall]:
        """The calls, in order."""
        return [step for step in self.steps if isinstance(step, PlannedCall)]


def play_plan(
    task: Task, plan: Sequence[Step], values: Mapping[str, Json], facts: frozenset[str], assumed: str | None = None
) -> PlanTrace:
    """Execute a plan in the world of a task, which need have no rubric yet.

    `values` are those of DraftScope; the fact `assumed` is not asked for, and the values say what is taken for it.
    Raises DraftError for a step that cannot be executed."""
    run = _PlanRun(task, values, facts, assumed)
    run.play(plan, _NOTHING)
    if run.told is None:
        raise DraftError("answer", "the plan", "does not end with an answer", 'end it with {"answer": {label: …}}')
    return PlanTrace(steps=tuple(run.steps), told=run.told)


class _Uses(NamedTuple):
    """What a step depends on: facts, also by way of answers; and the steps whose answers it uses itself."""

    facts: frozenset[str]
    steps: frozenset[str]

    def __or__(self, other: _Uses) -> _Uses:
        return _Uses(self.facts | other.facts, self.steps | other.steps)


_NOTHING = _Uses(frozenset(), frozenset())


@dataclass(slots=True, eq=False)
class _PlanRun:
    """A plan on its way."""

    task: Task
    values: Mapping[str, Json]
    facts: frozenset[str]
    assumed: str | None
    steps: list[PlannedAsk | PlannedCall] = field(default_factory=list)
    told: Mapping[str, tuple[Json, ...]] | None = None
    _known: set[str] = field(default_factory=set)
    _answers: dict[str, Json] = field(default_factory=dict)
    _reached: dict[str, _Uses] = field(default_factory=dict)
    """Every step so far, and what it depends on."""
    _state: WorldState = field(init=False)

    def __post_init__(self) -> None:
        self._state = TaskWorld(task=self.task, name=self.task.id, entries={}).start

    def play(self, plan: Sequence[Step], led: _Uses) -> None:
        """Execute steps that are reached because of these facts and answers."""
        for step in plan:
            place = _place(step)
            if self.told is not None:
                raise DraftError("answer", place, "comes after the answer", "let the answer be the last step")
            try:
                self._step(step, place, led)
            except ExpressionError as error:
                raise DraftError("expression", place, str(error), "correct the expression, or the state") from None

    def _step(self, step: Step, place: str, led: _Uses) -> None:
        if isinstance(step, BranchStep):
            led = led | self._uses(step.condition, place)
            self.play(step.then if holds(step.condition, self._scope) else step.otherwise, led)
        elif isinstance(step, AnswerStep):
            self._uses(step.answer, place)
            told = {label: evaluated(value, self._scope) for label, value in step.answer.items()}
            self.told = {label: tuple(value) if isinstance(value, list) else (value,) for label, value in told.items()}
        else:
            if step.id in self._reached:
                raise DraftError("step", place, "the id is there twice", "give each step an id of its own")
            used = self._uses(step.names if isinstance(step, AskStep) else step.arguments, place)
            self._reached[step.id] = led | used
            if isinstance(step, AskStep):
                self._ask(step, place)
            else:
                self._call(step, place)

    def _ask(self, step: AskStep, place: str) -> None:
        if step.ask not in self.facts:
            known = ", ".join(sorted(self.facts))
            raise DraftError("reference", place, f"asks for {step.ask}, which is no fact", f"ask for one of {known}")
        if step.ask in self._known:
            raise DraftError("step", place, f"asks for {step.ask} again", "ask for each fact once")
        self._known.add(step.ask)
        if step.ask != self.assumed:
            named = {label: evaluated(value, self._scope) for label, value in step.names.items()}
            self.steps.append(PlannedAsk(step=step.id, fact=step.ask, named=named))

    def _call(self, step: CallStep, place: str) -> None:
        tool = self.task.tool(step.call)
        arguments = {name: evaluated(value, self._scope) for name, value in step.arguments.items()}
        try:
            call = admit(self.task, ToolCall(name=step.call, arguments=arguments))
        except RefusedError as refusal:
            said = content(dict(arguments))
            raise DraftError("refused", place, f"{step.call} does not take {said}: {refusal}", "mend either") from None
        assert tool is not None
        key = key_of(call)
        done, _ = ruled(self._state, tool, key, call)
        if not done.ok:
            wanted = "let the state have what the call needs"
            said = f"{step.call} answers {content(done.answer)} to {content(dict(call.arguments))}"
            raise DraftError("refused", place, said, wanted)
        answer = done.answer
        if isinstance(answer, OpenAnswer):
            missing = sorted(outputs(tool).keys() - answer.known.keys())
            if missing:
                remedy = "let the effect give it, or write a response"
                raise DraftError("drawn", place, f"{step.call} would make up {', '.join(missing)}", remedy)
            answer = {"status": "ok"}
        if tool.writes:
            self._state = self._state.lead(key, call, done.state)
        self._answers[step.id] = answer
        self.steps.append(
            PlannedCall(
                step=step.id,
                call=call,
                answer=answer,
                writes=tool.writes,
                optional=step.optional,
                facts=self._reached[step.id].facts,
                follows=self._reached[step.id].steps | self._named(step, place),
            )
        )

    def _named(self, step: CallStep, place: str) -> frozenset[str]:
        """The steps that the draft wants before this one."""
        if unknown := [other for other in step.after if other not in self._answers]:
            raise DraftError("step", place, f"is after {unknown[0]}, which was not called before", "name a call step")
        return frozenset(step.after)

    @property
    def _scope(self) -> DraftScope:
        return DraftScope(values=self.values, answers=self._answers)

    def _uses(self, expression: Json, place: str) -> _Uses:
        """What an expression depends on; each fact must be known by then."""
        facts: set[str] = set()
        steps: set[str] = set()
        for reference in references(expression):
            name = reference.partition("/")[0].removesuffix(WORDS)
            if name.endswith(WRONG):
                raise DraftError(
                    "reference", place, f"${{{reference}}} is in the plan", "only states know what is wrong"
                )
            if name in self.facts:
                if name not in self._known:
                    raise DraftError("unasked", place, f"uses {name} before it is asked for", "ask first")
                facts.add(name)
            elif name in self._reached:
                steps.add(name)
                facts |= self._reached[name].facts
        return _Uses(frozenset(facts), frozenset(steps))


def _place(step: Step) -> str:
    """How a step is named to a person."""
    if isinstance(step, AskStep | CallStep):
        return f"step {step.id}"
    return "the answer" if isinstance(step, AnswerStep) else "a branch"


# --- as completions --------------------------------------------------------------------------------------------------


def completions(trace: PlanTrace, questions: Mapping[str, str]) -> list[str]:
    """What an agent says that follows a plan, completion by completion; `questions` has the words for each fact."""
    return [*(_completion(step, questions) for step in trace.steps), answer_of(trace.told)]


def _completion(step: PlannedAsk | PlannedCall, questions: Mapping[str, str]) -> str:
    if isinstance(step, PlannedCall):
        return spelled_call({"name": step.call.name, "arguments": dict(step.call.arguments)})
    named = "".join(f"The {label} is {_said(value)}. " for label, value in step.named.items())
    return f"<question>{named}{questions[step.fact]}</question>"


def answer_of(told: Mapping[str, tuple[Json, ...]]) -> str:
    """An answer that tells these things."""
    lines = (f"{label}: {', '.join(map(_said, values))}." for label, values in told.items())
    return f"<answer>{' '.join(lines)}</answer>" if told else DONE


def _said(value: Json) -> str:
    return value if isinstance(value, str) else content(value)


def differing_steps(gold: PlanTrace, other: PlanTrace) -> Iterator[str]:
    """Steps, in the order of gold, at which another execution calls something else or nothing."""
    calls = {made.step: made.call for made in other.made}
    yield from (made.step for made in gold.made if calls.get(made.step) != made.call)
