"""Recorded runs whose rubrics a judge decides in part, and the scripted endpoint behind a command that is tested."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from anyio.from_thread import start_blocking_portal
from click.testing import CliRunner

from engine.cli import cli
from engine.rundir.layout import RunDir
from engine.scripted.endpoint import ScriptedEndpoint
from tests.parts.llm_parts import listening
from tests.parts.played_runs import LLM, packed, recorded
from tests.parts.worlds import task_json

JUDGED = {name: value for name, value in LLM.items() if not name.startswith(("world.", "user."))}
"""Settings of a run whose only language model is its judge."""
TEXTS = {
    "rushed": "Calls rush_order.",
    "ordered": "Calls place_order.",
    "told": "Tells the code.",
    "asked": "Asks for the quantity.",
}
"""What the scripted judge reads of an item: the tools that it names."""


def rubric(*judged: str) -> dict[str, Any]:
    """The shop's rubric in words; those named have no check."""
    made: dict[str, Any] = task_json()["rubric"]
    for items in made.values():
        for item in items:
            item["text"] = TEXTS[item["id"]]
            if item["id"] in judged:
                del item["check"]
    return made


def shops(path: Path, *judged: str) -> Path:
    """A pack of the shop's tasks, with items for a judge."""
    return packed(path, rubric=rubric(*judged))


def judged_run(base: Path) -> RunDir:
    """A run in which a judge decided whether the code was told."""
    return recorded(base, shops(base / "judged.jsonl", "told"), **JUDGED)


@contextmanager
def judging(scripted: ScriptedEndpoint | None = None) -> Iterator[tuple[ScriptedEndpoint, tuple[str, ...]]]:
    """A judge on a port of its own, in a thread (commands have a loop of their own), and the options that name it."""
    endpoint = scripted or ScriptedEndpoint()
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(listening(endpoint.application())) as url,
    ):
        named = (f"endpoints.sim.url={url}", "endpoints.sim.model=scripted", "scorer.judge=sim")
        yield endpoint, tuple(word for override in named for word in ("--set", override))


def invoke(*arguments: object) -> tuple[int, str]:
    """A command's exit code and output; errors are raised."""
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments], catch_exceptions=False)
    return result.exit_code, result.output
