"""The pretraining corpus as batches of padded token rows, generated on the fly from a seed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import jinja2.sandbox
import numpy as np
import torch
from tokenizers import Tokenizer

from engine.synthesis.tiny_actor import Actor, draw_actor_plan, play, prompt_messages
from engine.synthesis.tiny_family import make_tiny_task
from engine.task import Split, Task, Tool
from engine.types import ChatMessage
from learner.pretrain.drills import chain, copy_line, drill
from learner.pretrain.tokenizer import CHAT_TEMPLATE

BATCHES_PER_CHUNK = 25
"""Rows of so many batches are generated together and sorted by length, to keep padding small."""
CONTEXT_WEIGHT = 0.1
"""Loss weight of tokens that no assistant wrote."""
CHAIN_STEPS = 300
"""Batches of chains before anything else: copying forms on them, and never where they are only mixed in."""
CHAIN_TOKENS = 96
COMPLETE_SHARE = 0.2
"""Share of dialogues whose instruction states every fact: then there is nothing to ask."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """Shares of copy lines and dialogues; the rest is drills."""

    until: float
    """Share of the training at which the next mixture takes over."""
    copies: float
    dialogues: float


MIXTURES = (
    Mixture(until=0.3, copies=0.3, dialogues=0.3),
    Mixture(until=1.0, copies=0.1, dialogues=0.6),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Conversations of similar length, padded on the right."""

    ids: torch.Tensor
    """[B, T] token ids; 0 on padding."""
    weights: torch.Tensor
    """[B, T] loss weight of *predicting* each token; 0 on padding."""


class Renderer:
    """Conversations to token rows by the model's own chat template."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment()
        self._template = environment.from_string(CHAT_TEMPLATE)
        self._tokenizer = tokenizer
        start, role, newline = tokenizer.encode("<|im_start|>assistant\n").ids
        self._head = (start, role, newline)
        self._end = tokenizer.token_to_id("<|im_end|>")

    def text(self, messages: Sequence[ChatMessage], tools: Sequence[Tool], *, prompt: bool = False) -> str:
        """The conversation as text; with `prompt`, an assistant turn is opened at its end."""
        functions = [tool.function for tool in tools]
        return self._template.render(messages=messages, tools=functions, add_generation_prompt=prompt)

    def ids(self, text: str) -> list[int]:
        """Token ids of rendered text."""
        return list(self._tokenizer.encode(text).ids)

    def decoded(self, ids: list[int]) -> str:
        """The text of `ids`, tags and markers included."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=False))

    def weights(self, ids: list[int]) -> list[float]:
        """1 on what an assistant wrote, its end of turn included; `CONTEXT_WEIGHT` elsewhere."""
        weights, inside = [], False
        for position, token in enumerate(ids):
            weights.append(1.0 if inside else CONTEXT_WEIGHT)
            opened = tuple(ids[max(0, position - 2) : position + 1]) == self._head
            inside = opened or (inside and token != self._end)
        return weights


def complete(task: Task) -> Task:
    """The task without an information gap: the instruction states every fact."""
    assert task.user is not None
    told = " ".join(f"The {key} is {fact.value}." for key, fact in task.user.facts.items())
    return replace(task, instruction=f"{task.instruction} {told}")


class Corpus:
    """An endless, seeded source of conversations over the training goals."""

    def __init__(self, seed: int, renderer: Renderer) -> None:
        self._seed = seed
        self._renderer = renderer
        self._rng = random.Random(seed)
        self._tasks = 0

    def _task(self) -> Task:
        """A fresh training task: goals and values of the train split, another seed than the pack's."""
        self._tasks += 1
        return make_tiny_task(self._seed, Split.TRAIN, self._tasks)

    def conversation(self, mixture: Mixture) -> str:
        """The text of the next conversation."""
        shares = (mixture.copies, mixture.dialogues, 1 - mixture.copies - mixture.dialogues)
        kind = self._rng.choices(("copy", "dialogue", "drill"), shares)[0]
        if kind == "copy":
            return self._renderer.text(copy_line(self._rng), [])
        task = self._task()
        if kind == "drill":
            return self._renderer.text(drill(task, self._rng), task.tools)
        told = self._rng.random() < COMPLETE_SHARE
        task = complete(task) if told else task
        turns = play(task, Actor(task, draw_actor_plan(self._rng), self._rng, told=told))
        return self._renderer.text([*prompt_messages(task), *turns], task.tools)

    def batches(self, steps: int, rows: int) -> Iterator[Batch]:
        """`steps` batches of `rows` rows: chains, then conversations, those of one batch of similar length."""
        for _ in range(min(CHAIN_STEPS, steps)):
            yield self._chains(rows)
        done = CHAIN_STEPS
        while done < steps:
            mixture = next(mixture for mixture in MIXTURES if done < mixture.until * steps)
            count = min(BATCHES_PER_CHUNK, steps - done)
            chunk = [self._renderer.ids(self.conversation(mixture)) for _ in range(count * rows)]
            chunk.sort(key=len)
            padded = [self._pad(chunk[at : at + rows]) for at in range(0, len(chunk), rows)]
            yield from self._rng.sample(padded, len(padded))
            done += count

    def _chains(self, rows: int) -> Batch:
        """Chains that repeat; what a repetition says is weighted like an assistant's words."""
        ids_BT = np.zeros((rows, CHAIN_TOKENS), dtype=np.int64)
        weights_BT = np.ones(ids_BT.shape, dtype=np.float32)
        for row in range(rows):
            ids = self._renderer.ids(chain(self._rng))
            ids_BT[row] = np.resize(ids, CHAIN_TOKENS)
            weights_BT[row, : len(ids)] = CONTEXT_WEIGHT
        return Batch(ids=torch.from_numpy(ids_BT), weights=torch.from_numpy(weights_BT))

    def _pad(self, ids_rows: list[list[int]]) -> Batch:
        ids_BT = np.zeros((len(ids_rows), max(map(len, ids_rows))), dtype=np.int64)
        weights_BT = np.zeros(ids_BT.shape, dtype=np.float32)
        for row, ids in enumerate(ids_rows):
            ids_BT[row, : len(ids)] = ids
            weights_BT[row, : len(ids)] = self._renderer.weights(ids)
        return Batch(ids=torch.from_numpy(ids_BT), weights=torch.from_numpy(weights_BT))
