"""`synth-engine judge`: the language model that decides rubric items, measured (engine.commands.judge_audit)."""

from __future__ import annotations

import click

from engine.commands import judge_audit


@click.group()
def command() -> None:
    """How far a judge agrees with executable checks, and with itself."""


command.add_command(judge_audit.command)
