"""Wiring: from a command line to a `PolicyServer` whose worker is not yet running."""

from __future__ import annotations

import argparse

import torch

from engine.embedded.adapters import AdapterLimits, Adapters
from engine.embedded.decoder import Decoder
from engine.embedded.scheduler import Limits, Scheduler
from engine.embedded.server import Parts, PolicyServer, Settings
from engine.embedded.text import Text
from engine.embedded.worker import CallInLoop, Worker

_KV_BYTES = 512 << 20


def build_server(arguments: argparse.Namespace, call_in_loop: CallInLoop) -> PolicyServer:
    """Load the model and connect the parts; `call_in_loop` must be safe to call from the model thread."""
    torch.set_num_threads(arguments.threads)
    decoder, text = Decoder(arguments.model), Text(arguments.model)
    kv_tokens = arguments.max_total_tokens or _KV_BYTES // decoder.shape.kv_bytes_per_token
    limits = Limits(max_running=arguments.max_running, kv_tokens=kv_tokens)
    scheduler = Scheduler(decoder, text, limits, arguments.seed)
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
    adapters = Adapters(decoder, worker, adapter_limits)
    return PolicyServer(
        settings, Parts(decoder=decoder, text=text, worker=worker, adapters=adapters, gauges=scheduler.gauges)
    )
