"""The plan of the house holds: few loose modules, no cycles, one meaning a name, and pages that are there."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

from tests.bar import house


def test_few_modules_lie_in_no_room() -> None:
    """What every room may need lies loose in engine/; all else in a room."""
    assert len(house.loose_modules()) <= house.MOST_LOOSE


def test_no_two_rooms_need_each_other() -> None:
    """Neither directly nor by way of others."""
    assert house.package_cycles() == []


def test_the_layers_name_every_room() -> None:
    """The linter says nothing about a room that it was not told of; no layer stands for a room that is gone."""
    contracts = tomllib.loads((house.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    [layers] = [contract["layers"] for contract in contracts["contracts"] if contract["type"] == "layers"]
    named = [room.strip() for layer in layers for room in layer.split("|")]
    assert len(named) == len(set(named))
    # The learner has contracts of its own; a package's docstring needs nothing.
    assert set(named) == {module.room for module in house.modules().values()} - {"learner", "engine"}


def test_a_name_has_one_meaning() -> None:
    """What a module takes from another is defined once."""
    assert house.double_names() == {}


def test_cited_pages_are_there() -> None:
    """Whoever follows a reference finds its page."""
    assert house.dangling_citations() == []


def test_the_page_of_the_structure_says_what_the_source_says() -> None:
    """`python -m tests.bar.house --write` makes it anew."""
    assert house.STRUCTURE.read_text(encoding="utf-8") == house.structure()


def test_the_places_that_pages_name_are_there() -> None:
    """`file.py::name` on a page is a class, function or value that this file defines."""
    named = {
        place
        for page in (house.ROOT / "docs").glob("*.md")
        for place in re.findall(r"`([\w/]+\.py)::(\w+)`", page.read_text(encoding="utf-8"))
    }
    assert len(named) >= 30
    defined = {file: set(every_definition(house.ROOT / file)) for file, _ in named}
    assert [f"{file}::{name}" for file, name in sorted(named) if name not in defined[file]] == []


def every_definition(path: Path) -> Iterator[str]:
    """Returns what a file defines at its top level, private names too."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (target.id for target in targets if isinstance(target, ast.Name))
