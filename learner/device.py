"""Where the learner computes, and in which dtype its base is."""

from __future__ import annotations

import torch

from engine.config.tree import Config
from engine.errors import ConfigError


def placed(config: Config, rank: int) -> tuple[torch.device, torch.dtype]:
    """Device and dtype of the base for a rank: the CPU in float32, or GPU number `rank` of those that torch sees.

    On a GPU the base is bfloat16, as SGLang serves it there, and float32 where the servers compute on the CPU.
    Raises ConfigError if torch sees no such GPU."""
    if not config.learner.gpus:
        return torch.device("cpu"), torch.float32
    if (seen := torch.cuda.device_count()) <= rank:
        raise ConfigError(
            f"learner.gpus = {list(config.learner.gpus)} needs a torch that sees {rank + 1} GPUs, and this one sees "
            f"{seen}: install torch for CUDA (`synth-engine doctor` tells more), or set learner.gpus = []"
        )
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    served_on_cpu = config.policy.launch == "embedded" or config.policy.device == "cpu"
    return device, torch.float32 if served_on_cpu else torch.bfloat16
