"""report.html: one page that contains everything it shows; and report.png beside it."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping
from typing import Any

from engine.report import charts, simulators
from engine.report.summary import Summary
from engine.report.transcript import transcript
from engine.rundir.layout import RunDir, write_atomic
from engine.types import Episode

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1180px; margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.5em } h2 { font-size: 1.15em; margin-top: 2em } svg { width: 100%; height: auto }
table { border-collapse: collapse } td, th { padding: .25em .9em .25em 0; text-align: left; vertical-align: top }
th { border-bottom: 1px solid #bbb } td.n { text-align: right; font-variant-numeric: tabular-nums }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 2em } .who { color: #777; white-space: nowrap }
.ok { color: #2a7f3f } .broken { color: #b00020; font-weight: bold } code { background: #f3f3f3; padding: 0 .3em }
"""


def write_report(run: RunDir, summary: Summary) -> None:
    """Write report.png and report.html."""
    figure = charts.draw_figure(summary)
    charts.png(figure, run.path / "report.png")
    write_atomic(run.path / "report.html", page(summary, charts.svg(figure)).encode())


def page(summary: Summary, chart: str) -> str:
    """The whole page."""
    values = summary.values
    title = f"synth-engine: {html.escape(values['run_id'])}"
    parts = [
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{title}</title>",
        f"<style>{_STYLE}</style></head><body><h1>{title}</h1>",
        f"<p>{html.escape(values['bottleneck'])}</p>",
        _heldout(values),
        f"<h2>Curves</h2>{chart}",
        _numbers(values),
        *(_simulators(values["simulators"]) if values["simulators"] else ()),
        _audit(summary),
        *(_example(*summary.example) if summary.example is not None else ()),
        "</body></html>",
    ]
    return "\n".join(parts)


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _heldout(values: Mapping[str, Any]) -> str:
    rows = []
    for name in ("heldout_before", "heldout_after", "heldout_gain"):
        row = values[name]
        if row is not None:
            parts = [f"{row[part]:.3f}" if part in row else "" for part in "FNI"]
            count = str(row.get("episodes", row.get("tasks")))
            rows.append([name, f"{row['mean']:.3f}", f"{row['low']:.3f} to {row['high']:.3f}", *parts, count])
    return "<h2>Held-out reward</h2>" + _table(["", "reward", "95 % interval", "F", "N", "I", "episodes"], rows)


def _numbers(values: Mapping[str, Any]) -> str:
    shown = {key: value for key, value in values.items() if isinstance(value, int | float | str)}
    nested = {key: values[key] for key in ("staleness", "groups_dropped", "outcomes", "stop_reasons", "tool_faults")}
    rows = [[html.escape(key), html.escape(_shown(value))] for key, value in {**shown, **nested}.items()]
    return "<h2>Numbers</h2>" + _table(["key of summary.json", "value"], rows)


def _simulators(values: Mapping[str, Any]) -> Iterable[str]:
    yield f"<h2>Users, tools and judges by language model, over {values['episodes']:,} episodes</h2>"
    yield _table(simulators.HEADER, ([html.escape(cell) for cell in line] for line in simulators.table(values)))
    yield from (f"<p>{html.escape(sentence)}</p>" for sentence in simulators.simulator_sentences(values))


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_shown(inner)}" for name, inner in value.items()) or "none"
    return f"{value:,.3f}" if isinstance(value, float) else str(value)


def _audit(summary: Summary) -> str:
    rows = [
        [
            f"<span class='{'ok' if finding.ok else 'broken'}'>{'ok' if finding.ok else 'BROKEN'}</span>",
            html.escape(finding.promise),
            html.escape(finding.checked),
            str(finding.count),
        ]
        for finding in summary.findings
    ]
    return "<h2>Audit</h2>" + _table(["", "promise", "checked", "violations"], rows)


def _example(early: Episode, late: Episode) -> Iterable[str]:
    yield f"<h2>One held-out task, before and after ({html.escape(early.task_id)})</h2><div class='pair'>"
    for episode in (early, late):
        rows = (
            [f"<span class='who'>{html.escape(line.who)}</span>", html.escape(line.text)]
            for line in transcript(episode)
        )
        yield f"<div>{_table([f'adapter v{episode.version}', ''], rows)}</div>"
    yield "</div>"
