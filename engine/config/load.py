"""From a TOML file and `--set` overrides to one validated tree, with the source of every key."""

from __future__ import annotations

import difflib
import json
import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from engine.config.endpoints import EndpointSection
from engine.config.keys import Section
from engine.config.tree import Config
from engine.errors import ConfigError

ASSETS = Path(__file__).resolve().parent.parent / "assets"
_SET = "--set "
_NAMED = "endpoints"
"""The one table of tables."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A configuration and, for every key that was set, where it came from."""

    config: Config
    sources: Mapping[str, str]

    def in_file(self, name: str) -> bool:
        """Whether the file set this key, and no override did."""
        return not self.sources.get(name, _SET).startswith(_SET)


def fields(endpoints: Iterable[str] = ("NAME",)) -> Iterator[tuple[str, FieldInfo]]:
    """Every key of the tree as ("learner.lr", its field), in order; those of an endpoint once for each name given."""
    for table, info in Config.model_fields.items():
        if table == _NAMED:
            for name in endpoints:
                yield from _leaves(EndpointSection, f"{table}.{name}.")
        else:
            assert isinstance(info.annotation, type)
            yield from _leaves(info.annotation, f"{table}.")


def _leaves(section: type[Section], prefix: str) -> Iterator[tuple[str, FieldInfo]]:
    return ((f"{prefix}{name}", info) for name, info in section.model_fields.items())


def marks(info: FieldInfo) -> dict[str, Any]:
    """The marks of one key: `only_if`, `unless` and `resumable`."""
    extra = info.json_schema_extra
    return dict(extra) if isinstance(extra, dict) else {}


def asset(kind: str, name: str, suffixes: Sequence[str]) -> Path:
    """A shipped file by its bare name, or the path as given.

    Raises ConfigError if there is neither."""
    if Path(name).exists() and not Path(name).is_dir() and (os.sep in name or Path(name).suffix):
        return Path(name)
    for suffix in suffixes:
        if (shipped := ASSETS / kind / f"{name}{suffix}").exists():
            return shipped
    raise ConfigError(
        f"{kind}: there is no file {name!r}, and none is shipped under it (shipped: {_shipped(kind, suffixes)})"
    )


def _shipped(kind: str, suffixes: Sequence[str]) -> str:
    """The bare names of the shipped files with one of these suffixes, as a list in words."""
    found = {path.name.removesuffix(suffix) for suffix in suffixes for path in (ASSETS / kind).glob(f"*{suffix}")}
    return ", ".join(sorted(found))


def load(file: str | Path | None, overrides: Sequence[str] = ()) -> Loaded:
    """Read a configuration: a path, a shipped name such as "tiny", or None for defaults alone.

    `overrides` are "section.key=value" with a TOML (or bare string) value; a mode that they choose makes the keys moot
    that the file sets for another. Raises ConfigError, naming the key, the place and the remedy."""
    raw: dict[str, Any] = {}
    sources: dict[str, str] = {}
    if file is not None:
        path = asset("configs", str(file), (".toml",))
        try:
            raw = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: not valid TOML: {error}") from error
        sources = dict.fromkeys(flat(raw), str(path))
    for text in overrides:
        name, value = _override(text)
        _assign(raw, name, value)
        sources[name] = f"{_SET}{text}"
    return Loaded(config=validate(raw, sources), sources=sources)


def validate(raw: dict[str, Any], sources: Mapping[str, str]) -> Config:
    """Turn a raw tree into a Config; see `load` for what it raises."""
    known = dict(fields(_names(raw)))
    for name in flat(raw):
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"{sources.get(name, 'configuration')}: there is no key {name!r}{hint}")
    try:
        config = Config.model_validate(raw)
    except ValidationError as error:
        raise ConfigError("\n".join(_problems(error, sources))) from error
    _refuse_without_effect(config, raw, sources)
    return config


def dump(config: Config) -> str:
    """The resolved configuration as TOML: every key that has an effect in its mode."""
    raw: dict[str, Any] = {}
    for name, info in fields(config.endpoints):
        if not _in_the_way(config, name, info):
            _assign(raw, name, value_of(config, name))
    return tomli_w.dumps(raw)


