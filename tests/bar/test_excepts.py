"""Broad handlers: whatever goes wrong is classified in few places, and each of them is listed here with its reason."""

import ast
from collections.abc import Iterator

import pytest

from tests.bar.house import sources

_EVERYTHING = frozenset({"Exception", "BaseException", "ExceptionGroup", "BaseExceptionGroup"})
"""Classes that an error of any kind is one of, or comes out of a task group in."""
_ALLOWED = {
    ("engine/config/plugins.py", "foreign.__exit__"): "a plug-in may raise anything: it is told as the plug-in's fault",
    ("engine/errors.py", "boundary.leave"): "the one place that makes errors of the outside one kind of ours",
    ("engine/errors.py", "leaf_errors"): "opens groups to list what is in them; it handles nothing",
    ("engine/errors.py", "owned_tasks.__aexit__"): "takes the group off what its block raised; the error goes on",
}
"""File and function of every broad handler, and why it has to be one."""


def broad_names(trees: list[ast.Module]) -> frozenset[str]:
    """The classes above, and every name that is given one of them, alone or in a tuple, in any module."""
    aliases = [
        (target.id, node.value)
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    ]
    renamed = [
        (alias.asname, ast.Name(alias.name))
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname
    ]
    known, before = _EVERYTHING, frozenset[str]()
    while known != before:
        before = known
        known |= {name for name, value in (*aliases, *renamed) if is_broad(value, known)}
    return known


def is_broad(kinds: ast.expr, known: frozenset[str]) -> bool:
    """Whether an expression for a class of errors, or for several, has a broad one in it."""
    match kinds:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name in known
        case ast.Tuple(elts=parts):
            return any(is_broad(part.value if isinstance(part, ast.Starred) else part, known) for part in parts)
        case ast.BinOp(left=left, op=ast.BitOr() | ast.Add(), right=right):
            return is_broad(left, known) or is_broad(right, known)
    return False


def handles_all(node: ast.AST, known: frozenset[str]) -> bool:
    """Whether a node takes whatever is raised: an except, a suppress, or a test for the class of a caught error."""
    match node:
        case ast.ExceptHandler(type=kinds):
            return kinds is None or is_broad(kinds, known)
        case ast.Call(func=ast.Name(id="suppress") | ast.Attribute(attr="suppress"), args=kinds):
            return any(is_broad(part.value if isinstance(part, ast.Starred) else part, known) for part in kinds)
        case ast.Call(func=ast.Name(id="isinstance"), args=[_, kinds]):
            return is_broad(kinds, known)
    return False


def handlers(node: ast.AST, known: frozenset[str], within: str = "") -> Iterator[str]:
    """The functions, dotted, that handle all, once for each place in them."""
    for child in ast.iter_child_nodes(node):
        inner = within
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            inner = f"{within}.{child.name}".lstrip(".")
        if handles_all(child, known):
            yield inner
        yield from handlers(child, known, inner)


def test_every_broad_handler_is_listed() -> None:
    """Everything else names what it expects; no listed place is gone."""
    known = broad_names([module.tree for module in sources()])
    found = [(module.place, within) for module in sources() for within in handlers(module.tree, known)]
    assert sorted(found) == sorted(_ALLOWED)


@pytest.mark.parametrize(
    "source",
    [
        "try: f()\nexcept: pass",
        "try: f()\nexcept Exception as error: pass",
        "try: f()\nexcept builtins.BaseException: pass",
        "try: f()\nexcept (OSError, Exception): pass",
        "try: f()\nexcept (OSError, (ValueError, Exception)): pass",
        "try: f()\nexcept* Exception: pass",
        "try: f()\nexcept BaseExceptionGroup: pass",
        "FAULTS = (OSError, Exception)\ntry: f()\nexcept FAULTS: pass",
        "FAULTS = (Exception,)\ntry: f()\nexcept (*FAULTS, OSError): pass",
        "Any = Exception\nAll = Any\ntry: f()\nexcept All: pass",
        "from builtins import Exception as Fault\ntry: f()\nexcept Fault: pass",
        "with suppress(Exception): f()",
        "with contextlib.suppress(OSError, BaseException): f()",
        "def __exit__(self, kind, error, tb): return isinstance(error, Exception)",
        "isinstance(error, OSError | Exception)",
    ],
)
def test_broad_handlers_are_seen(source: str) -> None:
    """Bare, by name, in tuples, under another name, in groups, without an except."""
    tree = ast.parse(source)
    assert len(list(handlers(tree, broad_names([tree])))) == 1


@pytest.mark.parametrize(
    "source",
    [
        "try: f()\nexcept OSError: pass",
        "try: f()\nexcept (OSError, http.HTTPException): pass",
        "with suppress(OSError): f()",
        "def f(error: Exception) -> type[BaseException]: return type(error)",
    ],
)
def test_narrow_handlers_are_not(source: str) -> None:
    """What names its errors, and what only mentions the broad classes."""
    tree = ast.parse(source)
    assert list(handlers(tree, broad_names([tree]))) == []
