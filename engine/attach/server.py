"""The engine's side of whoever looks at a run: one question, one answer, over a unix socket in the run directory.

A message is a length (4 bytes, big-endian) and JSON. What may be asked, and how often, is bounded, so that nobody who
looks can slow the run down, let alone end it; a client that misbehaves gets a sentence, or its connection closed.
"""

from __future__ import annotations

import socket
import stat
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import anyio
import anyio.lowlevel
import anyio.to_thread
import orjson
import structlog
from anyio.abc import SocketListener, SocketStream, TaskGroup
from anyio.streams.buffered import BufferedByteReceiveStream
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError

from engine.attach.answers import ByteBudget, Have, head, line, name, results, texts, token_pieces
from engine.core.ledger import Ledger
from engine.core.live import LiveEpisodes
from engine.errors import ConfigError, EpisodeError, boundary
from engine.rundir.layout import RunDir
from engine.telemetry.looplag import LAG_EDGES_S, LoopLag
from engine.telemetry.window import PROTOCOL, Selected, Selection, Window

log = structlog.get_logger()

_QUESTION_BYTES, _ANSWER_BYTES, _ROWS_BYTES = 4_096, 65_536, 20_480
_SIZE = 4
"""Bytes of a length."""
_CLIENTS = 4
_BACKLOG = 16
_FOLLOWED = 16
_TOOLS = 40
_PER_SECOND = 10
"""Answers to one client; more questions wait."""
_PATIENCE_S = 5.0
"""For the rest of a question that has begun, and for an answer to be read."""
_SCAN = 500
"""Episodes looked at before the loop gets a turn (invariant no-block)."""
_DESCRIPTOR_S = 1.0
"""Until another connection is tried when there is no descriptor for one."""


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Followed(_Asked):
    id: str
    have: Have = Have()


class _Look(_Asked):
    v: Literal[1]
    where: str = ""
    sort: str = "age"
    down: bool = True
    grouped: bool = False
    top: NonNegativeInt = 0
    rows: NonNegativeInt = 60
    stages: bool = False
    follow: list[_Followed] = Field(default=[], max_length=_FOLLOWED)


class _Cancel(_Asked):
    v: Literal[1]
    cancel: str


class _LastError(ConfigError):
    """A question after which the connection is closed."""


