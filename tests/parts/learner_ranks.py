"""Ranks of the learner as real processes that share one import (a fork server) and talk through gloo."""

import os
import signal
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from engine.config.load import load, validate
from engine.rundir.layout import RunDir
from learner.__main__ import accompany, serve
from learner.advantage import group_std
from learner.forming import usable_group
from learner.lifetime import Lifetime
from learner.loop import Learner
from learner.loss import Clip
from learner.ranks import Ranks
from learner.step import GrpoStep, StepSettings
from tests.parts.learner_kills import context
from tests.parts.learner_runs import make_group, make_policy

Plant = Callable[[GrpoStep, int], None]
"""Called in every rank with what it trains and its number, before the first step."""


def run_ranks(work: Callable[..., None], count: int, *arguments: Any) -> list[int | None]:
    """Run `work(*arguments)` in `count` processes that can join as ranks; returns their exit codes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = [context().Process(target=_rank, args=(work, rank, count, port, arguments)) for rank in range(count)]
    for process in started:
        process.start()
    try:
        for process in started:
            process.join(150)
    finally:
        for process in started:
            process.kill()
    return [process.exitcode for process in started]


def _rank(work: Callable[..., None], rank: int, count: int, port: int, arguments: tuple[Any, ...]) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    work(*arguments)


def learn(path: Path, plant: Plant | None = None, *, flush: bool = False) -> None:
    """One rank of the learner of a run, with `plant` in it; leaves its adapter in `rank-N.safetensors`."""
    run = RunDir(path)
    config = load(run.config).config
    ranks = Ranks.join(config)
    made: list[GrpoStep] = []
    make = GrpoStep.of

    def of(*arguments: Any) -> GrpoStep:
        made.append(make(*arguments))
        if plant is not None:
            plant(made[0], ranks.rank)
        return made[0]

    GrpoStep.of = of  # type: ignore[method-assign, assignment]
    code = serve(Learner(run, config, Lifetime(), ranks), flush=flush) if ranks.leads else accompany(run, config, ranks)
    save_file(made[0].policy.snapshot(), path / f"rank-{ranks.rank}.safetensors")
    os._exit(code)


def learn_the_rest(path: Path) -> None:
    """One rank of the learner, with the groups left over at the end as a last step."""
    learn(path, flush=True)


def add_gradients(model: Path, out: Path, sizes: Sequence[int], budget: int, *, double: bool = False) -> None:
    """One rank of the gradients of a step on groups of these sizes; leaves them in `out/rank-N.safetensors`."""
    wanted = int(os.environ["WORLD_SIZE"])
    ranks = Ranks.join(validate({"learner": {"ranks": wanted}}, {}))
    save_file(gradients(model, sizes, budget, ranks, double=double), out / f"rank-{ranks.rank}.safetensors")
    ranks.leave()


def gradients(model: Path, sizes: Sequence[int], budget: int, ranks: Ranks, *, double: bool) -> dict[str, Tensor]:
    """Adapter gradients, loss and policy tokens (`seen`) of a step as this rank has them."""
    policy = make_policy(model, adapted=True)
    if double:
        policy.model.double()
    usable = [usable_group(make_group(position, size), group_std, version=0) for position, size in enumerate(sizes)]
    episodes = [episode for each in usable for episode in each.episodes]
    step = GrpoStep(policy, StepSettings(clip=Clip(), grad_clip=1e9, micro_batch_tokens=budget), ranks)
    result = step.run(episodes, lr=0.0)
    seen = torch.from_numpy(np.stack([result.tokens.log_ratio_P, result.tokens.entropy_P, result.tokens.high_P]))
    grads = {name: parameter.grad for name, parameter in policy.parameters.items() if parameter.grad is not None}
    return {**grads, "loss": torch.tensor(result.loss, dtype=torch.float64), "seen": seen}


def poison(grpo: GrpoStep, rank: int) -> None:
    """A gradient of the last rank that is not finite."""
    if rank == grpo.ranks.count - 1:
        name = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"
        grpo.policy.parameters[name].register_hook(lambda grad: grad * float("nan"))


def crash(grpo: GrpoStep, rank: int) -> None:
    """The last rank fails in its first micro-batch, while the others go on to the sum."""
    if rank == grpo.ranks.count - 1:

        def fail(*_: Any) -> None:
            raise MemoryError("the GPU is full")

        grpo.policy.decoder.register_forward_pre_hook(fail)


def die(grpo: GrpoStep, rank: int) -> None:
    """The last rank is killed in its first micro-batch."""
    if rank == grpo.ranks.count - 1:
        grpo.policy.decoder.register_forward_pre_hook(lambda *_: os.kill(os.getpid(), signal.SIGKILL))


def abandon(grpo: GrpoStep, rank: int) -> None:
    """Rank 0 has to end before its first micro-batch; the others do not know."""
    if rank == 0:
        Lifetime.must_abandon = lambda self: True  # type: ignore[method-assign]
