"""What a competent agent says next in a task of the tiny family, read from nothing but the conversation's text.

Used in process by GoldPolicy and over HTTP by the mock server, which both see token ids only. In other
conversations it asks once and then gives up: enough to exercise an engine, not to earn a reward.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

import orjson

_RULES = re.compile(r"use (\w+), never (\w+)\. Before you \w+ call (\w+)\.")
_SIGNATURE = re.compile(r"^(\w+)\((.*?)\)", re.MULTILINE)
_FACT = re.compile(r"The (\w+) is (\w+)\.")
_CODE = re.compile(r'"code":"(\w+)"')
_CALLED = re.compile(r'<tool_call>\{"name":"(\w+)"')
_GIVE_UP = "<answer>Done.</answer>"
_MOST_QUESTIONS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Character:
    """Which mistakes an agent makes, drawn once an episode."""

    asks: bool = True
    looks_up: bool = True
    obeys: bool = True
    reports: bool = True

    @classmethod
    def drawn(cls, rng: random.Random, care: float = 0.85) -> Character:
        """Each of the four things is done right with probability `care`."""
        asks, looks_up, obeys, reports = (rng.random() < care for _ in range(4))
        return cls(asks=asks, looks_up=looks_up, obeys=obeys, reports=reports)


def continuation(text: str, character: Character) -> str:
    """The next completion after the conversation `text`."""
    rules, questions = _RULES.search(text), text.count("<question>")
    if rules is None:
        return _GIVE_UP if questions else "<question>What do you need?</question>"
    allowed, forbidden, look_up = rules.groups()
    signatures = {name: [part for part in inner.split(", ") if part] for name, inner in _SIGNATURE.findall(text)}
    called, known = set(_CALLED.findall(text)), dict(_FACT.findall(text))
    missing = [name for name in signatures.get(allowed, []) if name not in known]
    if missing and character.asks and questions < _MOST_QUESTIONS:
        return f"<question>What is the {' and the '.join(missing)}</question>"
    if character.looks_up and look_up not in called:
        return _call(look_up, signatures.get(look_up, []), known)
    write = allowed if character.obeys else forbidden
    if write not in called:
        return _call(write, signatures.get(write, []), known)
    code = _CODE.findall(text)
    return f"<answer>The code is {code[-1]}.</answer>" if code and character.reports else _GIVE_UP


def _call(name: str, parameters: list[str], known: dict[str, str]) -> str:
    arguments = {parameter: known.get(parameter, "unknown") for parameter in parameters}
    return f"<tool_call>{orjson.dumps({'name': name, 'arguments': arguments}).decode()}</tool_call>"
