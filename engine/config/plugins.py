"""`package.module:Object` in the configuration: how a researcher's own world, user, scorer or advantage is found."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any

from engine.errors import ConfigError, SynthError

REMEDY = "docs/plugins.md says what is expected of it"
_OURS = Path(__file__).resolve().parent.parent


class foreign(AbstractContextManager[None]):  # noqa: N801 - used as a statement, as errors.boundary is
    """Whatever goes wrong in somebody else's code becomes a ConfigError that names `what` was done, and the place.

    Errors of this project pass unchanged, and so does cancellation."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if isinstance(error, Exception) and not isinstance(error, SynthError):
            sentence = f"{self._what} raised {type(error).__name__}: {error}{_place(tb)}; {REMEDY}"
            raise ConfigError(sentence) from error


def _place(tb: TracebackType | None) -> str:
    """The last line that is not this package's, where there is one."""
    lines = ((frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(tb))
    theirs = [f" ({file}, line {line})" for file, line in lines if not Path(file).is_relative_to(_OURS)]
    return theirs[-1] if theirs else ""


def load_object(name: str, key: str) -> Any:
    """The object that `name` ("package.module:Object") names in configuration key `key`.

    Modules of the directory that the program was started in are found, as they are by `python -m`. Raises ConfigError
    if the module cannot be imported or has no such object."""
    module_name, _, attribute = name.partition(":")
    # A console script would look beside itself only, and the processes of a run are started by `python -m`.
    if "" not in sys.path:
        sys.path.insert(0, "")
    with foreign(f"{key} = {name!r}: importing it"):
        try:
            module = importlib.import_module(module_name)
        except ImportError as error:
            remedy = f"start this in the directory that has {module_name.partition('.')[0]}, or install it here"
            raise ConfigError(f"{key} = {name!r}: cannot import it ({error}); {remedy}") from error
    try:
        return vars(module)[attribute]
    except KeyError:
        public = ", ".join(_public(vars(module), module_name)) or "nothing"
        raise ConfigError(
            f"{key} = {name!r}: module {module_name!r} has no {attribute!r}; name what it defines: {public}"
        ) from None


def _public(members: dict[str, Any], module_name: str) -> Iterator[str]:
    """What a module itself defines for others."""
    for name, member in members.items():
        if callable(member) and not name.startswith("_") and member.__module__ == module_name:
            yield name
