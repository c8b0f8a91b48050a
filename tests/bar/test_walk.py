"""The way of a tool call through the engine: from the text of a completion to the ids of its observation, by files."""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import CodeType, FrameType

import orjson
import pytest

import engine
from engine.chat.chat_format import ChatFormat
from engine.core.live import LiveEpisodes
from engine.core.seams import World
from engine.packs.pack import parse_task
from engine.scripted.policy import GoldPolicy
from engine.world.llm_tools import LlmSimulator
from engine.world.mapped import MappedWorld
from engine.world.tools import OfflineSimulator
from tests.parts.agenticqwen_plays import offline, play
from tests.parts.llm_parts import asking
from tests.parts.work import uncollected
from tests.parts.worlds import TEXT, outputs, task_json, tool

pytestmark = pytest.mark.anyio

_ENGINE = Path(engine.__file__).parent
_OTHER_SIDE = "scripted/"
"""Policy and endpoint of the test."""
MOST_OFFLINE, MOST_ASKED = 12, 18
LIBRARIES = {
    "schema/": "JSON, of anything",
    "telemetry/": "counts and times for whoever looks",
    "rundir/": "rows of any kind, in SQLite",
    "core/live.py": "who is in flight, for whoever looks",
    "core/seams.py": "whether a value is of the type that was promised",
    "task.py": "a value and its members by name",
    "errors.py": "whose fault it is when something is raised",
}
"""Rooms and files that are not counted, and what they are there for: nothing in them is about a call."""
AGAIN = {
    "ledger": "the account of the episode: each step begins, ends and is written down there",
    "chat_format": "whether the completion's end was sampled, then the ids of the observation",
    "admission": "the call is admitted; when it is new, applied to the state; what is said becomes an observation",
    "states": "the key of a call, what the task fixes for it, the state that it leads to",
    "actions": "what was wrong with a call that could not be read is told as its observation",
    "question": "the parts of the question's schema, its subject, its messages",
    "vetoes": "what the call must not be merged with, and how often its answer was withdrawn",
    "llm_tools": "the question is made, and the reply admitted",
    "journal": "looked up before a question is asked, written when it is answered",
    "batching": "the call waits there, and its batch is sent and landed by the batcher's own task",
    "meaning": "each earlier answer of the tool is compared with the call",
    "transport": "each kind of request that the endpoint refuses is followed by a plainer one",
}
"""Files that one call may enter several times, and why."""


