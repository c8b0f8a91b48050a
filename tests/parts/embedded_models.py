"""Random tiny models and adapters for the embedded server's tests: real files, made with transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

# A second OpenMP thread collapses when another process takes its core; these models need none.
torch.set_num_threads(1)

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 48,
    "vocab_size": 300,
    "max_position_embeddings": 512,
    "eos_token_id": 257,
    "bos_token_id": None,
    "pad_token_id": None,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CLASSES = {
    "Llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "Qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    "Qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
}
MODULES = ("q", "k", "v", "o", "gate", "up", "down")


def make_model(path: Path, architecture: str = "Qwen3", shard_size: str = "1GB", **changes: Any) -> Path:
    """A random model (weights large enough that the distribution is not flat) with a byte-level tokenizer."""
    torch.manual_seed(11)
    config_type, model_type = CLASSES[architecture]
    sizes = {**SIZES, **changes}
    if architecture == "Qwen2":
        sizes["head_dim"] = sizes["hidden_size"] // sizes["num_attention_heads"]
    model = model_type(config_type(**sizes)).to(torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.copy_(1 + 0.2 * torch.randn_like(parameter))
            else:
                parameter.copy_(torch.randn_like(parameter) * (0.02 if name.endswith("bias") else 0.15))
    model.save_pretrained(path, max_shard_size=shard_size)
    _tokenizer().save(str(path / "tokenizer.json"))
    return path


def _tokenizer() -> Tokenizer:
    """Token i < 256 is a byte, 256 <|im_start|>, 257 <|im_end|>, 258 <answer>, 259 </answer>."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|im_start|>", special=True), AddedToken("<|im_end|>", special=True)])
    tokenizer.add_tokens(["<answer>", "</answer>"])
    return tokenizer


def make_adapter(
    path: Path, model: Path, *, seed: int, rank: int = 4, modules: tuple[str, ...] = MODULES, scale: float = 0.1
) -> Path:
    """A peft LoRA directory of random factors that change the distribution visibly."""
    config = orjson.loads((model / "config.json").read_bytes())
    hidden, mlp, head_dim = config["hidden_size"], config["intermediate_size"], config.get("head_dim")
    head_dim = head_dim or hidden // config["num_attention_heads"]
    query, key = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
    widths = {"q": (query, hidden), "k": (key, hidden), "v": (key, hidden), "o": (hidden, query)}
    widths |= {"gate": (mlp, hidden), "up": (mlp, hidden), "down": (hidden, mlp)}
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        for module in modules:
            block = "self_attn" if module in "qkvo" else "mlp"
            prefix = f"base_model.model.model.layers.{layer}.{block}.{module}_proj"
            out_width, in_width = widths[module]
            tensors[f"{prefix}.lora_A.weight"] = torch.randn(rank, in_width, generator=generator) * 0.1
            tensors[f"{prefix}.lora_B.weight"] = torch.randn(out_width, rank, generator=generator) * scale
    path.mkdir(parents=True)
    save_file(tensors, path / "adapter_model.safetensors")
    described = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(model),
        "r": rank,
        "lora_alpha": 2 * rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(f"{module}_proj" for module in modules),
    }
    (path / "adapter_config.json").write_bytes(orjson.dumps(described))
    return path


def reference_logprobs(model: Path, ids: list[int], adapter: Path | None = None, temperature: float = 1) -> list[float]:
    """Log-probability of ids[1:] under transformers (and peft), the numbers that the server must agree with."""
    decoder: Any = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    if adapter is not None:
        from peft import PeftModel  # noqa: PLC0415  a second of import that only adapter tests need

        decoder = PeftModel.from_pretrained(decoder, adapter)
    with torch.inference_mode():
        logits = decoder(torch.tensor([ids])).logits[0, :-1] / temperature
    return list(logits.log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist())
