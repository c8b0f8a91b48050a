"""Files of seeds, each recognised by its content: personas, OpenAI functions, an MCP reply, an OpenAPI 3 document."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import orjson

from engine.config.load import ASSETS
from engine.errors import ConfigError
from engine.importing.format import UnreadableError
from engine.importing.report import Note
from engine.packs.problems import Found, Problem
from engine.schema.recordable import deeper_than
from engine.synthesis.seeds.declared import declared, tools_of_declarations
from engine.synthesis.seeds.openapi import tools_of_openapi
from engine.synthesis.seeds.personas import (
    numbered_lines,
    personas_of_lines,
    personas_of_objects,
    personas_of_text,
)
from engine.synthesis.seeds.seed import Seed, SeedFile, SeedKind, domain_seed
from engine.synthesis.seeds.toolbox import Toolbox
from engine.synthesis.seeds.yaml_text import yaml_value
from engine.types import Json

SHIPPED = "personas"
"""The name of the personas that come with the engine."""
_MAX_BYTES = 64 << 20
_LEVELS = 100
_YAML = re.compile(r"^(?:openapi|swagger)\s*:", re.MULTILINE)
_FORMS = "docs/seeds.md has an example of each form"


def read_seeds(paths: Sequence[Path], policy: Path | None = None) -> tuple[SeedFile, ...]:
    """What files hold; of a directory every file directly in it. `policy` is a text with the rules of all domains.

    Seeds that two files have stand in the first of them. Raises ConfigError naming file, place, reason and remedy of
    everything that is wrong with a file."""
    rules = _policy(policy) if policy is not None else ""
    found = [_read(path, rules) for path in _expanded(paths)]
    if policy is not None and not any(seed.kind is SeedKind.DOMAIN for file in found for seed in file.seeds):
        raise _refused(policy, [Found("", "is a policy without tools", "give the tools that it is about beside it")])
    return tuple(_each_once(found))


def _expanded(paths: Sequence[Path]) -> Iterator[Path]:
    """The files that are meant, each once: the shipped personas by their name, a directory by its files."""
    found: dict[Path, None] = {}
    for path in paths:
        if path.is_dir():
            inside = sorted(inner for inner in path.iterdir() if inner.is_file() and not inner.name.startswith("."))
            if not inside:
                raise _refused(path, [Found("", "has no files", "give a file of seeds, or a directory that has some")])
            found |= dict.fromkeys(inside)
        elif str(path) == SHIPPED and not path.exists():
            found[ASSETS / f"{SHIPPED}.jsonl"] = None
        else:
            found[path] = None
    yield from found


def _read(path: Path, policy: str) -> SeedFile:
    try:
        form, seeds, notes = _recognised(_text(path), policy)
    except UnreadableError as error:
        raise _refused(path, error.found) from error
    return SeedFile(path=str(path), form=form, seeds=seeds, notes=notes)


def _recognised(text: str, policy: str) -> tuple[str, tuple[Seed, ...], tuple[Note, ...]]:
    """The form of a file in words, its seeds, and what became of the rest."""
    first = next(numbered_lines(text), None)
    if first is None:
        raise UnreadableError([Found("", "is empty", _FORMS)])
    if first[1][0] in "{[":
        try:
            value = orjson.loads(text)
        except orjson.JSONDecodeError as error:
            if _is_object(first[1]):
                return "personas, JSON Lines", *personas_of_lines(text)
            found = Found(
                f"line {error.lineno}", f"not JSON: {error.msg}", "correct it: `jq . FILE` says where it breaks off"
            )
            raise UnreadableError([found]) from error
        return _of_json(value, policy)
    if _YAML.search(text):
        return _of_json(yaml_value(text), policy)
    return "personas, one a line", *personas_of_text(text)


def _of_json(value: Json, policy: str) -> tuple[str, tuple[Seed, ...], tuple[Note, ...]]:
    if deeper_than(_LEVELS, value):
        raise UnreadableError([Found("", f"nests deeper than {_LEVELS} levels", "flatten it")])
    if isinstance(value, Mapping) and "persona" in value:
        return "personas, JSON Lines", *personas_of_objects([("line 1", value)])
    if isinstance(value, list) and any(isinstance(inner, Mapping) and "persona" in inner for inner in value):
        return "personas, a JSON array", *personas_of_objects(
            (f"[{index}]", inner) for index, inner in enumerate(value)
        )
    if isinstance(value, Mapping) and ("openapi" in value or "swagger" in value):
        form, title, box = tools_of_openapi(value)
        return form, *_domain(box, title, policy)
    tools = declared(value)
    if tools is None:
        keys = ", ".join(map(repr, list(value)[:5])) if isinstance(value, Mapping) else repr(value)[:40]
        raise UnreadableError([Found("", f"is JSON, but neither personas nor tools: {keys}", _FORMS)])
    form, box = tools_of_declarations(value, tools)
    return form, *_domain(box, "", policy)


def _domain(box: Toolbox, trade: str, policy: str) -> tuple[tuple[Seed, ...], tuple[Note, ...]]:
    """The one seed of a file of tools.

    Raises UnreadableError where none of them can be used."""
    if not box.tools:
        lost = [Found(note.field, note.became, _FORMS) for note in box.notes if not note.kept]
        raise UnreadableError([Found("", "has no tool that can be used", _FORMS), *lost])
    return (domain_seed(box.tools, trade, policy),), box.notes


def _each_once(read: Sequence[SeedFile]) -> Iterator[SeedFile]:
    """The files, each without the seeds of those before it.

    Raises ConfigError where two seeds have one id."""
    known: dict[str, tuple[Seed, str]] = {}
    for file in read:
        kept, twice = [], []
        for seed in file.seeds:
            first, where = known.setdefault(seed.id, (seed, file.path))
            if first != seed:
                found = Found(seed.id, f"this id has another seed in {where}", "ids are unique over all files")
                raise _refused(Path(file.path), [found])
            if where == file.path:
                kept.append(seed)
            else:
                twice.append(Note(seed.id, f"stands in {where} too", kept=False))
        yield SeedFile(path=file.path, form=file.form, seeds=tuple(kept), notes=(*file.notes, *twice))


def _policy(path: Path) -> str:
    """The text of a policy.

    Raises ConfigError for an empty file, and for JSON, which is something else."""
    try:
        text = _text(path).strip()
    except UnreadableError as error:
        raise _refused(path, error.found) from error
    if not text or _is_object(text):
        what = "is JSON, not a policy" if text else "is empty"
        raise _refused(path, [Found("", what, "write the rules of the domain as text or Markdown")])
    return text


def _text(path: Path) -> str:
    """The text of a file, without a byte order mark.

    Raises UnreadableError."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise UnreadableError([Found("", f"larger than {_MAX_BYTES >> 20} MiB", "give it in parts")])
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UnreadableError([Found("", f"cannot be read: {error.strerror}", "check the path")]) from error
    except UnicodeDecodeError as error:
        remedy = "save it as UTF-8; it must be text"
        raise UnreadableError([Found("", f"is not UTF-8 at byte {error.start}", remedy)]) from error


def _is_object(text: str) -> bool:
    try:
        return isinstance(orjson.loads(text), dict | list)
    except orjson.JSONDecodeError:
        return False


def _refused(path: Path, found: Sequence[Found]) -> ConfigError:
    problems = (Problem(path=str(path), line=0, task="", **item._asdict()) for item in found)
    return ConfigError("\n".join(map(str, problems)))