def text_override(name: str, value: str) -> str:
    """An override of `name` by the string `value`, whatever TOML would take it for (2024 is a fine name)."""
    return f"{name}={json.dumps(value, ensure_ascii=False)}"


def value_of(config: Config, name: str) -> Any:
    """The value of "section.key", or None for an endpoint that there is not."""
    value: Any = config.model_dump()
    for part in name.split("."):
        value = value.get(part) if value is not None else None
    return value


def refuse_changes(before: Config, after: Config) -> None:
    """Raise ConfigError if anything differs that a resumed run may not change."""
    for name, info in fields({**before.endpoints, **after.endpoints}):
        old, new = value_of(before, name), value_of(after, name)
        if old != new and not marks(info).get("resumable"):
            raise ConfigError(
                f"--resume cannot change {name} (here it is {old!r}, not {new!r}); start a new run for that"
            )


def flat(raw: Mapping[str, Any]) -> Iterator[str]:
    """The dotted names of a raw tree; a table that is no section counts as a name."""
    for table, value in raw.items():
        if not isinstance(value, dict) or table not in Config.model_fields:
            yield table
        elif table != _NAMED:
            yield from (f"{table}.{name}" for name in value)
        else:
            for name, inner in value.items():
                endpoint = f"{table}.{name}"
                yield from (f"{endpoint}.{leaf}" for leaf in inner) if isinstance(inner, dict) else (endpoint,)


def _names(raw: Mapping[str, Any]) -> Iterable[str]:
    """The endpoints of a raw tree."""
    named = raw.get(_NAMED)
    return named if isinstance(named, dict) else ()


def _override(text: str) -> tuple[str, Any]:
    name, separator, value = text.partition("=")
    if not separator or "." not in name:
        raise ConfigError(f"--set {text}: write it as section.key=value, for example --set run.steps=20")
    try:
        return name.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name.strip(), value.strip()


def _assign(raw: dict[str, Any], name: str, value: Any) -> None:
    *tables, leaf = name.split(".")
    table: Any = raw
    for section in tables:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            raise ConfigError(f"{section!r} must be a table")
    table[leaf] = list(value) if isinstance(value, tuple) else value


def _problems(error: ValidationError, sources: Mapping[str, str]) -> Iterator[str]:
    for problem in error.errors():
        name = ".".join(str(part) for part in problem["loc"][: 3 if problem["loc"][:1] == (_NAMED,) else 2])
        place = sources.get(name, "configuration")
        message = problem["msg"].removeprefix("Value error, ")
        given = "" if not name else f" (given: {json.dumps(problem['input'], default=str)})"
        yield f"{place}: {name + ': ' if name else ''}{message}{given}"


def _in_the_way(config: Config, name: str, info: FieldInfo) -> list[str]:
    """The modes ("policy.launch") because of which a key has no effect."""
    only_if, unless = _full(name, marks(info)["only_if"]), _full(name, marks(info)["unless"])
    missed = [mode for mode, wanted in only_if.items() if value_of(config, mode) not in wanted]
    return missed or (list(unless) if all(value_of(config, mode) == value for mode, value in unless.items()) else [])


def _full(name: str, modes: Mapping[str, Any]) -> dict[str, Any]:
    """The modes of key `name`, those of its own table by their full names."""
    table = name.rpartition(".")[0]
    return {mode if "." in mode else f"{table}.{mode}": value for mode, value in modes.items()}


def _refuse_without_effect(config: Config, raw: Mapping[str, Any], sources: Mapping[str, str]) -> None:
    known = dict(fields(config.endpoints))
    for name in flat(raw):
        modes, source = _in_the_way(config, name, known[name]), sources.get(name, "configuration")
        # Whoever chooses a mode on the command line cannot be asked to edit the file that was written for another.
        moot = not source.startswith(_SET) and any(sources.get(mode, "").startswith(_SET) for mode in modes)
        if modes and not moot:
            wanted = _full(name, marks(known[name])["only_if"])
            now = " and ".join(f"{mode} = {value_of(config, mode)!r}" for mode in modes)
            remedy = " or ".join(
                f"set {mode} = {' or '.join(map(repr, wanted[mode]))}" if wanted else f"change {mode}" for mode in modes
            )
            raise ConfigError(f"{source}: {name} has no effect with {now}; remove it, or {remedy}")
