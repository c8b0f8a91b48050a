"""The plan of the house, read from the source: loose modules, package cycles, names with two meanings, dead citations.

``python -m tests.bar.house`` prints the four; ``--write`` also writes docs/structure.md, one sentence a module.
"""

import argparse
import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOPS = ("engine", "learner", "tui")
"""What the plan is drawn of; the bar holds for what stands in bench/ too."""
STRUCTURE = ROOT / "docs" / "structure.md"
MOST_LOOSE = 6

_ENTRY_POINTS = frozenset({"command", "main", "log"})
"""What every command, every process and every module that logs calls its own."""
_CITED = re.compile(r"(?<![\w./@-])((?:\.\./)*[A-Za-z_][\w-]*(?:/[\w-]+)*\.md)\b")
_CITING = ("*.py", "*.md", "*.toml", "*.txt", "*.tcss", "Makefile")
_ELSEWHERE = frozenset({"AGENTS.md"})
"""Pages of other projects that ours talk about."""


@dataclass(frozen=True, slots=True)
class Module:
    """One module of the tree, parsed."""

    name: str
    """Dotted; a package is its __init__."""
    path: Path
    text: str
    tree: ast.Module

    @property
    def place(self) -> str:
        """Its path from the root."""
        return self.path.relative_to(ROOT).as_posix()

    @property
    def room(self) -> str:
        """The package of engine/ that it lies in; of the others the top level."""
        parts = self.name.split(".")
        return ".".join(parts[:2]) if parts[0] == "engine" else parts[0]

    @property
    def sentence(self) -> str:
        """The first sentence of its docstring, on one line."""
        text = " ".join((ast.get_docstring(self.tree) or "").split("\n\n")[0].split())
        return re.split(r"(?<=[^.]{2}\.) ", text, maxsplit=1)[0].removesuffix("::")


@cache
def sources() -> tuple[Module, ...]:
    """Every Python file of engine, learner, tui and bench."""
    found = []
    for path in sorted(path for top in (*TOPS, "bench") for path in (ROOT / top).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        text = path.read_text(encoding="utf-8")
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found.append(Module(name, path, text, ast.parse(text)))
    return tuple(found)


@cache
def modules() -> dict[str, Module]:
    """Every module of engine, learner and tui by its dotted name, package data left out."""
    return {
        module.name: module
        for module in sources()
        if module.name.split(".")[0] in TOPS and "assets" not in module.path.parts
    }


def imports(module: Module) -> Iterator[tuple[str, str]]:
    """What a module imports of the tree, wherever it does: the module, and the name taken from it ("" for all)."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if alias.name in modules())
        elif isinstance(node, ast.ImportFrom) and node.module in modules():
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield (inner, "") if inner in modules() else (node.module, alias.name)


def taken(module: Module) -> Iterator[str]:
    """Names that a module takes from others: by import, and functions and classes as attributes of a module of ours.

    A constant read through its module (`keys.STEP`) says whose it is."""
    yield from (name for _, name in imports(module) if name)
    ours = {
        alias.asname or alias.name
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if f"{node.module}.{alias.name}" in modules()
    }
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ours:
            yield from () if node.attr.isupper() else (node.attr,)


def loose_modules() -> list[str]:
    """Files of engine/ that lie in no room."""
    return sorted(path.name for path in (ROOT / "engine").glob("*.py"))


def package_cycles() -> list[str]:
    """A cycle among the rooms as `a -> b -> a`, or nothing."""
    needs: dict[str, set[str]] = defaultdict(set)
    for module in modules().values():
        needs[module.room] |= {modules()[other].room for other, _ in imports(module)} - {module.room}
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as cycle:
        return [" -> ".join(reversed(cycle.args[1]))]
    return []


def definitions(module: Module) -> Iterator[str]:
    """Public classes, functions, aliases and constants at the top level of a module."""
    for node in module.tree.body:
        names: list[str] = []
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names = [node.name]
        elif isinstance(node, ast.Assign):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names = [node.target.id]
        yield from (name for name in names if not name.startswith("_"))


def double_names() -> dict[str, list[str]]:
    """Names that one module takes from another while a third defines them too: where each is defined."""
    where: dict[str, list[str]] = defaultdict(list)
    for module in modules().values():
        for name in definitions(module):
            where[name].append(module.name)
    crossing = {name for module in modules().values() for name in taken(module)}
    return {
        name: places
        for name, places in sorted(where.items())
        if len(places) > 1 and name in crossing and name not in _ENTRY_POINTS
    }


def dangling_citations() -> list[str]:
    """Pages that a file of the repository cites and that are not in it, as `file:line: page`."""
    found = []
    for path in sorted(set(_citing())):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            for page in _CITED.findall(line):
                there = any((base / page).exists() for base in (ROOT, ROOT / "docs", path.parent))
                if not there and page not in _ELSEWHERE:
                    found.append(f"{path.relative_to(ROOT)}:{number}: {page}")
    return found


def _citing() -> Iterator[Path]:
    for top in (*TOPS, "bench", "tests", "docs"):
        for pattern in _CITING:
            yield from (ROOT / top).rglob(pattern)
    yield from (path for pattern in _CITING for path in ROOT.glob(pattern))


def structure() -> str:
    """docs/structure.md: every module with the first sentence of its docstring, room by room."""
    lines = [
        "# Structure",
        "",
        "One sentence a module, taken from its docstring; `python -m tests.bar.house --write` makes this page.",
        "Rooms are listed from the ground up: each imports only from those above it on this page",
        "([`pyproject.toml`](../pyproject.toml) has the layers that the linter enforces).",
    ]
    rooms: dict[str, list[Module]] = defaultdict(list)
    for module in modules().values():
        rooms["/".join(module.path.relative_to(ROOT).parent.parts)].append(module)
    for room in sorted(rooms, key=lambda room: (TOPS.index(room.split("/")[0]), _floor(room), room)):
        lines += ["", f"## {room}/"]
        heads = [module for module in rooms[room] if module.path.name == "__init__.py"]
        lines += ["", *(module.sentence for module in heads if module.sentence), "", "| module | |", "|---|---|"]
        for module in rooms[room]:
            if module not in heads:
                sentence = module.sentence.replace("|", "\\|")
                lines.append(f"| [`{module.path.name}`](../{module.place}) | {sentence} |")
    return "\n".join(lines) + "\n"


@cache
def _floor(folder: str) -> int:
    """One more than the highest floor that a folder imports from; its own sub-folders are not counted."""
    below = {
        "/".join(modules()[other].path.relative_to(ROOT).parent.parts)
        for module in modules().values()
        if module.path.parent == ROOT / folder
        for other, _ in imports(module)
    }
    return 1 + max((_floor(other) for other in below if not f"{other}/".startswith(f"{folder}/")), default=0)


def report() -> str:
    """The four findings: a line with a count for each, and what was found below it."""
    doubles = [f"{name}: {', '.join(places)}" for name, places in double_names().items()]
    found = {
        f"loose modules of engine/ (at most {MOST_LOOSE})": loose_modules(),
        "package cycles": package_cycles(),
        "names with two meanings": doubles,
        "dangling citations": dangling_citations(),
    }
    return "\n".join("\n  ".join([f"{title}: {len(lines)}", *lines]) for title, lines in found.items()) + "\n"


def main() -> None:
    """Print what the house looks like; write its page if asked to."""
    parser = argparse.ArgumentParser(prog="python -m tests.bar.house", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write docs/structure.md")
    if parser.parse_args().write:
        STRUCTURE.write_text(structure(), encoding="utf-8")
    sys.stdout.write(report())


if __name__ == "__main__":
    main()
