"""The bar of the code base, as far as a tool can hold it (the rest is ruff, mypy and import-linter)."""

import ast
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.parts.places import ROOT

PACKAGES = ("engine", "learner")
FILES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
_NESTING = (ast.For, ast.AsyncFor, ast.While, ast.If, ast.With, ast.AsyncWith, ast.Try, ast.TryStar, ast.Match)


def functions() -> Iterator[tuple[Path, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Every function of the packages."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield path, node


def where(path: Path, node: ast.AST) -> str:
    """A clickable place."""
    return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"


def test_files_are_short() -> None:
    """Median at most 150 lines, none over 400."""
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert {str(path): count for path, count in lines.items() if count > 400} == {}
    assert statistics.median(count for count in lines.values() if count) <= 150


def test_the_loop_can_be_read_in_one_sitting() -> None:
    """The three files that decide are 400 lines together; beside them core holds an episode's values, and no more."""
    core = ROOT / "engine" / "core"
    loop, values = {"episode.py", "scheduler.py", "versions.py"}, {"__init__.py", "ledger.py", "live.py", "seams.py"}
    assert {path.name for path in core.glob("*.py")} == loop | values
    assert sum(len((core / name).read_text(encoding="utf-8").splitlines()) for name in loop) <= 400


def test_functions_are_short_and_take_few_parameters() -> None:
    """At most 60 lines and 6 parameters."""
    found = []
    for path, node in functions():
        length = (node.end_lineno or node.lineno) - node.lineno + 1
        names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        parameters = [name for name in names if name not in ("self", "cls")]
        if length > 60 or len(parameters) > 6:
            found.append((where(path, node), node.name, length, len(parameters)))
    assert found == []


def depth(node: ast.AST, level: int = 0) -> int:
    """Deepest nesting of blocks below a node; an elif counts as its if."""
    deepest = level
    for name, value in ast.iter_fields(node):
        children = value if isinstance(value, list) else [value]
        for child in children:
            if not isinstance(child, ast.AST) or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            is_elif = name == "orelse" and isinstance(node, ast.If) and isinstance(child, ast.If) and len(children) == 1
            deeper = level + (isinstance(child, _NESTING) and not is_elif)
            deepest = max(deepest, depth(child, deeper))
    return deepest


def test_blocks_are_shallow() -> None:
    """Nesting of at most 4."""
    assert [(where(path, node), node.name) for path, node in functions() if depth(node) > 4] == []


def calls() -> Iterator[tuple[Path, ast.Call, str]]:
    """Every call of the packages, with its dotted name."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                yield path, node, ast.unparse(node.func)


def test_concurrency_is_structured() -> None:
    """Nothing but anyio task groups."""
    banned = {f"asyncio.{name}" for name in ("create_task", "gather", "ensure_future", "wait_for")}
    assert [where(path, node) for path, node, name in calls() if name in banned] == []


def test_no_string_getattr_no_eval_no_pickle() -> None:
    """Attributes are names; outside data is never code."""
    banned = {"getattr", "eval", "exec", "pickle.load", "pickle.loads", "torch.load"}
    assert [where(path, node) for path, node, name in calls() if name in banned] == []


def test_environment_variables_are_read_in_the_configuration_only() -> None:
    """No side channel."""
    found = [
        str(path.relative_to(ROOT))
        for path in FILES
        if any(word in path.read_text(encoding="utf-8") for word in ("os.environ", "os.getenv"))
    ]
    assert found == ["engine/config/environment.py"]


def test_there_is_no_broad_except() -> None:
    """`errors.boundary` classifies, without one; everything else names what it expects."""
    found = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ExceptHandler):
                names = ast.unparse(node.type) if node.type else ""
                if names in ("", "Exception", "BaseException"):
                    found.append(str(path.relative_to(ROOT)))
    assert found == []


@pytest.mark.parametrize("module", ["engine.cli", "engine.run"])
def test_the_engine_is_light(module: str) -> None:
    """Importing it loads no torch, transformers, peft, sglang or textual."""
    heavy = {"torch", "transformers", "peft", "sglang", "textual"}
    code = f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_nothing_says_that_it_is_unfinished() -> None:
    """No note to a later self in what ships."""
    words = ("TO" + "DO", "FIX" + "ME", "X" + "XX", "place" + "holder text")
    found = [str(path) for path in FILES for word in words if word in path.read_text(encoding="utf-8")]
    assert found == []
