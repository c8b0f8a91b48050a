"""Drills: exercises of one skill each on a training task, and copy lines over the whole lexicon.

Held-out nouns and values occur in copy lines only: their words are known and the tasks with them are not.
"""

from __future__ import annotations

import random

import orjson

from engine.synthesis.tiny_actor import REPORT, call_text, prompt_messages
from engine.synthesis.tiny_words import DISTRACTORS, KEYS, LOOKUPS, NOUNS, SIBLINGS, VERBS, values
from engine.task import Split, Task
from engine.types import ChatMessage

WORDS = (*KEYS.values(), NOUNS)
"""Pools of values, and nouns."""


def _pair(user: str, assistant: str) -> list[ChatMessage]:
    """One exchange."""
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


def _told(facts: list[tuple[str, str]]) -> str:
    return " ".join(f"The {key} is {value}." for key, value in facts)


def do_as_told(task: Task, rng: random.Random) -> list[ChatMessage]:
    """Call the named tool, never the forbidden one, with the named values."""
    tool = rng.choice([tool for tool in task.tools if tool.name != task.meta["tools"]["forbidden"]])
    arguments = {key: rng.choice(values(key, Split.TRAIN)) for key in tool.parameters["properties"]}
    told = _told(rng.sample(list(arguments.items()), len(arguments)))
    return _pair(f"Call {tool.name}. {told}", call_text(tool.name, arguments))


def use_tool(task: Task, rng: random.Random) -> list[ChatMessage]:
    """Write with every fact given, by the tool that the rule allows."""
    wanted = task.world.state["wanted"]
    told = _told(rng.sample(list(wanted.items()), len(wanted)))
    text = f"Please {task.meta['verb']} a {task.meta['noun']}. {told}"
    return _pair(text, call_text(task.meta["tools"]["allowed"], wanted))


def which_tool(task: Task, rng: random.Random) -> list[ChatMessage]:
    """Name the tool to use, and the one never to use."""
    names = task.meta["tools"]
    use = _pair("Which tool do you use.", f"{names['allowed']}.")
    never = _pair("Which tool do you never use.", f"{names['forbidden']}.")
    return [*use, *never] if rng.random() < 0.7 else [*never, *use]


def what_is_missing(task: Task, rng: random.Random) -> list[ChatMessage]:
    """Name the private facts, in the order of the write tool's arguments."""
    del rng
    missing = [key for key in task.world.state["wanted"] if key != task.meta["given"]]
    return _pair(f"{task.instruction} What is missing.", ", ".join(missing) + ".")


FIRST_DRILLS = (use_tool, use_tool, use_tool, which_tool, which_tool, what_is_missing)


def drill(task: Task, rng: random.Random) -> list[ChatMessage]:
    """Rules, then exercises on one task.

    The first needs the rules, so that no earlier exchange answers it; the others are calls, so that in the middle of a
    conversation the model learns nothing but actions."""
    exercises = [rng.choice(FIRST_DRILLS), do_as_told, do_as_told]
    return [prompt_messages(task)[0], *(message for exercise in exercises for message in exercise(task, rng))]


def chain(rng: random.Random) -> str:
    """Words, name parts and numbers, each once: in its repetitions the last token tells the next."""
    stems = (*SIBLINGS, *LOOKUPS, *DISTRACTORS, *VERBS)
    links = (f"{rng.choice(stems)}_" if rng.random() < 0.4 else rng.choice(rng.choice(WORDS)) for _ in range(12))
    words = list(dict.fromkeys(links))[: rng.randrange(4, 13)]
    numbers = rng.sample(range(10, 100), len(words))
    return "".join(f"{word}{number}" for word, number in zip(words, numbers, strict=True))


def copy_facts(rng: random.Random) -> list[ChatMessage]:
    """Facts, held-out values included, as one JSON object."""
    facts = {key: rng.choice(KEYS[key]) for key in rng.sample(sorted(KEYS), rng.randrange(2, 8))}
    told = _told(rng.sample(list(facts.items()), len(facts)))
    return _pair(f"Write {', '.join(facts)}. {told}", orjson.dumps(facts).decode())


def copy_names(rng: random.Random) -> list[ChatMessage]:
    """Tool names, held-out nouns included, as they are."""
    stems = [rng.choice((f"{rng.choice(SIBLINGS)}_{rng.choice(VERBS)}", *LOOKUPS, *DISTRACTORS)) for _ in range(4)]
    names = ", ".join(f"{stem}_{rng.choice(NOUNS)}" for stem in stems)
    return _pair(f"Write {names}.", f"{names}.")


def copy_code(rng: random.Random) -> list[ChatMessage]:
    """Report the code of the last of some observations."""
    seen = [{"left": rng.randrange(10, 100)}, {"error": "not possible"}, {"total": rng.randrange(10, 100)}]
    code = f"{rng.randrange(10, 100)}"
    shown = [*rng.sample(seen, rng.randrange(3)), {"code": code}]
    observations = [{"role": "tool", "content": orjson.dumps(answer).decode()} for answer in shown]
    return [*observations, {"role": "assistant", "content": f"<answer>{REPORT.format(code=code)}</answer>"}]


def copy_line(rng: random.Random) -> list[ChatMessage]:
    """One exercise of copying what a conversation needs."""
    return rng.choice((copy_facts, copy_facts, copy_names, copy_code))(rng)
