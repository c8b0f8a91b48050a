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


_STARTS = {
    *("create_task", "ensure_future", "create_future", "run_coroutine_threadsafe", "add_done_callback"),
    *("run_in_executor", "call_soon", "call_soon_threadsafe", "call_later", "call_at", "add_signal_handler"),
    *("Thread", "Timer", "ThreadPoolExecutor", "ProcessPoolExecutor", "start_new_thread"),
    *("run_worker", "call_from_thread", "set_interval", "set_timer", "textual.work"),
}
"""Names, also of methods, that start a task, a thread or a timer, or make a future, which nothing need end or await."""
_ASYNCIO = {
    "gather",
    "wait",
    "wait_for",
    "as_completed",
    "shield",
    "timeout",
    "to_thread",
    "Future",
    "Task",
    "TaskGroup",
}
"""What else asyncio has in place of anyio's task groups and scopes; harmless names elsewhere."""
_OWNED = {
    ("engine/errors.py", "call_later"): "the timer of a Deadline is cancelled when its block ends",
    ("engine/embedded/__main__.py", "call_soon_threadsafe"): "how the model thread, which the task group there waits "
    "for, tells the loop of its steps",
    (
        "learner/lifetime.py",
        "Thread",
    ): "watches for the death of the parent as long as the process lives; it owns nothing",
    ("tui/app.py", "add_signal_handler"): "of the process, as long as it lives",
    ("tui/app.py", "run_worker"): "textual's workers end with the app, and the app ends with one that fails",
    ("tui/picker.py", "set_interval"): "textual's timers end with their widget",
}
"""Where they are used all the same, and who the owner is."""


def names(tree: ast.AST) -> Iterator[str]:
    """Every name that a module uses or imports, and every attribute; those of asyncio with their module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
            yield ast.unparse(node)
        elif isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.ImportFrom):
            yield from (alias.name for alias in node.names)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def started(source: str) -> set[str]:
    """What a module uses that starts something without an owner."""
    found = set(names(ast.parse(source)))
    return (_STARTS | {f"asyncio.{name}" for name in _ASYNCIO}) & found


def test_nothing_starts_a_task_a_thread_or_a_timer_without_an_owner() -> None:
    """Concurrency is anyio's task groups; every other place is listed with its owner, and no listed place is gone."""
    files = [path for package in ("engine", "learner", "tui") for path in sorted((ROOT / package).rglob("*.py"))]
    found = {
        (str(path.relative_to(ROOT)), name) for path in files for name in started(path.read_text(encoding="utf-8"))
    }
    assert found == _OWNED.keys()


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("asyncio.get_running_loop().create_task(f())", "create_task"),
        ("loop = asyncio.get_running_loop()\nloop.run_in_executor(None, f)", "run_in_executor"),
        ("start = loop.call_soon_threadsafe", "call_soon_threadsafe"),
        ("from asyncio import ensure_future as later", "ensure_future"),
        ("from asyncio import gather", "asyncio.gather"),
        ("threading.Thread(target=f).start()", "Thread"),
        ("from concurrent.futures import ThreadPoolExecutor", "ThreadPoolExecutor"),
        ("future: asyncio.Future[int]", "asyncio.Future"),
        ("from textual import work", "textual.work"),
        ("class A:\n    def f(self): self.app.run_worker(g())", "run_worker"),
    ],
)
def test_ways_to_start_something_are_seen(source: str, name: str) -> None:
    """By method, by import, by reference, by annotation."""
    assert started(source) == {name}


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
