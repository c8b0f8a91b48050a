"""The dashboard's end of engine.sock: a question, an answer, each a 4-byte big-endian length and JSON."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import anyio
import orjson
from anyio.abc import ByteStream
from anyio.streams.buffered import BufferedByteReceiveStream

from engine.errors import SynthError
from engine.telemetry.window import PROTOCOL

_LENGTH_BYTES = 4
_MOST_QUESTION_BYTES, _MOST_ANSWER_BYTES = 4_096, 65_536
_ANSWER_S = 2.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 2.0
_HUNG_UP = (OSError, anyio.EndOfStream, anyio.IncompleteRead, anyio.BrokenResourceError, anyio.ClosedResourceError)

WireMessage = dict[str, Any]


class UnansweredError(SynthError):
    """The engine is there, but gave no answer that can be used; says why."""


class NoEngineError(UnansweredError):
    """Nobody listens, or hung up before the answer was whole."""


class SocketClient:
    """A connection that is made when it is needed, and again after it is lost, with pauses up to 2 s."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.connections = 0
        """Made so far: who answers on a new one may be a new engine."""
        self._stream: ByteStream | None = None
        self._failure = UnansweredError("")
        self._due, self._pause_s = 0.0, _FIRST_PAUSE_S
        self._lock = anyio.Lock()

    async def connect(self) -> None:
        """Be connected.

        Raises NoEngineError if nobody listens; until the next try is due, whatever ended the last one."""
        async with self._lock:
            await self._connected()

    async def ask(self, question: WireMessage) -> WireMessage:
        """The answer to a question.

        Raises NoEngineError if the engine is gone, UnansweredError if it refuses, is slow, or speaks otherwise; the
        next question goes over a new connection then."""
        message = orjson.dumps({"v": PROTOCOL, **question})
        if len(message) > _MOST_QUESTION_BYTES:
            raise UnansweredError("the question is too long for the engine: shorten the filter")
        async with self._lock:
            stream = await self._connected()
            # Kept only once it has answered: a late answer must not be taken for that to the next question.
            self._stream = None
            try:
                with anyio.fail_after(_ANSWER_S):
                    answer = await _exchanged(stream, message)
                self._stream, self._pause_s = stream, _FIRST_PAUSE_S
            except TimeoutError:
                raise UnansweredError("the engine answers slowly") from None
            except _HUNG_UP:
                raise self._failed(NoEngineError("the engine hung up")) from None
            except UnansweredError as refusal:
                raise self._failed(refusal) from None
            finally:
                if self._stream is None:
                    await anyio.aclose_forcefully(stream)
            return answer

    async def close(self) -> None:
        """Hang up."""
        async with self._lock:
            if self._stream is not None:
                await anyio.aclose_forcefully(self._stream)
                self._stream = None

    async def _connected(self) -> ByteStream:
        if self._stream is not None:
            return self._stream
        if time.monotonic() < self._due:
            raise type(self._failure)(str(self._failure))
        try:
            with anyio.fail_after(_ANSWER_S):
                self._stream = await anyio.connect_unix(self.path)
        except OSError:
            raise self._failed(NoEngineError("no engine listens")) from None
        self.connections += 1
        return self._stream

    def _failed(self, failure: UnansweredError) -> UnansweredError:
        self._failure, self._due = failure, time.monotonic() + self._pause_s
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        return failure


async def _exchanged(stream: ByteStream, message: bytes) -> WireMessage:
    await stream.send(len(message).to_bytes(_LENGTH_BYTES, "big") + message)
    received = BufferedByteReceiveStream(stream)
    length = int.from_bytes(await received.receive_exactly(_LENGTH_BYTES), "big")
    if length > _MOST_ANSWER_BYTES:
        raise UnansweredError(f"who answers is no engine: it announces {length:,} bytes")
    try:
        answer = orjson.loads(await received.receive_exactly(length))
    except orjson.JSONDecodeError:
        raise UnansweredError("who answers is no engine: it sends no JSON") from None
    if not isinstance(answer, dict) or answer.get("v") != PROTOCOL:
        spoken = answer.get("v") if isinstance(answer, dict) else None
        raise UnansweredError(
            f"the engine speaks protocol {spoken}, this dashboard {PROTOCOL}: use the dashboard of its version"
        )
    if "error" in answer:
        raise UnansweredError(f"the engine refuses: {answer['error']}")
    return answer
