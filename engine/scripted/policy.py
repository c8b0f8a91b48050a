"""Policies without a model: they speak the model's tokens and make up consistent log-probabilities."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterable, Sequence

import anyio

from engine.chat.chat_format import ChatFormat
from engine.scripted.script import Character, continuation
from engine.task import Task
from engine.types import Completion, Turn

SERVER = "scripted"


def made_up_logprobs(ids: Sequence[int]) -> array[float]:
    """One log-probability in [-1, 0) per id: a function of the id alone."""
    return array("f", [-((number * 2_654_435_761 % 1_000) + 1) / 1_001 for number in ids])


class GoldPolicy:
    """Plays a task's gold script (`meta["gold"]`, of the tasks given) or the tiny family's, with seeded mistakes."""

    def __init__(self, chat: ChatFormat, seed: int = 0, tasks: Iterable[Task] = ()) -> None:
        self._chat, self._seed = chat, seed
        self._gold = {task.instruction: task.meta["gold"] for task in tasks if "gold" in task.meta}

    async def complete(self, turn: Turn) -> Completion:
        """The next line of the script, as ids with a stop token; cut at the turn's token limit."""
        text = self._text(turn)
        sampled = self._chat.encode(text)
        sampled.append(self._chat.stop_token_ids[0])
        ids = sampled[: turn.limits.completion_tokens]
        return Completion(
            text=text if len(ids) == len(sampled) else self._chat.decode(ids),
            ids=ids,
            logprobs=made_up_logprobs(ids),
            adapter=turn.adapter,
            server=SERVER,
            stop="stop" if len(ids) == len(sampled) else "length",
        )

    def _text(self, turn: Turn) -> str:
        gold = self._gold.get(turn.messages[1]["content"])
        if gold is not None:
            return str(gold[turn.index]) if turn.index < len(gold) else "<answer>Done.</answer>"
        character = Character.drawn(random.Random(f"{self._seed}:{turn.episode_id}"))
        return continuation(self._chat.decode(turn.ids), character)


class SlowPolicy(GoldPolicy):
    """A GoldPolicy that takes its time: jittered, by default two seconds a turn."""

    latency_s = 2.0

    async def complete(self, turn: Turn) -> Completion:
        """The same completion after 0.5 to 1.5 times `latency_s`."""
        rng = random.Random(f"{self._seed}:{turn.id}")
        await anyio.sleep(self.latency_s * rng.uniform(0.5, 1.5))
        return await super().complete(turn)
