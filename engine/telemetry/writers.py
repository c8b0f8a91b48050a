"""TensorBoard, W&B and trackio, fed from a run's metrics files; each needs its extra: `synth-engine[tensorboard]`.

Whoever starts one writes the whole run from its first row; what was written of the same run before is replaced.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from engine.config.environment import environment
from engine.errors import ConfigError
from engine.rundir.layout import RunDir
from engine.telemetry.follow import Sample

PROJECT = "synth-engine"
"""The project in W&B and trackio."""
_SUFFIX = ".synth-engine"
_FLUSH_S = 2


class Writer(Protocol):
    """Where metrics go."""

    def write(self, sample: Sample) -> None:
        """Take one row; it may stay in memory for a while."""
        ...

    def close(self) -> None:
        """Bring to its place what is not there yet."""
        ...


class TensorBoard:
    """One event file; every key is a scalar, over the seconds of the run's clock or the steps of the learner."""

    def __init__(self, run: RunDir, out: Path | None) -> None:
        # One event a row: the writers of single scalars make one a number.
        files = importlib.import_module("tensorboard.summary.writer.event_file_writer")
        self._events: Any = importlib.import_module("tensorboard.compat.proto.event_pb2")
        self._summaries: Any = importlib.import_module("tensorboard.compat.proto.summary_pb2")
        directory = out or run.path / "tensorboard"
        directory.mkdir(parents=True, exist_ok=True)
        for earlier in directory.glob(f"events.out.tfevents.*{_SUFFIX}"):
            earlier.unlink()
        self._file = files.EventFileWriter(str(directory), flush_secs=_FLUSH_S, filename_suffix=_SUFFIX)

    def write(self, sample: Sample) -> None:
        """See Writer."""
        values = [self._summaries.Summary.Value(tag=key, simple_value=value) for key, value in sample.values.items()]
        summary = self._summaries.Summary(value=values)
        self._file.add_event(self._events.Event(wall_time=sample.wall_s, step=sample.step, summary=summary))

    def close(self) -> None:
        """See Writer."""
        self._file.close()


class WandB:
    """One run, by the run's id; its two files have x axes of their own. `WANDB_MODE=offline` writes it to a file."""

    def __init__(self, run: RunDir, out: Path | None) -> None:
        wandb = importlib.import_module("wandb")
        (out or run.path).mkdir(parents=True, exist_ok=True)
        try:
            self._run = wandb.init(
                project=environment("WANDB_PROJECT") or PROJECT,
                dir=str(out or run.path),
                # Without `resume`, an earlier run of this id is replaced.
                id=run.run_id,
                name=run.run_id,
                # What this process itself does on this machine is no news of the run.
                settings=wandb.Settings(
                    console="off",
                    save_code=False,
                    x_disable_meta=True,
                    x_disable_stats=True,
                    x_save_requirements=False,
                ),
            )
        except wandb.Error as error:
            raise ConfigError(f"W&B: {error} (WANDB_MODE=offline writes to a file instead)") from error
        self._defined: set[str] = set()

    def write(self, sample: Sample) -> None:
        """See Writer."""
        for key in sample.values.keys() - self._defined:
            self._run.define_metric(key, step_metric=sample.axis, step_sync=False)
        self._defined |= sample.values.keys()
        self._run.log({**sample.values, "_timestamp": sample.wall_s})

    def close(self) -> None:
        """See Writer."""
        self._run.finish()


class Trackio:
    """One run, named by the run's id, where trackio keeps runs."""

    def __init__(self, run: RunDir, out: Path | None) -> None:
        if out is not None:
            raise ConfigError("trackio keeps runs where the environment variable TRACKIO_DIR says; leave --out away")
        self._trackio: Any = importlib.import_module("trackio")
        # There may be no such project yet.
        with suppress(ValueError):
            for earlier in self._trackio.Api().runs(PROJECT):
                if earlier.name == run.run_id:
                    earlier.delete()
        self._trackio.init(PROJECT, run.run_id, embed=False, auto_log_cpu=False, auto_log_gpu=False)

    def write(self, sample: Sample) -> None:
        """See Writer."""
        self._trackio.log(dict(sample.values), step=sample.step)

    def close(self) -> None:
        """See Writer."""
        self._trackio.finish()


class _Kind(NamedTuple):
    package: str
    open: Callable[[RunDir, Path | None], Writer]


WRITERS: Mapping[str, _Kind] = {
    "tensorboard": _Kind("tensorboard", TensorBoard),
    "wandb": _Kind("wandb", WandB),
    "trackio": _Kind("trackio", Trackio),
}
"""By name, which is that of the extra too."""


def require_writer(name: str) -> None:
    """Raises ConfigError if there is no such writer, or its package is not installed."""
    if name not in WRITERS:
        raise ConfigError(f"there is no metrics writer {name!r}; there are {', '.join(WRITERS)}")
    if importlib.util.find_spec(WRITERS[name].package) is None:
        package = WRITERS[name].package
        raise ConfigError(f'{name} needs the package {package}: pip install "synth-engine[{name}]"')


def open_writer(name: str, run: RunDir, out: Path | None = None) -> Writer:
    """A writer of WRITERS for a run, to its usual place or to the directory `out`.

    Raises ConfigError if it is unknown, not installed, or W&B does not let it in."""
    require_writer(name)
    return WRITERS[name].open(run, out)
