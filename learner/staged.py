"""Directories that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from engine.rundir import fsync_directory


def write_directory(target: Path, files: Mapping[str, bytes]) -> None:
    """Make `target` with `files`: staged under a dot name beside it, every file fsynced, then renamed.

    An observer sees no directory or the complete one; a kill leaves at most the staged one (`remove_staged`)."""
    staged = target.with_name(f".{target.name}.tmp-{os.getpid()}")
    staged.mkdir()
    for name, content in files.items():
        with (staged / name).open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    fsync_directory(staged)
    staged.rename(target)
    fsync_directory(target.parent)


def remove_staged(directory: Path) -> None:
    """Remove what a killed process left staged in `directory`."""
    for path in directory.glob(".*.tmp-*"):
        if path.is_dir():
            shutil.rmtree(path)
