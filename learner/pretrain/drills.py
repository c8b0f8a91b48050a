"""Drills: single-turn exercises of one skill each, and copy lines over the whole lexicon.

The words of held-out nouns and values occur in copy lines only, so that their embeddings are trained and their tasks
are not.
"""

from __future__ import annotations

import random

import orjson

from engine.synthesis.tiny_words import DISTRACTORS, KEYS, LOOKUPS, NOUNS, SIBLINGS, VERBS, values
from engine.task import Split, Task
from learner.pretrain.dialogues import Message, call_text, opening


def _pair(system: str, user: str, assistant: str) -> list[Message]:
    """A one-turn conversation; no system message when empty."""
    head = [{"role": "system", "content": system}] if system else []
    return [*head, {"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


def _told(facts: list[tuple[str, str]]) -> str:
    return " ".join(f"The {key} is {value}." for key, value in facts)


def do_as_told(task: Task, rng: random.Random) -> list[Message]:
    """Call the named tool with the named values."""
    tool = rng.choice(task.tools)
    arguments = {key: rng.choice(values(key, Split.TRAIN)) for key in tool.parameters["properties"]}
    told = _told(rng.sample(list(arguments.items()), len(arguments)))
    return _pair(task.rules, f"Call {tool.name}. {told}", call_text(tool.name, arguments))


def use_tool(task: Task, rng: random.Random) -> list[Message]:
    """Write with every fact given."""
    wanted = task.world.state["wanted"]
    told = _told(rng.sample(list(wanted.items()), len(wanted)))
    text = f"Please {task.meta['verb']} a {task.meta['noun']}. {told}"
    return _pair(task.rules, text, call_text(task.meta["tools"]["allowed"], wanted))


def which_tool(task: Task, rng: random.Random) -> list[Message]:
    """Name the tool to use, or the one never to use."""
    allowed = rng.random() < 0.7
    text = "Which tool do you use." if allowed else "Which tool do you never use."
    return _pair(task.rules, text, task.meta["tools"]["allowed" if allowed else "forbidden"] + ".")


def what_is_missing(task: Task, rng: random.Random) -> list[Message]:
    """Name the private facts, in the order of the write tool's arguments."""
    del rng
    missing = [key for key in task.world.state["wanted"] if key != task.meta["given"]]
    system, user = opening(task)
    return _pair(system["content"], f"{user['content']} What is missing.", ", ".join(missing) + ".")


def facts_to_json(task: Task, rng: random.Random) -> list[Message]:
    """Write facts as one JSON object."""
    del task
    facts = {key: rng.choice(values(key, Split.TRAIN)) for key in rng.sample(sorted(KEYS), rng.randrange(2, 5))}
    return _pair("", f"Write the facts. {_told(list(facts.items()))}", orjson.dumps(facts).decode())


def _word(rng: random.Random) -> str:
    """A value, a tool name, a fact, a code, held-out words included."""
    kind = rng.random()
    if kind < 0.4:
        return rng.choice(KEYS[rng.choice(sorted(KEYS))])
    if kind < 0.55:
        return f"{rng.choice(SIBLINGS)}_{rng.choice(VERBS)}_{rng.choice(NOUNS)}"
    if kind < 0.7:
        return f"{rng.choice((*LOOKUPS, *DISTRACTORS))}_{rng.choice(NOUNS)}"
    if kind < 0.8:
        return rng.choice(NOUNS)
    return f"{rng.randrange(10, 100)}"


def copy_line(rng: random.Random) -> list[Message]:
    """Repeat a list of words."""
    words = ", ".join(_word(rng) for _ in range(rng.randrange(4, 12)))
    return _pair("", words, words)


DRILLS = ((do_as_told, 4), (use_tool, 4), (which_tool, 3), (what_is_missing, 3), (facts_to_json, 2))


def drill(task: Task, rng: random.Random) -> list[Message]:
    """One drill on `task`."""
    exercise = rng.choices([d for d, _ in DRILLS], [w for _, w in DRILLS])[0]
    return exercise(task, rng)