@dataclass(slots=True)
class Attach:
    """Answers questions about the episodes of an engine."""

    run: RunDir
    live: LiveEpisodes[Ledger]
    clock: Callable[[], float]
    lag: LoopLag = field(default_factory=LoopLag)
    _clients: int = 0

    async def serve(self) -> None:
        """Until cancelled. Where no socket can be made nobody can look, and the run goes on."""
        try:
            async with _listening(self.run) as listener, anyio.create_task_group() as tg:
                await self._accept(listener, tg)
        except OSError as error:
            log.warning("nobody can attach to this run", error=str(error))

    async def _accept(self, listener: SocketListener, tg: TaskGroup) -> None:
        while True:
            try:
                stream = await listener.accept()
            except anyio.BrokenResourceError:
                await anyio.sleep(_DESCRIPTOR_S)
            else:
                tg.start_soon(self._client, stream)

    async def _client(self, stream: SocketStream) -> None:
        welcome = self._clients < _CLIENTS
        self._clients += welcome
        try:
            async with stream, boundary(EpisodeError, "answering who looks"):
                # Whoever hangs up, or lets the engine wait, is gone.
                with suppress(anyio.BrokenResourceError, anyio.EndOfStream, anyio.IncompleteRead, TimeoutError):
                    await self._converse(stream, welcome=welcome)
        except EpisodeError:
            # Nothing that goes wrong here is worth a run.
            log.exception("a question could not be answered")
        finally:
            self._clients -= welcome

    async def _converse(self, stream: SocketStream, *, welcome: bool) -> None:
        received, times, last = BufferedByteReceiveStream(stream), deque[float](maxlen=_PER_SECOND), False
        while not last:
            try:
                question = await _read(received)
                if not welcome:
                    raise _LastError(f"{_CLIENTS} clients look at this run already: close one of them")
                if len(times) == _PER_SECOND:
                    await anyio.sleep(max(0.0, times[0] + 1.0 - anyio.current_time()))
                times.append(anyio.current_time())
                answer = await self._answer(question)
            except ConfigError as error:
                answer, last = {"error": name(str(error), most=1_000)}, isinstance(error, _LastError)
            content = orjson.dumps({"v": PROTOCOL, **answer})
            with anyio.fail_after(_PATIENCE_S):
                await stream.send(len(content).to_bytes(_SIZE, "big") + content)

    async def _answer(self, content: bytes) -> dict[str, Any]:
        question = _question(content)
        return self._cancel(question.cancel) if isinstance(question, _Cancel) else await self._look(question)

    def _cancel(self, episode_id: str) -> dict[str, Any]:
        found, shown = self.live.get(episode_id), name(episode_id)
        if found is None:
            return {"said": f"{shown} is not in flight"}
        if found.finished is not None:
            return {"said": f"{shown} has ended already, as {found.outcome}"}
        found.cancel()
        log.info("an operator cancels an episode", episode=found.id)
        return {"said": f"{shown} is being cancelled: it is recorded as infra_error, and not trained on"}

    async def _look(self, look: _Look) -> dict[str, Any]:
        now_s = self.clock()
        window = Window(
            where=look.where, sort=look.sort, down=look.down, grouped=look.grouped, top=look.top, rows=look.rows
        )
        shown, total = await self._selected(window, now_s)
        answer: dict[str, Any] = {
            "clock": now_s,
            "phases": dict(self.live.phases),
            "total": total,
            "rows": [],
            "rewards": list(self.live.rewards),
        }
        ByteBudget(_ROWS_BYTES).fill(answer, (("rows", orjson.dumps(line(row))) for row in shown))
        if look.stages:
            answer |= self._stages()
        return {**answer, "episodes": await self._followed(look, answer, now_s)}

    async def _selected(self, window: Window, now_s: float) -> Selected:
        """The rows of a window, and how many there are."""
        selection: Selection[Ledger] = Selection(window, now_s)
        if window.by_age and window.end <= self.live.playing:
            # What most who look want to see: it need not be searched for.
            selection.add(self.live.oldest(window.end))
            return Selected(selection.rows(), len(self.live))
        everything = self.live.all()
        for start in range(0, len(everything), _SCAN):
            selection.add(everything[start : start + _SCAN])
            await anyio.lowlevel.checkpoint()
        return Selected(selection.rows(), selection.total)

    def _stages(self) -> dict[str, Any]:
        """What has names that only a run knows, or too many figures for a metrics row."""
        tools = [[name(tool.name), *tool[1:]] for tool in self.live.stages.tools(_TOOLS)]
        return {"tools": tools, "lag": self.lag.delays.histogram(LAG_EDGES_S)}

    async def _followed(self, look: _Look, answer: dict[str, Any], now_s: float) -> dict[str, Any]:
        """What is new of the followed ones: what was said, for all of them, then their tokens, then how they ended."""
        haves = {one.id: one.have for one in look.follow}
        found = [live for one in haves if (live := self.live.get(one)) is not None]
        told: dict[str, Any] = dict.fromkeys(haves) | {live.id: head(live, now_s) for live in found}
        room = ByteBudget(_ANSWER_BYTES - len(orjson.dumps({"v": PROTOCOL, **answer, "episodes": told})))
        for live, news in ((live, news) for news in (texts, token_pieces) for live in found):
            room.fill(told[live.id], news(live, haves[live.id]))
            await anyio.lowlevel.checkpoint()
        for live in found:
            room.fill(told[live.id], results(live))
        return told


def _question(content: bytes) -> _Look | _Cancel:
    """Raises ConfigError for what is none."""
    try:
        value = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise ConfigError(f"the question is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ConfigError("the question is not a JSON object")
    if (version := value.get("v")) != PROTOCOL:
        raise _LastError(
            f"the engine speaks protocol {PROTOCOL}, the question protocol {version}: use the synth-engine version of "
            "this run"
        )
    try:
        return (_Cancel if "cancel" in value else _Look).model_validate(value)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, problem["loc"]))
        raise ConfigError(f"the question's {place}: {problem['msg']}") from None


async def _read(received: BufferedByteReceiveStream) -> bytes:
    """The next question. Raises _LastError for one that is too long."""
    first = await received.receive_exactly(1)
    with anyio.fail_after(_PATIENCE_S):
        size = int.from_bytes(first + await received.receive_exactly(_SIZE - 1), "big")
        if size > _QUESTION_BYTES:
            raise _LastError(f"the question has {size:,} bytes, and at most {_QUESTION_BYTES:,} are read")
        return await received.receive_exactly(size)


@asynccontextmanager
async def _listening(run: RunDir) -> AsyncIterator[SocketListener]:
    """A listener on the run's socket; the file is removed at the end.

    Raises OSError where none can be made."""
    path, bound = await anyio.to_thread.run_sync(_bound, run)
    try:
        async with await SocketListener.from_socket(bound) as listener:
            yield listener
    finally:
        with anyio.CancelScope(shield=True), suppress(OSError):
            await anyio.to_thread.run_sync(partial(path.unlink, missing_ok=True))


def _bound(run: RunDir) -> tuple[Path, socket.socket]:
    """The run's socket, for its owner only; what an engine that was killed left in its place is removed."""
    path = run.socket
    if path.is_socket():
        path.unlink()
    made = socket.socket(socket.AF_UNIX)
    try:
        made.bind(str(path))
        # Nobody can connect before it listens.
        path.chmod(stat.S_IRUSR | stat.S_IWUSR)
        made.listen(_BACKLOG)
        made.setblocking(False)  # noqa: FBT003 - as socket has it
    except OSError:
        made.close()
        raise
    return path, made
