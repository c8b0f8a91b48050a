"""One task of the AgenticQwen format as a task of ours; every rule is stated where it is applied."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import orjson

from engine.importing.agenticqwen.calls import UNANSWERED, ExpectedCall, expected, responses
from engine.importing.agenticqwen.facts import facts, private
from engine.importing.agenticqwen.items import Texts, imported_items
from engine.importing.agenticqwen.source import TRANSFER, ExpectedStep, PromptParts, SourceTask, prompt_parts
from engine.importing.format import ImportedTask, ImportOptions, UnreadableError
from engine.importing.report import Note
from engine.packs.problems import task_problems
from engine.task import Rubric, Task, Tool, UserContext, WorldSpec
from engine.world.effects import RefusedError

READS = frozenset(
    {
        "calculate",
        "check",
        "compare",
        "count",
        "describe",
        "estimate",
        "evaluate",
        "fetch",
        "find",
        "get",
        "list",
        "look",
    }
    | {"lookup", "preview", "query", "read", "retrieve", "search", "show", "validate", "verify", "view"}
)
"""Verbs with which the name of a tool begins that only reads; any other tool is a write without a declared effect."""

_HANDOVER = re.compile(
    r"(?:transfer|escalate|hand_?(?:over|off))_?to_?(?:an?_)?(?:human|agent|supervisor|moderator|staff)"
)
_SAYS_TRANSFER = re.compile(rf"(?:output|reply with)\s+[\"“”']?{re.escape(TRANSFER)}[\"“”']?")
_USER_ENDS = re.compile(r"[^.\n]{0,80}\bonly be terminated by the user\b[^.\n]{0,80}\.\s*(?:However,\s*)?(\w)")
_TRAILER = "Additional parameters you may need:"
_ASKED_ONLY = "Reveal them only the agent ask you."
_GENERATORS = re.compile(r"^(?:No|All)\b|normal_path|hack_path|user_background|expected_output")
"""How the generator's notes to itself begin, or what they name; a user knows nothing of these."""


def build_task(source: SourceTask, options: ImportOptions) -> ImportedTask:
    """One task.

    Raises UnreadableError where its prompt cannot be taken apart, or its tools cannot be called. What else is wrong
    with the task that comes out is the caller's to find (engine.packs.problems)."""
    parts = prompt_parts(source)
    handover = next((tool["name"] for tool in parts.tools if _HANDOVER.match(tool["name"])), "transfer_to_human")
    tools = [_tool(function) for function in parts.tools]
    if TRANSFER in parts.requirements and all(tool.name != handover for tool in tools):
        tools.append(_transfer(handover))
    context, notes = _context(source.task_background)
    rules = "\n\n".join(filter(None, (parts.policy, _requirements(parts.requirements, handover))))
    task = Task(
        id=source.id, instruction=parts.request, rules=rules, tools=tuple(tools), split=options.split, rubric=Rubric()
    )
    if broken := [found for found in task_problems(task) if found.field.startswith("tools")]:
        raise UnreadableError(broken)
    paths = source.tool_return_expected
    normal, hack = _path(task, paths.normal_path), _path(task, paths.hack_path)
    known = facts([*normal, *hack], context)
    shown = "\n".join((rules, parts.request, orjson.dumps([tool.function for tool in tools]).decode()))
    asked = tuple(private(normal, known, shown))
    texts = Texts(anything=f"{shown}\n{context}", numbers=f"{parts.request}\n{context}")
    made = imported_items(task, source.rubrics, normal, hack, texts)
    if not options.judge:
        made = made.decided()
    user = UserContext(context=context, facts=known, escape_strategy=source.user_escape_strategy)
    seeded, _ = responses([normal, hack])
    complete = replace(
        task,
        user=user,
        world=WorldSpec(responses=tuple(seeded)),
        rubric=made.rubric(asked),
        meta={"source": "agenticqwen", "test_policy": source.test_policy, **made.scripts(normal, asked, known)},
    )
    notes += [*_prompt_notes(parts, tools), *_background_notes(complete, asked), *_text_notes(source)]
    notes += [*_path_notes("normal_path", paths.normal_path, [normal]), *made.notes]
    order = "order of its calls: not required"
    notes.append(Note("normal_path", order, kept=False, count=int(len(normal) > 1)))
    notes += _path_notes("hack_path", paths.hack_path, [normal, hack])
    return ImportedTask(complete, tuple(notes))


def _tool(function: Mapping[str, Any]) -> Tool:
    """A tool of theirs: a read or a write by the verb of its name (READS)."""
    name = function["name"]
    return Tool(
        name=name,
        description=function.get("description", ""),
        parameters=function.get("parameters", {"type": "object", "properties": {}}),
        outputs=function.get("outputs"),
        effect=None if reads(name) else {"write": True},
    )


