"""What a base must be able to do before any RL; the loss alone misleads.

Each probe greedily continues, or scores, a constructed conversation of held-out tasks, so that what is measured is the
skill and not the base's discipline.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

import orjson
import torch
from transformers import Qwen3ForCausalLM

from engine.synthesis.tiny_actor import GOLD, Actor, play, prompt_messages
from engine.synthesis.tiny_family import TINY_SEED, make_tiny_task
from engine.task import Split, Task
from engine.types import ChatMessage
from learner.pretrain.corpus import Renderer

_SEED = TINY_SEED + 1
"""Not the pack's: its held-out tasks measure trained policies and nothing else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probes:
    """Shares in [0, 1] over held-out tasks."""

    values_right: float
    """The write carries exactly the wanted values, once all are known."""
    code_copied: float
    """A begun report names the code of the last observation."""
    private_key_asked: float
    """A begun question names a private key."""
    allowed_chosen: float
    """Mean probability of the allowed sibling against the forbidden one."""

    def problems(self) -> list[str]:
        """What falls short of what GRPO needs; empty for a usable base."""
        wanted = {"values_right": 0.8, "code_copied": 0.95, "private_key_asked": 0.95, "allowed_chosen": 0.65}
        measured = {
            "values_right": self.values_right,
            "code_copied": self.code_copied,
            "private_key_asked": self.private_key_asked,
            "allowed_chosen": self.allowed_chosen,
        }
        return [f"{name} {measured[name]:.3f} < {least}" for name, least in wanted.items() if measured[name] < least]


def probe_tasks(model: Qwen3ForCausalLM, renderer: Renderer, count: int = 200, split: Split = Split.HELDOUT) -> Probes:
    """Measure `count` tasks of `split`, one by one."""
    tasks = [make_tiny_task(_SEED, split, index) for index in range(count)]
    bench = _Bench(model, renderer)
    return Probes(
        values_right=_mean([bench.values_right(task) for task in tasks]),
        code_copied=_mean([bench.code_copied(task) for task in tasks]),
        private_key_asked=_mean([bench.private_key_asked(task) for task in tasks]),
        allowed_chosen=_mean([bench.allowed_chosen(task) for task in tasks]),
    )


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers)


def _gold(task: Task) -> list[ChatMessage]:
    """A gold episode that asks, looks up, writes and reports."""
    plan = type(GOLD)(look_up_before_asking=False)
    return play(task, Actor(task, plan, random.Random(0)))


class _Bench:
    """Continues prefixes of gold episodes."""

    def __init__(self, model: Qwen3ForCausalLM, renderer: Renderer) -> None:
        self._model = model
        self._renderer = renderer

    def values_right(self, task: Task) -> float:
        head = f'<tool_call>{{"name":"{task.meta["tools"]["allowed"]}'
        text = self._continued(task, _gold(task)[:-3], head)
        call = re.search(r"<tool_call>(\{.*\})</tool_call>", text)
        try:
            written = orjson.loads(call[1]) if call else {}
        except orjson.JSONDecodeError:
            return 0.0
        return float(written.get("arguments") == task.world.state["wanted"])

    def code_copied(self, task: Task) -> float:
        return float(self._continued(task, _gold(task)[:-1], "<answer>The code is ").find(task.meta["code"]) >= 0)

    def private_key_asked(self, task: Task) -> float:
        assert task.user is not None
        text = self._continued(task, [], "<question>")
        return float(any(key in text.split("</question>")[0] for key in task.user.facts))

    @torch.inference_mode()
    def allowed_chosen(self, task: Task) -> float:
        """The probability of the allowed sibling's first token, of both, after gold preparation."""
        ids = self._prompt(task, _gold(task)[:-3], '<tool_call>{"name":"')
        logits_V = self._model(input_ids=torch.tensor([ids])).logits[0, -1]
        first = [self._renderer.ids(task.meta["tools"][part])[0] for part in ("allowed", "forbidden")]
        return float(torch.softmax(logits_V[first], dim=0)[0])

    def _prompt(self, task: Task, turns: list[ChatMessage], head: str) -> list[int]:
        return self._renderer.ids(self._renderer.text([*prompt_messages(task), *turns], task.tools, prompt=True) + head)

    @torch.inference_mode()
    def _continued(self, task: Task, turns: list[ChatMessage], head: str) -> str:
        """`head` and its greedy continuation up to the end of the turn."""
        prompt = self._prompt(task, turns, head)
        made = self._model.generate(
            input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=40,
        )
        return head + self._renderer.decoded(made[0, len(prompt) :].tolist())
