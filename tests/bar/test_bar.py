"""The bar of the code base, as far as a tool can hold it (the rest is ruff, mypy and import-linter)."""

import ast
import statistics
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.bar.house import ROOT, Module, sources

_NESTING = (ast.For, ast.AsyncFor, ast.While, ast.If, ast.With, ast.AsyncWith, ast.Try, ast.TryStar, ast.Match)


def functions() -> Iterator[tuple[Module, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Every function of engine, learner, tui and bench."""
    for module in sources():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield module, node


def where(module: Module, node: ast.expr | ast.stmt) -> str:
    """A clickable place."""
    return f"{module.place}:{node.lineno}"


def test_every_package_is_held_to_the_bar() -> None:
    """None is left out of what the tests here read; package data that is Python is in it too."""
    assert {module.path.relative_to(ROOT).parts[0] for module in sources()} == {"engine", "learner", "tui", "bench"}
    assert any("assets" in module.path.parts for module in sources())


def test_files_are_short() -> None:
    """Median at most 150 lines, none over 400."""
    lines = {module.place: len(module.text.splitlines()) for module in sources()}
    assert {place: count for place, count in lines.items() if count > 400} == {}
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
    for module, node in functions():
        length = (node.end_lineno or node.lineno) - node.lineno + 1
        names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        parameters = [name for name in names if name not in ("self", "cls")]
        if length > 60 or len(parameters) > 6:
            found.append((where(module, node), node.name, length, len(parameters)))
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
    assert [(where(module, node), node.name) for module, node in functions() if depth(node) > 4] == []


def calls() -> Iterator[tuple[Module, ast.Call, str]]:
    """Every call, with its dotted name."""
    for module in sources():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Call):
                yield module, node, ast.unparse(node.func)


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
    ("bench/tui.py", "Thread"): "Viewer.close waits for it",
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


def started(tree: ast.Module) -> set[str]:
    """What a module uses that starts something without an owner."""
    found = set(names(tree))
    return (_STARTS | {f"asyncio.{name}" for name in _ASYNCIO}) & found


def test_nothing_starts_a_task_a_thread_or_a_timer_without_an_owner() -> None:
    """Concurrency is anyio's task groups; every other place is listed with its owner, and no listed place is gone."""
    assert {(module.place, name) for module in sources() for name in started(module.tree)} == _OWNED.keys()


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
    assert started(ast.parse(source)) == {name}


def test_no_string_getattr_no_eval_no_pickle() -> None:
    """Attributes are names; outside data is never code."""
    banned = {"getattr", "eval", "exec", "pickle.load", "pickle.loads", "torch.load"}
    assert [where(module, node) for module, node, name in calls() if name in banned] == []


def test_environment_variables_are_read_in_the_configuration_only() -> None:
    """No side channel; the one other place sets a variable, so that the runs of a bench are not in the user's list."""
    readers = {"environ", "environb", "getenv", "getenvb"}
    found = {module.place for module in sources() if readers & set(names(module.tree))}
    assert found == {"engine/config/environment.py", "bench/__main__.py"}


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
    assert [(module.place, word) for module in sources() for word in words if word in module.text] == []
