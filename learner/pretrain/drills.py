"""Drills: single-turn exercises of one skill each, and copy lines over the whole lexicon.

The words of held-out nouns and values occur in copy lines only, so that their embeddings are trained and their tasks
are not.
"""

from __future__ import annotations

import random

import orjson

from engine.synthesis.tiny_actor import Message, call_text, opening
from engine.synthesis.tiny_words import DISTRACTORS, KEYS, LOOKUPS, NOUNS, SIBLINGS, VERBS, values
from engine.task import Split, Task


def _pair(user: str, assistant: str) -> list[Message]:
    """One exchange."""
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


def _told(facts: list[tuple[str, str]]) -> str:
    return " ".join(f"The {key} is {value}." for key, value in facts)


def do_as_told(task: Task, rng: random.Random) -> list[Message]:
    """Call the named tool with the named values."""
    tool = rng.choice(task.tools)
    arguments = {key: rng.choice(values(key, Split.TRAIN)) for key in tool.parameters["properties"]}
    told = _told(rng.sample(list(arguments.items()), len(arguments)))
    return _pair(f"Call {tool.name}. {told}", call_text(tool.name, arguments))


def use_tool(task: Task, rng: random.Random) -> list[Message]:
    """Write with every fact given, by the tool that the rule allows."""
    wanted = task.world.state["wanted"]
    told = _told(rng.sample(list(wanted.items()), len(wanted)))
    text = f"Please {task.meta['verb']} a {task.meta['noun']}. {told}"
    return _pair(text, call_text(task.meta["tools"]["allowed"], wanted))


def which_tool(task: Task, rng: random.Random) -> list[Message]:
    """Name the tool to use, and the one never to use."""
    names = task.meta["tools"]
    use = _pair("Which tool do you use.", f"{names['allowed']}.")
    never = _pair("Which tool do you never use.", f"{names['forbidden']}.")
    return [*use, *never] if rng.random() < 0.7 else [*never, *use]


def what_is_missing(task: Task, rng: random.Random) -> list[Message]:
    """Name the private facts, in the order of the write tool's arguments."""
    del rng
    missing = [key for key in task.world.state["wanted"] if key != task.meta["given"]]
    return _pair(f"{task.instruction} What is missing.", ", ".join(missing) + ".")


RULE_DRILLS = (use_tool, use_tool, which_tool)
OTHER_DRILLS = (do_as_told, what_is_missing)


def drill(task: Task, rng: random.Random) -> list[Message]:
    """Rules, then exercises on one task; the first needs the rule, so that no earlier exchange answers it."""
    exercises = [rng.choice(RULE_DRILLS), *rng.sample(OTHER_DRILLS, 2)]
    return [opening(task)[0], *(message for exercise in exercises for message in exercise(task, rng))]


def _word(rng: random.Random) -> str:
    """A value or noun, held-out ones included."""
    return rng.choice(rng.choice((*KEYS.values(), NOUNS)))


def _link(rng: random.Random) -> str:
    """One word or name part of a chain."""
    return rng.choice((*SIBLINGS, *LOOKUPS, *DISTRACTORS, *VERBS)) + "_" if rng.random() < 0.4 else _word(rng)


def copy_chain(rng: random.Random) -> list[Message]:
    """Repeat a chain of words and numbers; every token occurs once, so the last one tells the next."""
    words = dict.fromkeys(_link(rng) for _ in range(rng.randrange(4, 20)))
    numbers = rng.sample(range(10, 100), len(words))
    chain = "".join(f"{word}{number}" for word, number in zip(words, numbers, strict=True))
    return _pair(chain, chain)


def copy_facts(rng: random.Random) -> list[Message]:
    """Facts with any words as values, as one JSON object: a value must be looked up, no pool tells it."""
    facts = {key: _word(rng) for key in rng.sample(sorted(KEYS), rng.randrange(2, 7))}
    told = _told(rng.sample(list(facts.items()), len(facts)))
    return _pair(f"Write {', '.join(facts)}. {told}", orjson.dumps(facts).decode())


def copy_line(rng: random.Random) -> list[Message]:
    """One exercise of copying."""
    return rng.choice((copy_chain, copy_facts))(rng)
