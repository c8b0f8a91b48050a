"""The policy being trained: a frozen transformers decoder with a peft LoRA adapter.

The adapter's masters are float32. The base is what the servers run: float32 on the CPU, bfloat16 on GPUs; there the
forward pass uses the masters rounded to bfloat16, and those rounded tensors are what is published.

Only what the serving side applies exactly is trained: scaling alpha / r, all seven projections of every layer, no
dropout, no bias, no extra modules (SGLang silently ignores the rest of a peft configuration). The adapter starts at
B = 0, so version 0 equals the base, or from an adapter directory (warm start).
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from engine.errors import ConfigError
from engine.modeldir.shape import TARGET_MODULES, check_architecture
from learner import attention
from learner.lora import ADAPTER, fuse

WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"

_PLAIN = {
    "peft_type": ("LORA", "servers load nothing else"),
    "init_lora_weights": (True, "an initialisation from the base's weights changes the base, which servers do not"),
    "use_rslora": (False, "servers compute alpha / r whatever it says, so it would be served sqrt(r) times too weak"),
    "use_dora": (False, "servers refuse it"),
    "rank_pattern": ({}, "servers ignore it"),
    "alpha_pattern": ({}, "servers ignore it"),
    "modules_to_save": (None, "servers ignore it"),
    "lora_dropout": (0.0, "the trained policy would differ from the served one"),
    "bias": ("none", "servers ignore it"),
    "layers_to_transform": (None, "the adapter must cover every layer"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSettings:
    """Shape of the adapter."""

    rank: int
    alpha: int

    def config(self, base: str) -> dict[str, Any]:
        """The adapter_config.json that is published: what peft and the servers read, in a fixed order."""
        plain = {key: value for key, (value, _) in _PLAIN.items()}
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "r": self.rank,
            "lora_alpha": self.alpha,
            "target_modules": list(TARGET_MODULES),
            "fan_in_fan_out": False,
            "inference_mode": True,
            **plain,
        }


def check_adapter_config(config: Mapping[str, Any], lora: LoraSettings, where: str) -> None:
    """Refuse an adapter configuration that would not be served as it is trained.

    Raises ConfigError that names the key and the reason."""
    for key, (plain, reason) in _PLAIN.items():
        found = config.get(key) or plain
        if found != plain:
            raise ConfigError(f"{where}: {key} = {found!r} is refused: {reason}; retrain the adapter without it")
    targets = config.get("target_modules")
    if sorted(targets if isinstance(targets, list) else [str(targets)]) != list(TARGET_MODULES):
        extra = "; lm_head and embed_tokens are tied in small models" if "lm_head" in str(targets) else ""
        raise ConfigError(
            f"{where}: target_modules = {targets!r} is refused: exactly {list(TARGET_MODULES)} are served{extra}"
        )
    for key, wanted in (("r", lora.rank), ("lora_alpha", lora.alpha)):
        if config.get(key) != wanted:
            raise ConfigError(
                f"{where}: {key} = {config.get(key)!r}, but the configuration says {wanted}; make them equal"
            )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoraPolicy:
    """The model, and its trained tensors under the names they are published with."""

    model: PeftModel
    lora: LoraSettings
    base_path: Path
    parameters: Mapping[str, nn.Parameter]
    """``base_model.model.model.layers.{i}...lora_{A|B}.weight`` -> parameter, sorted by name."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.head.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the base, and so of the adapter that is applied and published."""
        return self.head.dtype

    @property
    def decoder(self) -> Any:
        """The decoder without its head: ids -> hidden states."""
        return self.model.get_base_model().model

    @property
    def head(self) -> Tensor:
        """[V, h] the frozen output matrix."""
        weight: Tensor = self.model.get_base_model().lm_head.weight
        return weight

    def recompute(self) -> None:
        """Keep a layer's input alone from the forward pass, and compute the rest again in the backward pass."""
        self.model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})

    def base_config_sha256(self) -> str:
        """Hash of the base model's config.json."""
        return hashlib.sha256((self.base_path / "config.json").read_bytes()).hexdigest()

    def snapshot(self) -> dict[str, Tensor]:
        """A copy of the adapter's masters."""
        return {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    def applied(self) -> dict[str, Tensor]:
        """A copy, on the CPU, of the adapter as the forward pass applies it: what is published."""
        return {
            name: parameter.detach().to("cpu", self.dtype, copy=True) for name, parameter in self.parameters.items()
        }

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor], where: str) -> None:
        """Overwrite the adapter.

        Raises ConfigError if names or shapes differ from this policy's."""
        for name in sorted(self.parameters.keys() ^ tensors.keys()):
            side = "lacks" if name in self.parameters else "has an unknown tensor"
            raise ConfigError(f"{where}: the adapter {side} {name}; it belongs to another model")
        for name, parameter in self.parameters.items():
            if parameter.shape != tensors[name].shape:
                found, wanted = tuple(tensors[name].shape), tuple(parameter.shape)
                raise ConfigError(f"{where}: {name} has shape {found}, this model and rank need {wanted}")
            parameter.copy_(tensors[name])

    @contextmanager
    def holding(self, tensors: Mapping[str, Tensor], where: str) -> Iterator[None]:
        """Score with another version's tensors inside the block."""
        current = self.snapshot()
        self.load(tensors, where)
        try:
            yield
        finally:
            self.load(current, "the trained adapter")


