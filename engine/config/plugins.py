"""`package.module:Object` in the configuration: how a researcher's own world, user, scorer or advantage is found."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Iterator
from contextlib import AbstractContextManager
from importlib.machinery import ModuleSpec
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Any

from engine.config.tree import Config
from engine.errors import ConfigError, SynthError, text_of

REMEDY = "docs/plugins.md says what is expected of it"
_OURS = Path(__file__).resolve().parent.parent


class foreign(AbstractContextManager[None]):  # noqa: N801 - used as a statement, as errors.boundary is
    """Whatever goes wrong in somebody else's code becomes a ConfigError that names `what` was done, and the place.

    Errors of this project pass unchanged, and so does cancellation."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if isinstance(error, Exception) and not isinstance(error, SynthError):
            sentence = f"{self._what} raised {type(error).__name__}: {text_of(error)}{_place(tb)}; {REMEDY}"
            raise ConfigError(sentence) from error


def _place(tb: TracebackType | None) -> str:
    """The last line that is not this package's, where there is one."""
    lines = ((frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(tb))
    theirs = [f" ({file}, line {line})" for file, line in lines if not Path(file).is_relative_to(_OURS)]
    return theirs[-1] if theirs else ""


def plugins(config: Config) -> dict[str, str]:
    """What a configuration names as `package:Object`, by key."""
    kinds = {"world.kind": config.world.kind, "user.kind": config.user.kind, "scorer.kind": config.scorer.kind}
    kinds |= {"learner.advantage": config.learner.advantage} if config.learner.kind == "grpo" else {}
    return {key: kind for key, kind in kinds.items() if ":" in kind}


def module_file(name: str) -> Path | None:
    """The file whose code runs first when `load_object` loads `name`; None if there is no such module.

    Nothing is imported: of `package.module:Object` whose module is missing, it is the package."""
    found, places = None, ["", *sys.path]
    module_name, _, _ = name.partition(":")
    for part in accumulate(module_name.split("."), "{}.{}".format):
        spec = _spec(part, places)
        if spec is None:
            break
        inside = list(spec.submodule_search_locations or ())
        # A package without a file of its own is a directory; what is built in has no place at all.
        found = Path(spec.origin or inside[0]) if spec.origin or inside else found
        places = inside
    return found


def _spec(name: str, places: list[str]) -> ModuleSpec | None:
    """A module as the first of the interpreter's finders has it, in `places`."""
    for finder in sys.meta_path:
        # Built-in modules are found by their name, whatever the place.
        spec = finder.find_spec(name, places if places or "." in name else None)
        if spec is not None:
            return spec
    return None


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


def plugin(name: str, key: str) -> Any:
    """An object of the class that a configuration names.

    Raises ConfigError if it cannot be loaded, or made without arguments."""
    made = load_object(name, key)
    with foreign(f"{key} = {name!r}: making one, without arguments,"):
        return made()
