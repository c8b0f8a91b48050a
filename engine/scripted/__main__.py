"""`python -m engine.scripted server|endpoint|learner`: a mock policy server, LLM endpoint or learner as a process."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

import anyio
import orjson
from aiohttp import web

from engine.chat.chat_format import ChatFormat
from engine.errors import ConfigError, SynthError
from engine.processes.event_loop import UVLOOP
from engine.rundir.layout import RunDir
from engine.scripted.cassette import Cassette
from engine.scripted.endpoint import ScriptedEndpoint
from engine.scripted.fault_ledger import FaultLedger
from engine.scripted.faults import ENDPOINT_FAULTS, POLICY_FAULTS, Faults, FaultWindow, ServerFault
from engine.scripted.learner import run_scripted_learner
from engine.scripted.server import MockServer

_BACKLOG = 16_384
_PARENT_POLL_S = 0.5


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m engine.scripted", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    server = commands.add_parser("server", help="a mock policy server; prints one JSON line when it is ready")
    server.add_argument("--model", type=Path, required=True, help="model directory, for its tokenizer and template")
    server.add_argument("--slots", type=int, default=64, help="adapters it holds at once")
    server.add_argument(
        "--pause-on-load-s", type=float, default=0.0, help="what stands still while an adapter is loaded"
    )
    server.add_argument("--abort-on-load", action="store_true", help="abort requests in flight when one is loaded")
    server.add_argument("--jitter", type=float, default=0.0, help="share of the latency by which replies vary")
    endpoint = commands.add_parser("endpoint", help="a scripted LLM endpoint; prints one JSON line when it is ready")
    endpoint.add_argument("--cassette", type=Path, help="JSON Lines of replies that win over the rules")
    endpoint.add_argument("--strict-cassette", action="store_true", help="refuse a document that has no reply there")
    endpoint.add_argument("--ledger", type=Path, help="file to which every injected fault is appended")
    endpoint.add_argument("--down", metavar="START:SECONDS", help="refuse all with 503, counted from the first request")
    endpoint.add_argument("--no-structured", action="store_true", help="refuse JSON schemas with 400")
    endpoint.add_argument("--api-key", help="refuse requests that do not bear it with 401")
    for serving, known in ((server, POLICY_FAULTS), (endpoint, ENDPOINT_FAULTS)):
        serving.add_argument("--host", default="127.0.0.1")
        serving.add_argument("--port", type=int, default=0, help="0 picks a free port")
        serving.add_argument("--latency-s", type=float, default=0.05)
        serving.add_argument("--seed", type=int, default=0)
        serving.add_argument("--faults", default="", help=f"name=probability,...; {' '.join(known)}")
    learner = commands.add_parser("learner", help="a learner that trains nothing, at learner.pace_s")
    learner.add_argument("run_dir", type=Path)
    for command in (server, endpoint, learner):
        command.add_argument("--parent-pid", type=int, help="end when this is no longer the parent")
    return parser.parse_args()


def _mock_server(arguments: argparse.Namespace) -> web.Application:
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
        jitter=arguments.jitter,
        slots=arguments.slots,
        seed=arguments.seed,
    )
    return mock.application()


def _endpoint(arguments: argparse.Namespace) -> web.Application:
    if arguments.strict_cassette and arguments.cassette is None:
        raise ConfigError("--strict-cassette has no effect without --cassette")
    rates = Faults.rates_of(arguments.faults, ENDPOINT_FAULTS)
    malformed = {fault: rates.pop(fault) for fault in (ServerFault.MALFORMED,) if fault in rates}
    ledger = FaultLedger(arguments.ledger)
    ledger.create()
    recorded = Cassette.load(arguments.cassette, strict=arguments.strict_cassette) if arguments.cassette else Cassette()
    endpoint = ScriptedEndpoint(
        cassette=recorded,
        faults=Faults(rates=rates, seed=arguments.seed),
        # With the seed of the others, one draw would tell the next.
        malformed=Faults(rates=malformed, seed=arguments.seed + 1),
        ledger=ledger,
        latency_s=arguments.latency_s,
        down=FaultWindow.of(arguments.down) if arguments.down else None,
        structured=not arguments.no_structured,
        api_key=arguments.api_key,
        seed=arguments.seed,
    )
    return endpoint.application()


async def _serve(app: web.Application, arguments: argparse.Namespace) -> None:
    # The endpoint forgets a request whose client went away, in particular one that hangs; SGLang does not for seconds.
    forgets = arguments.command == "endpoint"
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0, handler_cancellation=forgets)
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
            return run_scripted_learner(RunDir(arguments.run_dir), arguments.parent_pid)
        app = _endpoint(arguments) if arguments.command == "endpoint" else _mock_server(arguments)
        anyio.run(_serve, app, arguments, backend_options={"use_uvloop": UVLOOP})
    except SynthError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
