"""Appending to a segment: whole frames or nothing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from engine.rundir.layout import fsync_directory
from engine.stream.frame import StreamError
from engine.stream.segment import IndexRow, SegmentHeader, footer_bytes, header_bytes, segment_path


class SegmentFile:
    """The file being appended to; synchronous, used from one thread at a time.

    An append is one write(); what does not fit is cut off again."""

    def __init__(self, directory: Path, number: int, header: SegmentHeader) -> None:
        self.path = segment_path(directory, number)
        self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        self._index: list[IndexRow] = []
        self.end = 0
        """Bytes of whole frames."""
        self._synced = 0
        try:
            self._append(header_bytes(header, number))
        except StreamError:
            self.close()
            self.path.unlink()
            raise
        fsync_directory(directory)

    def append(self, group_id: str, position: int, content: bytes) -> None:
        """Append the frame of a group.

        Raises StreamError if the disk does not take it whole; the segment is then as it was."""
        offset = self.end
        self._append(content)
        self._index.append(IndexRow(group_id, position, offset))

    def sync(self) -> None:
        """Make what was appended durable."""
        if self._synced < self.end:
            os.fsync(self._fd)
            self._synced = self.end

    def finish(self) -> None:
        """Append the footer, make everything durable, and close."""
        self._append(footer_bytes(self._index, self.end))
        self.sync()
        self.close()

    def close(self) -> None:
        """Release the file as it is; without a footer it reads as that of a killed writer. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _append(self, content: bytes) -> None:
        try:
            written = os.write(self._fd, content)
        except OSError as error:
            raise self._refused(len(content), error.strerror or str(error)) from error
        if written < len(content):
            raise self._refused(len(content), f"the disk took {written} of them")
        self.end += written

    def _refused(self, size: int, reason: str) -> StreamError:
        try:
            os.ftruncate(self._fd, self.end)
        except OSError as error:
            # Harmless: what is left of the frame is a torn tail, which readers ignore.
            reason = f"{reason}; cutting it off failed too: {error.strerror}"
        free = shutil.disk_usage(self.path.parent).free
        return StreamError(
            f"{size} bytes could not be written: {reason} ({free} bytes are free). Free space (or raise the file size"
            " limit), then --resume; nothing that was acknowledged is lost",
            segment=str(self.path),
            offset=self.end,
        )
