"""The model thread: drains its inbox between steps, and hands updates back once a step."""

from __future__ import annotations

from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import TypeVar

import anyio
import structlog
import torch

from engine.embedded.scheduler import BatchScheduler
from engine.embedded.sequence import Sequence

_Answer = TypeVar("_Answer")
_Command = Callable[[BatchScheduler], None]
CallInLoop = Callable[[Callable[[], None]], object]
"""`loop.call_soon_threadsafe`."""
_FAILURES = (ArithmeticError, AssertionError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError)
"""What torch and a mistake raise: the requests at hand are lost, the server is not."""
_LOG = structlog.get_logger("embedded")


class Worker:
    """Runs a scheduler in one thread. `submit` may be called from the event loop; `run` blocks until `stop`.

    The inbox is bounded by the server, which refuses requests beyond its queue limit before they get here."""

    def __init__(self, scheduler: BatchScheduler, threads: int, call_in_loop: CallInLoop) -> None:
        self._scheduler = scheduler
        self._threads = threads
        self._call_in_loop = call_in_loop
        self._inbox: SimpleQueue[_Command | None] = SimpleQueue()

    def submit(self, command: _Command) -> None:
        """Have the model thread call `command(scheduler)` before its next step."""
        self._inbox.put(command)

    async def ask(self, question: Callable[[BatchScheduler], _Answer]) -> _Answer:
        """Call a function in the model thread and wait for its answer.

        Raises RuntimeError if it failed there."""
        answers: list[_Answer] = []
        answered = anyio.Event()

        def command(scheduler: BatchScheduler) -> None:
            try:
                answers.append(question(scheduler))
            finally:
                self._call_in_loop(answered.set)

        self.submit(command)
        await answered.wait()
        if not answers:
            raise RuntimeError("the model thread failed; its log says why")
        return answers[0]

    def abort(self, rid: str | None) -> None:
        """End one request, or all of them (None)."""
        self.submit(lambda scheduler: self._tell(scheduler.abort(rid)))

    def stop(self) -> None:
        """Abort everything and let `run` return."""
        self.abort(None)
        self._inbox.put(None)

    def run(self) -> None:
        """The thread's body."""
        torch.set_num_threads(self._threads)
        with torch.inference_mode():
            while self._drain():
                self._do(lambda scheduler: self._tell(scheduler.step()))

    def _do(self, command: _Command) -> None:
        """Run a step or a command; a failure ends every running request, and the thread goes on."""
        try:
            command(self._scheduler)
        except _FAILURES as error:
            _LOG.exception("the model thread failed")
            self._tell(self._scheduler.fail_all(f"the model failed: {type(error).__name__}: {error}"))

    def _drain(self) -> bool:
        """Run what is in the inbox, waiting for it only when there is nothing else to do; False = stop."""
        while True:
            try:
                command = self._inbox.get(block=not self._scheduler.has_work)
            except Empty:
                return True
            if command is None:
                return False
            self._do(command)

    def _tell(self, sequences: list[Sequence]) -> None:
        if sequences:
            self._call_in_loop(lambda: _announce(sequences))


def _announce(sequences: list[Sequence]) -> None:
    for sequence in sequences:
        sequence.changed.set()
