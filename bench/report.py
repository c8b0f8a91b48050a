"""One table and one JSON per bench: what was measured, what was wanted, whether it was met."""

from __future__ import annotations

import operator
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import orjson
from rich.table import Table

from engine.report.console import wide_console

RESULTS = Path(__file__).resolve().parent / "results"
_COMPARE = {">=": operator.ge, "<=": operator.le, "<": operator.lt, "==": operator.eq}


def report(
    name: str,
    question: str,
    rows: Sequence[Mapping[str, object]],
    measured: Mapping[str, float],
    goal: Mapping[str, str],
) -> None:
    """Print one table and write `bench/results/NAME.json`.

    `rows` are the lines of the table (its columns are the keys of the first); `measured` the figures that count;
    `goal` says of some of them what is wanted, as "<= 0.5", "< 2", ">= 100" or "== 0". The JSON is `{"measured": {...},
    "goal": {...}, "met": {...}}` with the question, the rows and the machine beside it. Raises KeyError for a goal
    that was not measured."""
    met = {key: _meets(measured[key], wanted) for key, wanted in goal.items()}
    console = wide_console()
    console.print(_table(name, question, rows))
    for key, wanted in goal.items():
        console.print(f"{'met' if met[key] else 'MISSED':>6}  {key} = {_cell(measured[key])}  (goal {wanted})")
    result = {
        "question": question,
        "measured": measured,
        "goal": goal,
        "met": met,
        "rows": rows,
        "machine": {"cpus": os.cpu_count(), "python": platform.python_version(), "system": platform.platform()},
    }
    RESULTS.mkdir(exist_ok=True)
    option = orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
    (RESULTS / f"{name}.json").write_bytes(orjson.dumps(result, option=option))


def _meets(value: float, wanted: str) -> bool:
    relation, _, bound = wanted.partition(" ")
    return bool(_COMPARE[relation](value, float(bound)))


def _table(name: str, question: str, rows: Sequence[Mapping[str, object]]) -> Table:
    table = Table(title=f"{name}: {question}", title_justify="left", title_style="bold")
    for key in rows[0] if rows else ():
        numeric = isinstance(rows[0][key], int | float)
        table.add_column(key, justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    return table


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
