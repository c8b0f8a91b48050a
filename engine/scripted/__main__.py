"""`python -m engine.scripted server|learner`: the mock policy server, or the simulated learner, as a process."""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import sys
from pathlib import Path

import anyio
import orjson
from aiohttp import web

from engine.errors import SynthError
from engine.policy.chat_format import ChatFormat
from engine.rundir import RunDir
from engine.scripted.faults import Faults
from engine.scripted.learner import serve
from engine.scripted.server import MockServer

_BACKLOG = 16_384
UVLOOP = importlib.util.find_spec("uvloop") is not None
_PARENT_POLL_S = 0.5


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m engine.scripted", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    server = commands.add_parser("server", help="a mock policy server; prints one JSON line when it is ready")
    server.add_argument("--model", type=Path, required=True, help="model directory, for its tokenizer and template")
    server.add_argument("--host", default="127.0.0.1")
    server.add_argument("--port", type=int, default=0, help="0 picks a free port")
    server.add_argument("--latency-s", type=float, default=0.05)
    server.add_argument("--slots", type=int, default=64, help="adapters it holds at once")
    server.add_argument("--seed", type=int, default=0)
    server.add_argument(
        "--faults", default="", help="name=probability,...; error busy reset garbage hang abort truncate"
    )
    server.add_argument(
        "--pause-on-load-s", type=float, default=0.0, help="what stands still while an adapter is loaded"
    )
    server.add_argument("--abort-on-load", action="store_true", help="abort requests in flight when one is loaded")
    learner = commands.add_parser("learner", help="a learner that trains nothing, at learner.pace_s")
    learner.add_argument("run_dir", type=Path)
    for command in (server, learner):
        command.add_argument("--parent-pid", type=int, help="end when this is no longer the parent")
    return parser.parse_args()


async def _serve(arguments: argparse.Namespace) -> None:
    faults = Faults(
        rates=Faults.rates_of(arguments.faults),
        seed=arguments.seed,
        pause_on_load_s=arguments.pause_on_load_s,
        abort_on_load=arguments.abort_on_load,
    )
    mock = MockServer(
        chat=ChatFormat.load(arguments.model),
        faults=faults,
        latency_s=arguments.latency_s,
        slots=arguments.slots,
        seed=arguments.seed,
    )
    runner = web.AppRunner(mock.application(), access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    site = web.TCPSite(runner, arguments.host, arguments.port, backlog=_BACKLOG)
    await site.start()
    host, port = runner.addresses[0][:2]
    sys.stdout.write(orjson.dumps({"url": f"http://{host}:{port}"}).decode() + "\n")
    sys.stdout.flush()
    async with anyio.create_task_group() as tg:
        tg.start_soon(_until_stopped, tg.cancel_scope)
        if arguments.parent_pid is not None:
            tg.start_soon(_until_orphaned, arguments.parent_pid, tg.cancel_scope)
    await runner.cleanup()


async def _until_orphaned(parent: int, scope: anyio.CancelScope) -> None:
    alive = True
    while alive:
        await anyio.sleep(_PARENT_POLL_S)
        alive = os.getppid() == parent
    scope.cancel()


async def _until_stopped(scope: anyio.CancelScope) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:
        async for _ in received:
            scope.cancel()


def main() -> int:
    """Entry point; returns the exit code."""
    arguments = _arguments()
    try:
        if arguments.command == "learner":
            return serve(RunDir(arguments.run_dir), arguments.parent_pid)
        anyio.run(_serve, arguments, backend_options={"use_uvloop": UVLOOP})
    except SynthError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
