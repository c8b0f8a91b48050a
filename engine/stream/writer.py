"""The engine's end of the stream: one task, one worker thread, an acknowledgement per group.

```
write(group) ──▶ bounded memory stream ──▶ run(): encode, one write() ──▶ acknowledged (fsync every second and at close)
```
An episode that no frame can hold is masked, and its siblings are written as they are (engine.stream.masking).
Back-pressure: `write` waits while the memory stream is full, and returns when write() returned. A group that cannot
be written whole is cut off again, so nothing half-written is ever acknowledged; from then on every `write` raises.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import anyio.to_thread
from anyio.abc import TaskStatus

from engine.stream import frame
from engine.stream.append import SegmentFile
from engine.stream.closed import Closed, reopen_stream, write_closed
from engine.stream.frame import StreamError
from engine.stream.masking import masked
from engine.stream.segment import Segment, SegmentHeader, segment_numbers
from engine.types import EpisodeGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class WriterSettings:
    """Sizes and times of a writer."""

    segment_bytes: int = 64_000_000
    """A new segment is begun once one has as many."""
    low_water_bytes: int = 512_000_000
    """Nothing is written while less than this is free."""
    queue_groups: int = 16
    """Groups that may wait for the disk before `write` makes the engine wait."""
    fsync_s: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WriterStatistics:
    """Counters since the writer started, and its queue now."""

    frames: int
    bytes: int
    """On disk."""
    body_bytes: int
    """Before compression."""
    segments: int
    queued: int
    """Groups that wait to be written, those of waiting senders included."""

    @property
    def ratio(self) -> float:
        """How many times smaller the stream is on disk."""
        return self.body_bytes / self.bytes if self.bytes else 0.0


@dataclass(slots=True, eq=False)
class _Pending:
    group: EpisodeGroup
    done: anyio.Event = field(default_factory=anyio.Event)
    error: str = ""


class TrajectoryWriter:
    """Writes finished groups to a directory, always beginning a new segment.

    Example::

        writer = TrajectoryWriter(run.trajectories, header)
        async with anyio.create_task_group() as tasks:
            await tasks.start(writer.run)
            await writer.write(group)  # returns when it is acknowledged
            await writer.close()
    """

    def __init__(
        self,
        directory: Path,
        header: SegmentHeader,
        settings: WriterSettings | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.directory = directory
        self._header = header
        self._settings = settings or WriterSettings()
        self._clock = clock
        self._send, self._receive = anyio.create_memory_object_stream[_Pending](self._settings.queue_groups)
        self._limiter = anyio.CapacityLimiter(1)
        self._file: SegmentFile | None = None
        self._number = 0
        self._segments = self._frames = self._bytes = self._body_bytes = 0
        self._earlier_frames = 0
        self._failure = ""
        self._finished = anyio.Event()

    async def write(self, group: EpisodeGroup) -> EpisodeGroup:
        """Append a group; returns it as it was written, when it is acknowledged.

        A caller that is cancelled meanwhile leaves the group in the queue: it is written. Raises StreamError (a
        RunError) if it cannot be written, and for every group after that."""
        pending = _Pending(group)
        try:
            # A clone of its own, so that `close` lets writes in progress finish.
            with self._send.clone() as send:
                await send.send(pending)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            raise StreamError(self._failure or "the writer is closed", segment=str(self.directory)) from None
        await pending.done.wait()
        if pending.error:
            raise StreamError(pending.error)
        return pending.group

    async def close(self) -> None:
        """Finish the writes in progress, the footer and closed.json; returns when all is durable.

        Raises StreamError if the stream could not be finished."""
        self._send.close()
        await self._finished.wait()
        if self._failure:
            raise StreamError(self._failure)

    def statistics(self) -> WriterStatistics:
        """Counters and queue."""
        queue = self._receive.statistics()
        return WriterStatistics(
            frames=self._frames,
            bytes=self._bytes,
            body_bytes=self._body_bytes,
            segments=self._segments,
            queued=queue.current_buffer_used + queue.tasks_waiting_send,
        )

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Serve `write` until `close`; run it in the owner's task group.

        Raises StreamError if no segment can be begun, or an earlier one is damaged."""
        try:
            if error := await self._guarded(self._begin):
                raise StreamError(error)
            task_status.started()
            await self._serve()
            await self._guarded(self._finish)
        finally:
            with anyio.CancelScope(shield=True):
                await self._guarded(self._leave)
            self._refuse_waiting()
            self._send.close()
            self._receive.close()
            self._finished.set()

    async def _serve(self) -> None:
        due_s = anyio.current_time() + self._settings.fsync_s
        while not self._failure:
            pending = None
            with anyio.move_on_at(due_s):
                try:
                    pending = await self._receive.receive()
                except anyio.EndOfStream:
                    return
            if pending is not None:
                await self._acknowledge(pending)
            if anyio.current_time() >= due_s:
                await self._guarded(self._sync)
                due_s = anyio.current_time() + self._settings.fsync_s

    async def _acknowledge(self, pending: _Pending) -> None:
        pending.error = "the writer was stopped"
        try:
            pending.error = await self._guarded(lambda: self._append(pending))
        finally:
            pending.done.set()

    async def _guarded(self, work: Callable[[], None]) -> str:
        """Do file work in the thread; returns what went wrong. The first failure is the writer's last word."""
        try:
            await anyio.to_thread.run_sync(work, limiter=self._limiter)
        except (StreamError, OSError) as error:
            place = "" if isinstance(error, StreamError) else f"{self.directory}: "
            message = f"{place}{error}"
            self._failure = self._failure or message
            return message
        return ""

    def _refuse_waiting(self) -> None:
        while True:
            try:
                pending = self._receive.receive_nowait()
            except (anyio.WouldBlock, anyio.EndOfStream):
                return
            pending.error = self._failure or "the writer was stopped"
            pending.done.set()

    # In the worker thread.

    def _begin(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        reopen_stream(self.directory)
        numbers = segment_numbers(self.directory)
        for number in numbers:
            with Segment(self.directory, number) as segment:
                self._earlier_frames += len(segment.positions())
        self._number = numbers[-1] + 1 if numbers else 0
        self._file = self._new_file()

    def _new_file(self) -> SegmentFile:
        self._check_space()
        self._segments += 1
        return SegmentFile(self.directory, self._number, self._header)

    def _append(self, pending: _Pending) -> None:
        assert self._file is not None
        content = self._encoded(pending)
        self._check_space()
        if self._file.end >= self._settings.segment_bytes:
            self._file.finish()
            self._number += 1
            self._file = self._new_file()
        self._file.append(pending.group.id, pending.group.position, content)
        self._frames += 1
        self._bytes += len(content)
        self._body_bytes += frame.body_bytes(content)

    def _encoded(self, pending: _Pending) -> bytes:
        """The frame of a group, which becomes the group that can be written."""
        try:
            return frame.encode(pending.group, self._clock())
        except StreamError:
            pending.group = masked(pending.group)
            return frame.encode(pending.group, self._clock())

    def _check_space(self) -> None:
        free, least = shutil.disk_usage(self.directory).free, self._settings.low_water_bytes
        if free < least:
            raise StreamError(
                f"{free / 1e6:.0f} MB are free, less than the low-water mark of {least / 1e6:.0f} MB: free space or"
                " lower stream.low_water_mb, then --resume; nothing that was acknowledged is lost",
                segment=str(self.directory),
            )

    def _sync(self) -> None:
        if self._file is not None:
            self._file.sync()

    def _finish(self) -> None:
        """The clean end: nothing more will come."""
        if self._failure or self._file is None:
            return
        self._file.finish()
        self._file = None
        frames = self._earlier_frames + self._frames
        write_closed(self.directory, Closed(segments=len(segment_numbers(self.directory)), frames=frames))

    def _leave(self) -> None:
        """The other ends: whole frames are kept and made durable; readers see a writer that may come back."""
        if self._file is not None:
            with contextlib.closing(self._file) as file:
                file.sync()
