"""`synth-engine`: one command per module of engine.commands, imported only when it is called.

`--help` and shell completion stay instant: this module imports click and nothing else of weight, and the list of
commands with their one-line help is written here.
"""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass

import click


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandEntry:
    """A command as the overview shows it."""

    section: str
    help: str


COMMANDS = {
    "run": CommandEntry(section="Train", help="Train a policy in mock worlds; --resume goes on where one stopped."),
    "eval": CommandEntry(section="Train", help="Measure a policy on the held-out tasks of a pack."),
    "serve": CommandEntry(section="Train", help="Serve a model and adapters on the CPU, over SGLang's HTTP API."),
    "show": CommandEntry(section="Look", help="Show a run, a task, or an episode as a readable transcript."),
    "attach": CommandEntry(section="Look", help="Look at a run in the dashboard, live or ended; take a picture of it."),
    "replay": CommandEntry(section="Look", help="Play a recorded run back in the dashboard."),
    "audit": CommandEntry(section="Look", help="Recompute every invariant of a run from what it recorded."),
    "verify": CommandEntry(section="Look", help="Execute recorded episodes again, without network, and compare."),
    "fork": CommandEntry(section="Look", help="Go on live from a turn of a recorded episode."),
    "world": CommandEntry(section="Look", help="How tool calls were answered: audit, compare, export, veto a merge."),
    "judge": CommandEntry(section="Look", help="How far a judge agrees with executable checks, and with itself."),
    "runs": CommandEntry(section="Look", help="List runs, stop or remove them, collect what they no longer need."),
    "metrics": CommandEntry(
        section="Take away", help="Metrics in TensorBoard, W&B, trackio and Prometheus; the table of their names."
    ),
    "export": CommandEntry(
        section="Take away", help="Episodes as chat JSONL or Parquet; the trained model as one directory."
    ),
    "rescore": CommandEntry(section="Take away", help="Score recorded episodes again under changed rubrics."),
    "synthesize": CommandEntry(section="Prepare", help="Make tasks of drafts, each proved by execution."),
    "pack": CommandEntry(section="Prepare", help="Check a task pack, import one, look at files of seeds."),
    "config": CommandEntry(section="Prepare", help="Show the configuration: every key, its meaning and its source."),
    "doctor": CommandEntry(section="Prepare", help="Say what this machine lacks for a configuration, and the remedy."),
    "install-sglang": CommandEntry(section="Prepare", help="Make the virtual environment of the SGLang policy server."),
}


def module_of(name: str) -> str:
    """The module of a command."""
    return f"engine.commands.{name.replace('-', '_')}"


class Lazy(click.Group):
    """Imports a command's module when it is called, and shows the overview by section."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Names, in the order of the overview."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        """The command, imported now."""
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(module_of(cmd_name)).command
        if not isinstance(command, click.Command):
            raise TypeError(f"engine.commands.{cmd_name}.command is no click command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's signature
        """The overview, without importing anything."""
        for section in dict.fromkeys(entry.section for entry in COMMANDS.values()):
            with formatter.section(section):
                formatter.write_dl([(name, entry.help) for name, entry in COMMANDS.items() if entry.section == section])


_HELP = """Train small agentic language models in mock worlds.

\b
First run, on any laptop:   synth-engine run --config tiny
What came out:              synth-engine show
"""


@click.group(cls=Lazy, help=_HELP, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="synth-engine")
def cli() -> None:
    """The command line."""


def main() -> None:
    """Entry point: an error of this project, or a file that cannot be used, is one clear sentence and an exit code."""
    if sys.platform == "win32":
        sys.exit("synth-engine needs Linux or macOS; on Windows use WSL2 (https://learn.microsoft.com/windows/wsl)")
    from engine.errors import ConfigError, SynthError, leaf_errors  # noqa: PLC0415 - the module itself stays click alone

    problems: list[SynthError | OSError] = []
    try:
        cli()
    except* (SynthError, OSError) as group:
        problems.extend(leaf_errors(group))
    for sentence in dict.fromkeys(map(_sentence, problems)):
        click.secho(f"error: {sentence}", fg="red", err=True)
    sys.exit(2 if any(isinstance(problem, ConfigError) for problem in problems) else 1)


def _sentence(error: Exception) -> str:
    """What the user reads of an error; of the system's, the path and the reason."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


if __name__ == "__main__":
    main()
