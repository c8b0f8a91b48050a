"""`synth-engine verify`: recorded episodes executed again, without network."""

from __future__ import annotations

from collections.abc import Iterable

import anyio
import click
from rich.console import Console

from engine.commands.show import EPISODE
from engine.report.console import wide_console
from engine.report.counting import counting
from engine.rundir.layout import find_run
from engine.stream.integrity import RecordsPart, require_complete
from engine.trust.opening import REPLAYED, open_run, trust_option
from engine.verify.compare import Difference
from engine.verify.run import Verified, verify_run

_SHOWN = 20
"""Differences that are shown in full."""
_EXAMPLES = """\b
synth-engine verify                          every episode of the latest run
synth-engine verify demo                     every episode of the run `demo`
synth-engine verify demo g000178.03          one of them, with its transcript hash
synth-engine verify e00040-0012.00           an episode of an evaluation of the latest run
synth-engine verify received/run --trust     a run from elsewhere, with the code that it names
"""


@click.command(epilog=_EXAMPLES)
@click.argument("run", required=False)
@click.argument("episodes", nargs=-1, metavar="[EPISODE]...")
@trust_option
@click.option("--dir", "directory", metavar="DIR", default="runs", show_default=True, help="Where runs live.")
def command(run: str | None, episodes: tuple[str, ...], directory: str, trust: bool) -> None:  # noqa: FBT001 - click passes flags by name
    """Execute the scored episodes of RUN (default: the latest) again, and compare transcripts and rewards.

    Only the policy's tokens and the answers of language models come from the record (trajectories/, eval/ and
    journal.sqlite). Parsing, admission, mapping, effects, reveals and checks are executed by the code that is installed
    now, on the run's own tasks. No connection is opened, nothing is changed. Episodes that were masked depend on time
    and faults: they are counted, not verified.

    The transcript hash is SHA-256 over messages, events and token ids. Exit code 1 if anything comes out differently;
    the first difference of an episode is shown.
    """
    if run is not None and EPISODE.match(run):
        episodes, run = (run, *episodes), None
    found, console = find_run(run, directory), wide_console()
    open_run(found, (), REPLAYED, trust=trust)
    require_complete(found, RecordsPart.TRAINING, RecordsPart.EVALUATIONS, checksums=True)
    with counting(console, "verifying", "groups") as progress:
        result = anyio.run(verify_run, found, episodes, progress)
    _print(console, result)
    raise SystemExit(0 if result.sound else 1)


def _print(console: Console, result: Verified) -> None:
    def say(text: str, style: str | None = None) -> None:
        console.print(text, style=style, markup=False, soft_wrap=True)

    for changed in result.changed:
        say(changed, "red")
    for found in result.differences[:_SHOWN]:
        say(_told(found), "red")
    if len(result.differences) > _SHOWN:
        say(f"and {len(result.differences) - _SHOWN:,} more episodes with differences", "red")
    for episode, digest in result.hashes.items():
        say(f"{episode}: identical, sha256 {digest}")
    if result.exchanges is not None:
        accepted, refused = _counted(result.exchanges.accepted.most_common()), result.exchanges.refused.total()
        say(f"journal: {accepted}, {refused:,} refused replies; every row is sound")
    if result.not_verified:
        say(f"not verified, for time and faults made them: {_counted(result.not_verified.most_common())}")
    differ = f", {len(result.differences):,} different" if result.differences else ""
    noun = "episode" if result.episodes == 1 else "episodes"
    summary = f"{result.episodes:,} {noun} verified: {result.identical:,} identical{differ}"
    say(summary, "green" if result.sound else "red")


def _told(found: Difference) -> str:
    lines = [f"{found.episode}: {found.where}", f"  expected  {found.expected}", f"  found     {found.found}"]
    return "\n".join([*lines, *([f"  ended by  {found.error}"] if found.error else [])])


def _counted(counts: Iterable[tuple[str, int]]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts) or "no exchanges"
