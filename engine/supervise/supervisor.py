"""Process supervision of one run: servers, learner and engine, started in order, restarted with back-off, drained.

::

    servers ready, adapters/v00000 there ──▶ engine ──exit 0──▶ learner ends ──▶ servers are stopped ──▶ finished
                 │ a process ends too early: again after 1, 2, 4, ... s; over run.max_restarts in ten minutes, or twice
                 │ with the same error: give up
                 │ learner state `failed`, engine exit 2: give up at once with their own sentence
    SIGTERM or Ctrl-C: drain = SIGTERM to engine, then learner, then servers, all within run.drain_s + 20 s, then what
                 takes the metrics elsewhere, within 15 s more; a second one: SIGKILL

The supervisor holds no episode state; when it dies, every child notices (`--parent-pid`), drains and exits.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from enum import StrEnum
from types import FrameType

from engine.config.environment import child_environment
from engine.config.tree import Config
from engine.errors import RunError
from engine.learnerdir.adapter import is_published
from engine.learnerdir.progress import LearnerProgress, LearnerState, read_progress
from engine.processes.child import PYTHON, Child, Command, end_orphans, likely_cause, record, torch_environment
from engine.rundir.layout import RunDir, read_json
from engine.serving.addresses import Address, free_addresses, write_addresses
from engine.serving.commands import server_commands
from engine.serving.probe import server_is_ready
from engine.stream.closed import reopen_stream

EXIT_OK, EXIT_FAILED, EXIT_CONFIG = 0, 1, 2
SIGNALLED = 128
"""Plus the signal: the exit code of what a signal stopped."""
DRAINING = "draining: what is finished is being saved (Ctrl-C again stops at once)"
_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_TICK_S = 0.1
_GRACE_S = 5.0
_UPLOAD_S = 15.0
"""What a metrics writer may take to send what is left."""


class SupervisorPhase(StrEnum):
    """What the supervisor is doing."""

    STARTING = "starting"
    """Servers (the policy's and the endpoints') and learner are getting ready."""
    RUNNING = "running"
    """The engine runs."""
    DRAINING = "draining"
    """A stop was asked for; finished work is being saved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a run ended."""

    code: int
    """Exit code of the command: 0 finished, 1 gave up, 2 configuration, 128 + signal when it was stopped."""
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisorStatus:
    """What a progress view gets at every tick."""

    phase: SupervisorPhase
    waiting_for: tuple[str, ...]
    notes: tuple[str, ...]
    """Sentences that are new since the last tick: restarts, orphans ended."""
    said: str = ""
    """The last line of the log of a server that is waited for, printable."""


def commands(run: RunDir, config: Config, addresses: Sequence[Address]) -> tuple[list[Command], Command, Command]:
    """What a run starts: a server at each of `addresses`, learner, engine."""
    servers = server_commands(run, config, addresses)
    engine = Command(
        name="engine",
        argv=_module("engine.run", run=run),
        log=run.path / "engine.log",
        environment=child_environment(),
    )
    return servers, _learner(run, config), engine


def metrics_command(run: RunDir, config: Config) -> Command | None:
    """What takes the metrics elsewhere, if the configuration names a place."""
    metrics = config.metrics
    port = ("--port", str(metrics.port)) if metrics.port else ()
    to = [argument for writer in metrics.writers for argument in ("--to", writer)]
    if not (port or to):
        return None
    argv = (*_module("engine.telemetry.serve", run=run), *port, *to)
    return Command(name="metrics", argv=argv, log=run.path / "metrics.log", environment=child_environment())


def _learner(run: RunDir, config: Config) -> Command:
    log, learner, ranks = run.path / "learner.log", config.learner, config.learner_ranks
    if learner.kind == "simulated":
        argv = _module("engine.scripted", "learner", run=run)
        return Command(name="learner", argv=argv, log=log, environment=child_environment())
    environment = torch_environment(learner.threads)
    if learner.gpus:
        # As nvidia-smi counts them; rank r computes on the r-th of these.
        visible = ",".join(map(str, learner.gpus))
        environment |= {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": visible}
    if ranks == 1:
        return Command(name="learner", argv=_module("learner", run=run), log=log, environment=environment)
    argv = (
        *(*PYTHON, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"),
        *("--nproc-per-node", str(ranks), "--log-dir", str(run.learner / "torchrun"), "-m", "learner", str(run.path)),
    )
    # It starts the ranks itself.
    environment |= {"PYTHONSAFEPATH": "1"}
    return Command(name="learner", argv=argv, log=log, environment=environment, leashed=True)


class Supervisor:
    """Runs the processes of one run directory to their end; `run` is the only entry."""

    def __init__(self, run: RunDir, config: Config, on_tick: Callable[[SupervisorStatus], None]) -> None:
        self.run_directory, self.config, self.on_tick = run, config, on_tick
        self.addresses = free_addresses(config)
        server_commands, learner, engine = commands(run, config, self.addresses)
        self.servers = [Child(command) for command in server_commands]
        self.learner, self.engine = Child(learner), Child(engine)
        metrics = metrics_command(run, config)
        self.metrics = [Child(metrics)] if metrics is not None else []
        self.phase = SupervisorPhase.STARTING
        self._notes: list[str] = []
        self._signals: list[int] = []
        self._ready: set[str] = set()

    @property
    def children(self) -> list[Child]:
        """In the order in which they are started."""
        return [*self.metrics, *self.servers, self.learner, self.engine]

    def run(self) -> Ending:
        """Supervise until the run is finished, stopped or hopeless; nothing is left running afterwards.

        Raises RunError if another supervisor holds the run, or the disk takes no more."""
        with self.run_directory.locked(), self._catching_signals():
            self._notes += [f"ended {name}, left over by an earlier run" for name in end_orphans(self.run_directory)]
            # The learner is up before the engine, and would take the stream of a stopped life as all there is.
            reopen_stream(self.run_directory.trajectories)
            write_addresses(self.run_directory, self.config, self.addresses)
            ending: Ending | None = None
            try:
                for child in (*self.metrics, *self.servers, self.learner):
                    self._start(child)
                ending = self._drain(self._loop())
                return ending
            finally:
                self._kill()
                # On a full disk the old record stays: whoever reads it finds that none of its processes lives.
                with suppress(RunError):
                    record(self.run_directory, self.children, asdict(ending) if ending else None)

    # --- the loop -----------------------------------------------------------------------------------------------

    def _loop(self) -> Ending:
        while not self._signals:
            for child in self.children:
                code = child.ended()
                if code is not None and (ending := self._after(child, code)) is not None:
                    return ending
                if child.due is not None and time.monotonic() >= child.due:
                    self._start(child)
            if self.phase is SupervisorPhase.STARTING:
                if not self._waiting_for():
                    self._start(self.engine)
                    self.phase = SupervisorPhase.RUNNING
                elif (late := self._late()) is not None:
                    return late
            self._tick()
        return Ending(code=SIGNALLED + self._signals[0], message="stopped; what was finished is saved")

    def _after(self, child: Child, code: int) -> Ending | None:
        """What follows from the end of a child; None goes on."""
        if child is self.engine:
            if code == EXIT_OK and self._engine_is_done():
                return Ending(code=EXIT_OK)
            if code == EXIT_CONFIG:
                return Ending(code=EXIT_CONFIG, message=child.last_words("the engine cannot use this configuration"))
        if child is self.learner:
            progress = self._progress()
            trained = progress.counters.step >= self.config.run.steps
            if code == EXIT_OK and progress.state is LearnerState.DONE and trained:
                return None
            if progress.state is LearnerState.FAILED:
                return Ending(code=EXIT_FAILED, message=f"the learner stopped: {progress.error}")
            if code == EXIT_CONFIG:
                return Ending(code=EXIT_CONFIG, message=child.last_words("the learner cannot use this configuration"))
        self._ready.discard(child.name)
        if child in self.metrics:
            self._after_metrics(child, code)
            return None
        return self._restart(child, code)

    def _after_metrics(self, child: Child, code: int) -> None:
        """The run is worth more than its curves elsewhere, and those can be made from outside it too."""
        if code == EXIT_CONFIG:
            problem = child.last_words("the metrics do not go elsewhere")
        elif (given_up := self._restart(child, code)) is not None:
            problem = given_up.message
        else:
            return
        again = "`synth-engine metrics serve` and `synth-engine metrics export` do the same from another terminal"
        self._notes.append(f"{problem}\nThe run goes on; {again}")

    def _restart(self, child: Child, code: int) -> Ending | None:
        """Start it again with back-off, unless that has been tried often enough, or ends as it did before."""
        limit, how = self.config.run.max_restarts, f"{child.name} ended ({exit_name(code)})"
        repeats = child.repeats(code)
        if not repeats and child.restart_later(limit):
            wait_s = (child.due or 0.0) - time.monotonic()
            self._notes.append(f"{how}; starting it again in {wait_s:.0f} s")
            return None
        often = "twice with the same words" if repeats else f"after {limit} restarts in ten minutes"
        cause = likely_cause(code, child.last_lines(), self.run_directory.path)
        return Ending(code=EXIT_FAILED, message=child.last_words(f"{how} {often}. {cause}"))

    def _waiting_for(self) -> tuple[str, ...]:
        """What the engine's start still waits for."""
        for child, address in zip(self.servers, self.addresses, strict=True):
            if child.name not in self._ready and child.pid is not None and server_is_ready(address.url):
                self._ready.add(child.name)
        missing = [child.name for child in self.servers if child.name not in self._ready]
        if not is_published(self.run_directory, 0):
            missing.append("the learner's first adapter")
        return tuple(missing)

    def _late(self) -> Ending | None:
        """The end of a run whose server does not get ready; one that hangs never says so itself."""
        for child, address in zip(self.servers, self.addresses, strict=True):
            late = child.pid is not None and time.time() > child.started_at + address.start_s
            if child.name not in self._ready and late:
                cause = likely_cause(EXIT_FAILED, child.last_lines(), self.run_directory.path)
                limit = f"{address.start_s:g} s after its start ({address.start_key})"
                sentence = f"{child.name} was not ready {limit}. {cause}"
                return Ending(code=EXIT_FAILED, message=child.last_words(sentence))
        return None

    def _progress(self) -> LearnerProgress:
        """What the learner said since its last start; its word from an earlier life does not count."""
        path = self.run_directory.progress
        if not path.exists() or path.stat().st_mtime < self.learner.started_at:
            return LearnerProgress()
        return read_progress(self.run_directory)

    def _engine_is_done(self) -> bool:
        phase = read_json(self.run_directory.path / "phase.json") or {}
        return phase.get("phase") == "done"

    def _start(self, child: Child) -> None:
        living = [other.pid for other in self.children if other.pid is not None]
        try:
            child.start(os.getpgid(living[0]) if living else 0)
        except (PermissionError, ProcessLookupError):
            # The group died between the look and the start.
            child.start(0)
        record(self.run_directory, self.children)

    def _tick(self) -> None:
        waiting = self._waiting_for() if self.phase is SupervisorPhase.STARTING else ()
        notes, self._notes = tuple(self._notes), []
        try:
            self.on_tick(SupervisorStatus(phase=self.phase, waiting_for=waiting, notes=notes, said=self._said(waiting)))
        except (OSError, SystemExit):
            # The terminal is gone (a hang-up, `| head`): the run goes on, or drains, unseen.
            self.on_tick = lambda _: None
        time.sleep(_TICK_S)

    def _said(self, waiting: tuple[str, ...]) -> str:
        slow = next((child for child in self.servers if child.name in waiting and child.pid is not None), None)
        said = "".join(slow.last_lines(1)).strip() if slow is not None else ""
        return "".join(filter(str.isprintable, said))

    # --- the end ------------------------------------------------------------------------------------------------

    def _drain(self, ending: Ending) -> Ending:
        """End what still runs, in order; one signal more than the one that asked for it ends the waiting."""
        self.phase = SupervisorPhase.DRAINING
        if ending.code != EXIT_OK:
            self._notes.append(DRAINING)
        patience = 2 if ending.code > SIGNALLED else 1
        # Absolute, so that a pre-empting cluster knows how long a stop takes: the learner has what the engine left.
        begun = time.monotonic()
        limit_s = self.config.run.drain_s
        for child in (self.engine, self.learner, *self.servers, *self.metrics):
            limit_s += _UPLOAD_S if child in self.metrics else _GRACE_S
            # A learner whose engine is done ends by itself after its last step; everything else is asked.
            if child is not self.learner or ending.code != EXIT_OK:
                child.signal(signal.SIGTERM)
            while child.pid is not None and child.ended() is None:
                if len(self._signals) >= patience:
                    return Ending(code=SIGNALLED + self._signals[-1], message="stopped at once")
                if time.monotonic() > begun + limit_s:
                    self._notes.append(f"{child.name} did not end within {limit_s:.0f} s of the stop and was killed")
                    child.signal(signal.SIGKILL)
                    child.wait(_GRACE_S)
                self._tick()
        self._tick()
        return ending

    def _kill(self) -> None:
        for child in self.children:
            child.signal(signal.SIGKILL)
        for child in self.children:
            child.wait(_GRACE_S)
            child.ended()

    @contextmanager
    def _catching_signals(self) -> Iterator[None]:
        def note(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature that signal.signal asks for
            self._signals.append(number)

        # Under nohup the hang-up is ignored already, and stays so.
        wanted = [number for number in _STOPS if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, note) for number in wanted}
        try:
            yield
        finally:
            for number, action in before.items():
                signal.signal(number, action)


def _module(*arguments: str, run: RunDir) -> tuple[str, ...]:
    return (*PYTHON, "-m", *arguments, str(run.path), "--parent-pid", str(os.getpid()))


def exit_name(code: int) -> str:
    """How a process ended, in words."""
    return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
