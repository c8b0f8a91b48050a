"""`python -m engine.embedded --model DIR`: start the CPU policy server; prints one JSON line when it is ready."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import orjson
import structlog
from aiohttp import web
from anyio.to_thread import run_sync

from engine.embedded.allocator import keep_memory
from engine.errors import ConfigError

if TYPE_CHECKING:
    from engine.embedded.server import PolicyServer

_PARENT_POLL_S = 0.5
_QUIET_S = 2.0
_LAST_REQUESTS_S = 30.0
_BACKLOG = 4096


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m engine.embedded", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face model directory")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: loopback only)")
    parser.add_argument("--port", type=int, default=0, help="0 picks a free port")
    parser.add_argument("--served-name", help="model name to report (default: the directory's name)")
    parser.add_argument("--adapter-root", type=Path, help="adapters loaded over HTTP must lie below it")
    parser.add_argument("--lora-paths", nargs="*", default=[], metavar="NAME=PATH", help="adapters to load at start")
    parser.add_argument("--max-loras", type=int, default=8, help="adapters loaded at once, the base not counted")
    parser.add_argument("--max-lora-rank", type=int, default=64, help="adapters of a larger rank are refused")
    parser.add_argument("--max-running", type=int, default=256, help="requests that decode at once; others wait")
    parser.add_argument("--max-queued", type=int, default=16_384, help="live requests beyond this get HTTP 503")
    parser.add_argument(
        "--max-total-tokens",
        type=int,
        help="tokens of KV cache, prompt and output of all running requests and what is cached for the next ones "
        "(default: a quarter of the free memory, at most 262,144 tokens)",
    )
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sampler")
    parser.add_argument("--parent-pid", type=int, help="exit when this process is no longer the parent")
    return parser.parse_args(argv)


async def _serve(arguments: argparse.Namespace) -> None:
    # torch takes seconds to import: the command line is checked before.
    from engine.embedded.build import build_server  # noqa: PLC0415
    from engine.embedded.routes import application  # noqa: PLC0415

    loop = asyncio.get_running_loop()
    server = await run_sync(build_server, arguments, loop.call_soon_threadsafe)
    worker = server.parts.worker
    listening = socket.create_server((arguments.host, arguments.port), backlog=_BACKLOG)
    runner = web.AppRunner(application(server), handler_cancellation=True, access_log=None, shutdown_timeout=5)
    async with anyio.create_task_group() as tg:
        tg.start_soon(run_sync, worker.run)
        tg.start_soon(_stop_on_signal, tg.cancel_scope)
        if arguments.parent_pid is not None:
            tg.start_soon(_stop_without_parent, arguments.parent_pid, server, tg.cancel_scope)
        try:
            for pair in arguments.lora_paths:
                name, _, path = pair.partition("=")
                await server.parts.adapters.load(name, Path(path))
            await runner.setup()
            await web.SockSite(runner, listening).start()
            host, port = listening.getsockname()[:2]
            ready = {"url": f"http://{host}:{port}", "pid": os.getpid(), "model": str(arguments.model)}
            sys.stdout.write(orjson.dumps(ready).decode() + "\n")
            sys.stdout.flush()
            await anyio.sleep_forever()
        finally:
            worker.stop()
            with anyio.CancelScope(shield=True):
                await runner.cleanup()


async def _stop_on_signal(scope: anyio.CancelScope) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            scope.cancel()
            return


async def _stop_without_parent(parent_pid: int, server: PolicyServer, scope: anyio.CancelScope) -> None:
    """An engine that drains because its supervisor died still needs its completions: leave once nobody asks."""
    while os.getppid() == parent_pid:  # noqa: ASYNC110 - the kernel sets no event
        await anyio.sleep(_PARENT_POLL_S)
    with anyio.move_on_after(_LAST_REQUESTS_S):
        quiet_s = 0.0
        while quiet_s < _QUIET_S:
            await anyio.sleep(_PARENT_POLL_S)
            quiet_s = 0.0 if server.live else quiet_s + _PARENT_POLL_S
    scope.cancel()


def main(argv: list[str]) -> int:
    """Run until a signal or the parent's end; 2 when the server cannot start."""
    arguments = _arguments(argv)
    structlog.configure(
        processors=[
            structlog.processors.TimeStamper(),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
    )
    keep_memory()
    problems: list[str] = []
    try:
        anyio.run(_serve, arguments, backend_options={"use_uvloop": True})
    except* (ConfigError, OSError) as group:
        problems.extend(str(error) for error in group.exceptions)
    sys.stderr.writelines(f"{problem}\n" for problem in problems)
    return 2 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
