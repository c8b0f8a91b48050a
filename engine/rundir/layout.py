"""The run directory: what lies where, how JSON is replaced atomically, and who holds the lock (docs/architecture.md).

Every JSON file carries an integer `format`; an unknown one is refused with the remedy.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson

from engine.config.environment import environment
from engine.errors import ConfigError, RunError

RUN_FORMAT = 1
_SOCKET_PATH_BYTES = 100
_CHUNK_BYTES = 1 << 16
_RUN_ID = re.compile(r"\w[\w.-]*", re.ASCII)
"""It becomes part of file names, so it has no separator in it."""


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Replace `path` by `value` and this format's number; a reader sees the old or the new file, whole."""
    write_atomic(
        path, orjson.dumps({"format": RUN_FORMAT, **value}, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY)
    )


def write_atomic(path: Path, content: bytes, mode: int = 0o666) -> None:
    """Write to a sibling, fsync, rename, fsync the directory; the file gets `mode`, less the umask.

    Raises RunError if the disk does not take it; the old file is still there then."""
    staged = _staged(path)
    with written(path):
        with open(staged, "wb", opener=partial(os.open, mode=mode)) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        staged.replace(path)
        fsync_directory(path.parent)


@contextmanager
def written(path: Path) -> Iterator[None]:
    """Writing `path`: a disk that does not take it is a RunError that says so."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{path} could not be written: {error.strerror or error}; free space or make it writable, then --resume. "
            "Nothing that was acknowledged is lost"
        ) from error


class JsonLines:
    """A .jsonl file to append to; a row is one write, so a reader never sees half of one while its writer lives.

    A torn last row (the disk was full) is cut off when the file is opened, before another would continue it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with written(path):
            self._file = path.open("a+b", buffering=0)
            if (end := whole_lines(path)) < path.stat().st_size:
                self._file.truncate(end)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._file.close()

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row.

        Raises RunError if the disk does not take it."""
        line = orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY)
        with written(self._path):
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def sync(self) -> None:
        """Make what was written durable."""
        with written(self._path):
            os.fsync(self._file.fileno())


def whole_lines(path: Path) -> int:
    """Bytes up to the end of the last line that is whole."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - _CHUNK_BYTES)
            file.seek(start)
            if (found := file.read(end - start).rfind(b"\n")) >= 0:
                return start + found + 1
            end = start
    return 0


def fsync_directory(path: Path) -> None:
    """Make renames inside `path` durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_directory(target: Path, files: Mapping[str, bytes]) -> None:
    """Make `target` with `files`: staged under a dot name beside it, every file fsynced, then renamed.

    An observer sees no directory or the complete one; a kill leaves at most the staged one (`remove_staged`). Raises
    RunError if the disk does not take it."""
    staged = _staged(target)
    with written(target):
        staged.mkdir()
        for name, content in files.items():
            with (staged / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        fsync_directory(staged)
        staged.rename(target)
        fsync_directory(target.parent)


def remove_directory(path: Path) -> None:
    """Remove a directory so that an observer sees it whole or not at all; a kill leaves a staged one."""
    staged = _staged(path)
    path.rename(staged)
    # A process that starts meanwhile removes staged leftovers too.
    shutil.rmtree(staged, ignore_errors=True)


def point_link(link: Path, target: str) -> None:
    """Turn a link to `target` beside it, atomically and durably."""
    staged = _staged(link)
    staged.unlink(missing_ok=True)
    staged.symlink_to(target)
    staged.replace(link)
    fsync_directory(link.parent)


def _staged(path: Path) -> Path:
    """Where what becomes `path` is made: a dot name of this process and thread, for two of them may write one file."""
    return path.with_name(f".{path.name}.tmp-{os.getpid()}-{threading.get_ident()}")


def remove_staged(directory: Path) -> None:
    """Remove what a killed process left staged in `directory`; nothing is staged as a link."""
    for path in directory.glob(".*.tmp-*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in `path`, or None if there is no such file.

    Raises RunError for a file that is not JSON or has another format."""
    try:
        value = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except orjson.JSONDecodeError as error:
        raise RunError(f"{path}: not valid JSON ({error}); restore it from a copy, or start a new run") from error
    if not isinstance(value, dict) or value.get("format") != RUN_FORMAT:
        found = value.get("format") if isinstance(value, dict) else None
        raise RunError(
            f"{path}: format {found!r} is not {RUN_FORMAT}; use the synth-engine version that wrote this run"
        )
    return value


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a .jsonl file; a torn last line (its writer was killed) is ignored.

    Raises RunError that names the line for one that is not JSON."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.endswith(b"\n"):
                try:
                    row = orjson.loads(line)
                except orjson.JSONDecodeError as error:
                    raise RunError(f"{path}: line {number} is not JSON ({error}); restore it from a copy") from error
                yield row