def load_policy(
    base_path: Path,
    lora: LoraSettings,
    *,
    seed: int,
    warm_start: Path | None = None,
    placed: tuple[torch.device, torch.dtype] = (torch.device("cpu"), torch.float32),
) -> LoraPolicy:
    """Load the base from a directory and put a fresh (seeded) or warm-started adapter on it.

    `placed` is the device of both, and the dtype of the base alone: the adapter's masters are always float32. Raises
    ConfigError naming the path for a base or adapter that cannot be used."""
    check_architecture(base_path, "trained")
    disable_progress_bar()
    torch.manual_seed(seed)
    device, dtype = placed
    base = AutoModelForCausalLM.from_pretrained(
        base_path, dtype=dtype, attn_implementation=attention.ATTENTION_NAME, trust_remote_code=False
    )
    base.config.use_cache = False
    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, target_modules=list(TARGET_MODULES), lora_dropout=0.0, bias="none"
    )
    with warnings.catch_warnings():
        # peft 0.21 reads an attribute that transformers 5.23 has renamed; neither concerns us.
        warnings.simplefilter("ignore", FutureWarning)
        model = get_peft_model(base, config).to(device)
    fuse(model)
    model.train()
    marker = f".{ADAPTER}.weight"
    named = {name.replace(marker, ".weight"): value for name, value in model.named_parameters() if value.requires_grad}
    policy = LoraPolicy(model=model, lora=lora, base_path=base_path, parameters=dict(sorted(named.items())))
    if warm_start is not None:
        policy.load(read_adapter_tensors(warm_start, lora), str(warm_start))
    return policy


def read_adapter_tensors(path: Path, lora: LoraSettings) -> dict[str, Tensor]:
    """The tensors of an adapter directory, as float32.

    Raises ConfigError if a file is missing, unreadable or not servable as trained."""
    try:
        config = orjson.loads((path / ADAPTER_CONFIG).read_bytes())
        tensors = load_file(path / WEIGHTS)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: not an adapter directory: {error.filename} is missing") from error
    except (orjson.JSONDecodeError, SafetensorError) as error:
        raise ConfigError(f"{path}: unreadable adapter ({error}); copy it again") from error
    check_adapter_config(config, lora, str(path / ADAPTER_CONFIG))
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ConfigError(f"{path / WEIGHTS}: {name} is not finite; take an earlier version")
    return {name: tensor.float() for name, tensor in tensors.items()}