def reads(name: str) -> bool:
    """Whether a tool of that name only reads: it begins with one of READS."""
    verb = re.match(r"[A-Za-z][a-z]*", name)
    return verb is not None and verb[0].lower() in READS


def _transfer(name: str) -> Tool:
    """Handing over, which is a text for an agent of theirs, as a tool."""
    outputs = {"type": "object", "properties": {"status": {"type": "string", "const": "transferred"}}}
    description = "Hand the conversation over to a human and end your part in it. A last resort."
    parameters = {"type": "object", "properties": {}, "additionalProperties": False}
    return Tool(name=name, description=description, parameters=parameters, outputs=outputs, effect={"write": True})


def _requirements(text: str, handover: str) -> str:
    """Their requirements, with our way to hand over, and without the sentence that forbids to end an episode."""
    ended = _USER_ENDS.sub(lambda found: f" {found[1].upper()}", text)
    return _SAYS_TRANSFER.sub(f"call {handover}", ended).replace(TRANSFER, handover)


def _context(background: str) -> tuple[str, list[Note]]:
    """What the user knows: the background without its trailer, unless that says something to the user."""
    before, trailer, extra = background.partition(_TRAILER)
    before, extra = before.strip(), extra.partition(_ASKED_ONLY)[0].strip()
    kept = Note("task_background", "user.context, the user's private knowledge")
    if not trailer:
        return before, [kept]
    if not extra or _GENERATORS.search(extra):
        lost = "the generator's notes on where parameters come from: not the user's to say"
        return before, [kept, Note("task_background", lost, kept=False, count=int(bool(extra)))]
    return f"{before}\n\n{extra}", [kept, Note("task_background", "user.context, additional parameters")]


def _path(task: Task, steps: Sequence[ExpectedStep]) -> list[ExpectedCall]:
    """The calls of a path that the world of the task takes."""
    calls = []
    for step in steps:
        try:
            calls.append(expected(task, step))
        except RefusedError:
            continue
    return calls


# --- what became of it ----------------------------------------------------------------------------------------------


def _prompt_notes(parts: PromptParts, tools: Iterable[Tool]) -> Iterator[Note]:
    yield Note("id", "id")
    yield Note("prompt policy", "rules")
    yield Note("prompt policy", "generator's notes before the policy: cut", kept=False, count=int(parts.residue))
    if parts.requirements:
        yield Note("prompt requirements", "rules, after the policy")
        transfers = "transfer to a human: a tool {write: true} in place of a text"
        yield Note("prompt requirements", transfers, count=int(TRANSFER in parts.requirements))
        ends = "only the user ends a conversation: here the agent's answer does"
        yield Note("prompt requirements", ends, kept=False, count=int(bool(_USER_ENDS.search(parts.requirements))))
    theirs = list(tools)[: len(parts.tools)]
    read = sum(not tool.writes for tool in theirs)
    yield Note("prompt tools", "tool that reads, by the verb of its name", count=read)
    yield Note("prompt tools", "tool that writes, {write: true}: any other verb", count=len(theirs) - read)
    yield Note("prompt tools", "effect on a world state: not in the format", kept=False, count=len(theirs))
    yield Note("prompt request", "instruction")
    yield Note("prompt request", "their harness's own instructions: cut", kept=False, count=int(bool(parts.note)))


def _background_notes(task: Task, asked: Sequence[str]) -> Iterator[Note]:
    assert task.user is not None
    yield Note("task_background", "user.facts, an argument value that it says literally", count=len(task.user.facts))
    yield Note("task_background", "rubric.interactions, a fact that only the user can tell", count=len(asked))


def _text_notes(source: SourceTask) -> Iterator[Note]:
    yield Note("test_policy", "meta.test_policy, never shown", count=int(bool(source.test_policy)))
    yield Note("user_escape_strategy", "user.escape_strategy", count=int(bool(source.user_escape_strategy)))


def _path_notes(field: str, steps: Sequence[ExpectedStep], paths: Sequence[Sequence[ExpectedCall]]) -> Iterator[Note]:
    """Of the last path; those before it have fixed their answers already."""
    path = paths[-1]
    seeded, contradictions = responses(paths)
    before, known = responses(paths[:-1]) if paths[:-1] else ([], 0)
    yield Note(field, "world.responses, a fixed answer", count=len(seeded) - len(before))
    other = "another answer than before in the same world state: the first stands"
    yield Note(field, other, kept=False, count=contradictions - known)
    unanswered = sum(call.answer == UNANSWERED for call in path)
    yield Note(field, f"answer {UNANSWERED}: left to the simulator", kept=False, count=unanswered)
    refused = "unknown tool, or arguments outside its schema: no call of this world"
    yield Note(field, refused, kept=False, count=len(steps) - len(path))