@dataclass(frozen=True, slots=True)
class RunDir:
    """Paths of one run."""

    path: Path

    @property
    def config(self) -> Path:
        """run.toml, the resolved configuration."""
        return self.path / "run.toml"

    @property
    def manifest(self) -> Path:
        """manifest.json: run id, seed, versions, hashes."""
        return self.path / "manifest.json"

    @property
    def pack(self) -> Path:
        """The copy of the tasks this run uses."""
        return self.path / "pack.jsonl.zst"

    @property
    def trajectories(self) -> Path:
        """Segments of the training stream."""
        return self.path / "trajectories"

    @property
    def eval(self) -> Path:
        """Segments of validation and held-out episodes."""
        return self.path / "eval"

    @property
    def adapters(self) -> Path:
        """Published adapters."""
        return self.path / "adapters"

    @property
    def learner(self) -> Path:
        """Checkpoints, metrics, steps and progress of the learner."""
        return self.path / "learner"

    @property
    def progress(self) -> Path:
        """learner/progress.json: the learner's only word to the engine."""
        return self.learner / "progress.json"

    @property
    def steps(self) -> Path:
        """learner/steps.jsonl: a row of every trained step."""
        return self.learner / "steps.jsonl"

    @property
    def learner_metrics(self) -> Path:
        """learner/metrics.jsonl: the learner's rows."""
        return self.learner / "metrics.jsonl"

    @property
    def world(self) -> Path:
        """world.sqlite: the mappings."""
        return self.path / "world.sqlite"

    @property
    def journal(self) -> Path:
        """journal.sqlite: the exchanges with simulators and judges."""
        return self.path / "journal.sqlite"

    @property
    def judge(self) -> Path:
        """judge.sqlite: the exchanges with judges that were asked about recorded episodes."""
        return self.path / "judge.sqlite"

    @property
    def metrics(self) -> Path:
        """metrics.jsonl: the engine's rows."""
        return self.path / "metrics.jsonl"

    @property
    def swaps(self) -> Path:
        """swaps.jsonl: every adapter load, flip and unload per server, with start and end on the run's clock."""
        return self.path / "swaps.jsonl"

    @property
    def faults(self) -> Path:
        """faults.jsonl: every fault that `world.faults` injected at the tool boundary."""
        return self.path / "faults.jsonl"

    @property
    def log(self) -> Path:
        """log.jsonl."""
        return self.path / "log.jsonl"

    @property
    def processes(self) -> Path:
        """processes.json: what the supervisor started."""
        return self.path / "processes.json"

    @property
    def summary(self) -> Path:
        """summary.json."""
        return self.path / "summary.json"

    @property
    def socket(self) -> Path:
        """engine.sock, or its place under $XDG_RUNTIME_DIR (else the temporary directory) when the path is too long."""
        path = self.path / "engine.sock"
        if len(os.fsencode(path.absolute())) <= _SOCKET_PATH_BYTES:
            return path
        base = environment("XDG_RUNTIME_DIR") or tempfile.gettempdir()
        return Path(base) / f"synth-engine-{self.run_id}.sock"

    @property
    def run_id(self) -> str:
        """`<name>-<8 hex>` from the manifest.

        Raises ConfigError if there is no manifest, RunError for one that no run wrote."""
        manifest = read_json(self.manifest)
        if manifest is None:
            raise ConfigError(f"{self.path}: no manifest.json: this is not a run directory")
        run_id = manifest.get("run_id")
        if not isinstance(run_id, str) or not _RUN_ID.fullmatch(run_id):
            raise RunError(f"{self.manifest}: {run_id!r} is not the id of a run; restore the file from a copy")
        return run_id

    def adapter(self, version: int) -> Path:
        """The directory of one version."""
        return self.adapters / f"v{version:05d}"

    def versions(self) -> list[int]:
        """Published versions, ascending."""
        names = (path.name for path in self.adapters.glob("v[0-9]*") if path.is_dir())
        return sorted(int(name[1:]) for name in names if name[1:].isdecimal())

    @property
    def best(self) -> int | None:
        """The version that adapters/best names; None without the link, and for one that names no version."""
        link = self.adapters / "best"
        name = str(link.readlink()) if link.is_symlink() else ""
        return next((version for version in self.versions() if self.adapter(version).name == name), None)

    def checkpoint(self, step: int) -> Path:
        """The directory of the checkpoint after one step."""
        return self.learner / f"checkpoint-{step:05d}"

    def checkpoints(self) -> list[int]:
        """Steps that have a checkpoint, ascending."""
        names = (path.name.removeprefix("checkpoint-") for path in self.learner.glob("checkpoint-[0-9]*"))
        return sorted(int(name) for name in names if name.isdecimal())

    def create(self) -> None:
        """Make the directories."""
        for path in (self.trajectories, self.eval, self.adapters, self.learner):
            path.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run's lock (flock) for the length of the block.

        Raises RunError if another supervisor holds it, OSError if it is a link: the file elsewhere is not touched."""
        with os.fdopen(os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RunError(
                    f"{self.path}: another synth-engine is running it; stop that one, or use another name"
                ) from error
            yield


def new_run_id(name: str) -> str:
    """`<name>-<8 hex>`: never the same twice, so that an adapter name is never shared by two runs."""
    return f"{name}-{secrets.token_hex(4)}"


def adapter_name(run_id: str, version: int) -> str:
    """The name of a version on the servers: `<run id>-v00012`."""
    return f"{run_id}-v{version:05d}"


def adapter_version(name: str) -> int:
    """The version in an adapter's name."""
    return int(name.rpartition("-v")[2])


def find_run(run: str | None, base: str | Path = "runs") -> RunDir:
    """A run by path or name; None is the latest.

    Raises ConfigError if there is none."""
    candidates = [Path(base) / "latest"] if run is None else [Path(run), Path(base) / run]
    for path in candidates:
        if (path / "manifest.json").exists():
            return RunDir(path.resolve())
    wanted = "no run yet" if run is None else f"no run {run!r}"
    raise ConfigError(
        f"{wanted}: looked for {' and '.join(str(path) for path in candidates)}; `synth-engine runs` lists them"
    )
