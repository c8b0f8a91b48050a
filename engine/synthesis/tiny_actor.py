"""A scripted actor that executes well and behaves at random, playing tiny tasks in their real offline worlds.

The actor never errs in format, copying or names; at every decision it does the right thing only with probability q,
its discipline, drawn per episode. A model trained on it can do everything the tasks ask for and prefers nothing: GRPO
then has a preference to learn and not a skill. Tools and users are the engine's own offline ones.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import orjson

from engine.synthesis.tiny_words import values
from engine.task import Split, Task
from engine.types import ChatMessage, Json, ToolCall
from engine.world import admission, offline_user, tools

QUESTIONS = ("What is the {facts}", "Tell me the {facts}")
REPORT = "The code is {code}."
LAZY = "Done."
NEVER = 99
"""More completions than an episode can have."""


def call_text(name: str, arguments: Mapping[str, str]) -> str:
    """A tool call as the policy writes it."""
    body = orjson.dumps({"name": name, "arguments": arguments}).decode()
    return f"<tool_call>{body}</tool_call>"


def question_text(rng: random.Random, facts: list[str]) -> str:
    """One question that names every fact of `facts`."""
    return f"<question>{rng.choice(QUESTIONS).format(facts=' and the '.join(facts))}</question>"


def answer_text(text: str) -> str:
    """A final answer."""
    return f"<answer>{text}</answer>"


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorPlan:
    """What an actor decides before an episode; the defaults are all right."""

    ask: bool = True
    ask_each: bool = False
    """One question per fact instead of one for all; both are right."""
    look_up: bool = True
    look_up_before_asking: bool = True
    """Both orders are right."""
    write: bool = True
    allowed: bool = True
    report: bool = True
    look_up_again: bool = False
    distract: bool = False
    """Also call the tool that the task does not need."""
    recover: bool = True
    """After a write with guessed values failed: ask and write again."""
    stop_after: int = NEVER
    """Completions after which the actor gives up with an empty answer."""


GOLD = ActorPlan()


def draw_actor_plan(rng: random.Random) -> ActorPlan:
    """A plan whose decisions are right with probability q (the allowed sibling with 0.6 + 0.4 q)."""
    q = rng.choices((0.95, 0.55, 0.22), (5, 50, 45))[0]
    return ActorPlan(
        ask=rng.random() < q,
        ask_each=rng.random() < 0.3,
        look_up=rng.random() < q,
        look_up_before_asking=rng.random() < 0.5,
        allowed=rng.random() < 0.6 + 0.4 * q,
        report=rng.random() < q,
        look_up_again=rng.random() < 0.2 * (1 - q),
        distract=rng.random() < 0.15 * (1 - q),
        recover=rng.random() < q,
        stop_after=rng.randrange(4) if rng.random() < 0.25 * (1 - q) else NEVER,
    )


class ActorEnvironment:
    """One episode's tools and user; remembers the code and whether the last call failed."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._state: Json = task.world.state
        self.code = ""
        self.failed = False

    def step(self, completion: str) -> ChatMessage | None:
        """The message that a completion of the actor brings; None after an answer."""
        if completion.startswith("<answer>"):
            return None
        if completion.startswith("<question>"):
            assert self._task.user is not None
            asked = completion.removeprefix("<question>").removesuffix("</question>")
            return {"role": "user", "content": offline_user.offline_reply(self._task.user, asked).text}
        body = orjson.loads(completion.removeprefix("<tool_call>").removesuffix("</tool_call>"))
        applied = tools.apply(self._task, self._state, ToolCall(name=body["name"], arguments=body["arguments"]))
        self._state, self.failed = applied.state, not applied.ok
        self.code = applied.answer.get("code", self.code)
        return {"role": "tool", "content": admission.content(applied.answer)}


class Actor:
    """Plays one task by its plan."""

    def __init__(self, task: Task, plan: ActorPlan, rng: random.Random, *, told: bool = False) -> None:
        """With `told` the actor knows every fact from the start, else the one that the instruction gives."""
        wanted, given = task.world.state["wanted"], task.meta["given"]
        self._task = task
        self._plan = plan
        self._rng = rng
        self._known: dict[str, str] = dict(wanted) if told else {given: wanted[given]}

    def completions(self, room: ActorEnvironment) -> Iterator[str]:
        """Every completion of the episode, the final answer included; `room` knows what the last one brought."""
        for number, turn in enumerate(self._turns()):
            if number == self._plan.stop_after:
                yield answer_text(LAZY)
                return
            yield turn()
        if room.failed and self._plan.recover:
            yield from (turn() for turn in [*self._questions(), self._write])
        report = room.code and self._plan.report
        yield answer_text(REPORT.format(code=room.code) if report else LAZY)

    def _turns(self) -> list[Callable[[], str]]:
        """Everything up to the write, in the plan's order."""
        asks = self._questions() if self._plan.ask else []
        looks = [lambda: self._call("lookup")] * (self._plan.look_up * (1 + self._plan.look_up_again))
        turns = looks + asks if self._plan.look_up_before_asking else asks + looks
        if self._plan.distract:
            turns.insert(self._rng.randrange(len(turns) + 1), lambda: self._call("distractor"))
        return [*turns, self._write] if self._plan.write else turns

    def _questions(self) -> list[Callable[[], str]]:
        """The questions about what is not known; asking one makes the facts known."""
        assert self._task.user is not None
        private = [key for key in self._task.user.facts if key not in self._known]
        asked = [[key] for key in private] if self._plan.ask_each else [private] * bool(private)
        return [lambda facts=facts: self._ask(facts) for facts in asked]  # type: ignore[misc]

    def _ask(self, facts: list[str]) -> str:
        wanted = self._task.world.state["wanted"]
        self._known.update({key: wanted[key] for key in facts})
        return question_text(self._rng, facts)

    def _write(self) -> str:
        return self._call("allowed" if self._plan.allowed else "forbidden")

    def _call(self, part: str) -> str:
        """A call of the tool that plays `part`; what is not known is guessed."""
        tool = self._task.tool(self._task.meta["tools"][part])
        assert tool is not None
        keys = tool.parameters["properties"]
        arguments = {key: self._known.get(key) or self._rng.choice(values(key, Split.TRAIN)) for key in keys}
        return call_text(tool.name, arguments)


def actor_script(task: Task, plan: ActorPlan, seed: int = 0) -> list[str]:
    """The completions of an actor that plays `task` by `plan`: a scripted trajectory."""
    messages = play(task, Actor(task, plan, random.Random(seed)))
    return [message["content"] for message in messages if message["role"] == "assistant"]


def play(task: Task, actor: Actor) -> list[ChatMessage]:
    """The messages of one scripted episode after its prompt."""
    messages: list[ChatMessage] = []
    room = ActorEnvironment(task)
    for completion in actor.completions(room):
        messages.append({"role": "assistant", "content": completion})
        if (observation := room.step(completion)) is not None:
            messages.append(observation)
    return messages


def prompt_messages(task: Task) -> list[ChatMessage]:
    """Rules and instruction, as the engine opens an episode of the tiny model."""
    return [{"role": "system", "content": task.rules}, {"role": "user", "content": task.instruction}]
