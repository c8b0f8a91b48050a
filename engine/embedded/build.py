"""Wiring: from a command line to a `PolicyServer` whose worker is not yet running."""

from __future__ import annotations

import argparse
from pathlib import Path

import psutil
import torch

from engine.embedded.adapters import AdapterLimits, LoadedAdapters
from engine.embedded.decoder import Decoder
from engine.embedded.kv import token_bytes
from engine.embedded.scheduler import BatchLimits, BatchScheduler
from engine.embedded.server import PolicyServer, ServerParts, Settings
from engine.embedded.text import Text
from engine.embedded.worker import CallInLoop, Worker

_MOST_TOKENS = 1 << 18
"""256 requests of 1,024 tokens: a small model's cache is not made larger on its own."""
_CGROUP = Path("/sys/fs/cgroup")


def default_kv_tokens(bytes_per_token: int) -> int:
    """As many tokens as fit a quarter of the free memory, at most 262,144."""
    free = psutil.virtual_memory().available
    if (_CGROUP / "memory.max").exists():
        limit, used = ((_CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        free = free if limit == "max" else min(free, int(limit) - int(used))
    return max(1, min(_MOST_TOKENS, int(free) // 4 // bytes_per_token))


def build_server(arguments: argparse.Namespace, call_in_loop: CallInLoop) -> PolicyServer:
    """Load the model and connect the parts; `call_in_loop` must be safe to call from the model thread."""
    torch.set_num_threads(arguments.threads)
    decoder, text = Decoder(arguments.model), Text(arguments.model)
    kv_tokens = arguments.max_total_tokens or default_kv_tokens(token_bytes(decoder.shape))
    limits = BatchLimits(max_running=arguments.max_running, kv_tokens=kv_tokens)
    scheduler = BatchScheduler(decoder, text, limits, arguments.seed)
    worker = Worker(scheduler, arguments.threads, call_in_loop)
    adapter_limits = AdapterLimits(
        max_adapters=arguments.max_loras, max_rank=arguments.max_lora_rank, root=arguments.adapter_root
    )
    settings = Settings(
        model=arguments.model,
        served_name=arguments.served_name or arguments.model.resolve().name,
        max_queued=arguments.max_queued,
        limits=limits,
        seed=arguments.seed,
    )
    adapters = LoadedAdapters(decoder, worker, adapter_limits)
    return PolicyServer(
        settings, ServerParts(decoder=decoder, text=text, worker=worker, adapters=adapters, gauges=scheduler.gauges)
    )