class Walker:
    """Writes down, for each turn of an episode, the files that are entered: another one, or nobody, calls into them.

    A walk begins in the file that asked the policy, when that has said something, and ends with the ids of what the
    agent gets to see."""

    def __init__(self) -> None:
        self.walks: list[list[str]] = []
        self._on = False
        self._frames: set[FrameType] = set()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hear of every call of a function in this thread."""
        with uncollected():
            sys.setprofile(self._heard)
            try:
                yield
            finally:
                sys.setprofile(None)

    def _heard(self, frame: FrameType, event: str, _: object) -> None:
        # Most of what is heard is of no interest, and every test has to be quick on a busy machine.
        if event not in ("call", "return") or not (file := _file(frame.f_code)):
            return
        if event == "return":
            if frame.f_code is GoldPolicy.complete.__code__:
                self._on = True
                self.walks.append([_file(next(_callers(frame)).f_code)])
            elif frame.f_code is ChatFormat.observation.__code__:
                self._on = False
        # A coroutine that goes on is heard of again.
        elif frame not in self._frames:
            self._frames.add(frame)
            if self._on:
                self._called(frame, file)

    def _called(self, frame: FrameType, file: str) -> None:
        callers = [_file(caller.f_code) for caller in _callers(frame)]
        if not any(name.startswith(_OTHER_SIDE) for name in (file, *callers)) and callers[:1] != [file]:
            self.walks[-1].append(file)


@lru_cache(maxsize=4096)
def _file(code: CodeType) -> str:
    """The file of a function, below engine/; empty for one that is not ours."""
    file = Path(code.co_filename)
    return str(file.relative_to(_ENGINE)) if file.is_relative_to(_ENGINE) else ""


def _callers(frame: FrameType) -> Iterator[FrameType]:
    """The functions of ours that called one, the nearest first."""
    at = frame.f_back
    while at is not None:
        if _file(at.f_code):
            yield at
        at = at.f_back


def stops(walk: Sequence[str]) -> list[str]:
    """Returns the entries that are counted."""
    return [file for file in walk if not file.startswith(tuple(LIBRARIES))]


def called(name: str, **arguments: object) -> str:
    """A completion with one call."""
    return f"<tool_call>{orjson.dumps({'name': name, 'arguments': arguments}).decode()}</tool_call>"


def told(kind: str, walk: Sequence[str]) -> str:
    """A walk for a person."""
    counted = stops(walk)
    lines = [f"{kind}: {len(set(counted))} files, entered {len(counted)} times; with libraries {len(set(walk))} files"]
    for file, times in Counter(counted).items():
        lines.append(f"  {file}" if times == 1 else f"  {file}, {times} times: {AGAIN.get(Path(file).stem)}")
    return "\n".join(lines)


BORROW = tool(
    "borrow",
    {"title": TEXT},
    outputs=outputs(title=TEXT, code=TEXT),
    effect={"write": "/orders/{title}", "value": {"title": "{title}"}},
)
SUNDAY = {"tool": "shop_hours", "arguments": {"day": "Sunday"}, "answer": {"opens": 9}, "after": []}
TASK = parse_task(
    task_json(
        tools=[*task_json()["tools"], BORROW],
        world={"state": task_json()["world"]["state"], "responses": [SUNDAY]},
    )
)
CALLS = {
    "a declared write": called("place_order", item="apple", quantity=5),
    "a declared read": called("list_orders"),
    "a call that was answered before": called("list_orders"),
    "a call of which nothing is declared": called("shop_hours", day="Monday"),
    "another call of the same tool": called("shop_hours", day="Tuesday"),
    "a write without a declared place": called("rush_order", item="apple"),
    "a write with open outputs": called("borrow", title="Emma"),
    "another write of the same tool": called("borrow", title="Persuasion"),
    "a response of the task": called("shop_hours", day="Sunday"),
    "a write that the state refuses": called("place_order", item="pear", quantity=5),
    "an unknown tool": called("nothing"),
    "arguments that do not fit": called("shop_hours", day=1),
    "no JSON": "<tool_call>{</tool_call>",
}


async def walked(world: World) -> dict[str, list[str]]:
    """The walks of these calls in one episode, each printed (pytest -s)."""
    walker, seams = Walker(), replace(offline(), world=world, live=LiveEpisodes())
    with walker.listening():
        episode = await play(TASK, [*CALLS.values(), "<answer>ok</answer>"], seams)
    assert episode.turns == len(CALLS) + 1, episode.error
    walks = dict(zip(CALLS, walker.walks, strict=False))
    for kind, walk in walks.items():
        print(told(kind, walk))  # noqa: T201 - for whoever wants to read a call's way
        again = [Path(file).stem for file, times in Counter(stops(walk)).items() if times > 1]
        assert [name for name in again if name not in AGAIN] == []
    return walks


async def test_a_call_goes_through_few_files_offline() -> None:
    """Twelve at most, whatever the call; those that are entered again are known with the reason."""
    walks = await walked(MappedWorld(OfflineSimulator()))
    assert max(len(set(stops(walk))) for walk in walks.values()) <= MOST_OFFLINE
    assert {"mapped", "admission", "mapping", "effects"} <= {Path(file).stem for file in walks["a declared write"]}


async def test_a_call_goes_through_few_files_with_a_language_model(tmp_path: Path) -> None:
    """Eighteen at most, to the endpoint and back; no more when the journal answers."""
    async with asking(tmp_path) as asker:
        asked = await walked(MappedWorld(LlmSimulator(asker)))
        replies = asker.tallies["tool"].replies
        recorded = await walked(MappedWorld(LlmSimulator(asker)))
        assert asker.tallies["tool"].replies == replies >= 5
    assert max(len(set(stops(walk))) for walk in (*asked.values(), *recorded.values())) <= MOST_ASKED
    names = {Path(file).stem for file in asked["another write of the same tool"]}
    assert {"effects", "meaning", "journal", "batching", "transport"} <= names
