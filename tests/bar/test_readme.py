"""The README: short, its tree is the repository's, and its commands run as written (with short settings)."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from engine.cli import COMMANDS
from tests.parts.children import child
from tests.parts.places import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
SHORT = {
    "run": "--set run.steps=2 --set schedule.groups_per_step=2 --set schedule.group_size=4 --set eval.heldout_tasks=4 "
    "--set eval.every=0",
    "eval": "--tasks 2",
    # Their subject is SGLang, which has tests of its own: `echo` stands for the command that starts it.
    "doctor": "--set policy.sglang=echo",
    "install-sglang": "--help",
}
PLAN = "--set model.path=tiny --set policy.sglang=echo --set policy.device=cpu --set learner.gpus=[]"


def block(pattern: str) -> str:
    """What is inside of the first block that a pattern describes."""
    [inside, *_] = re.findall(pattern, README, flags=re.DOTALL)
    return str(inside)


def commands() -> Iterator[list[str]]:
    """Every `synth-engine` line of the shell blocks that is meant to be typed."""
    for lines in re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL):
        for line in lines.splitlines():
            for part in line.split("#")[0].split("&&"):
                words = shlex.split(part)
                if words[:1] == ["synth-engine"]:
                    yield words[1:]


def run(directory: Path, words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """One command, in a directory of its own runs."""
    short = PLAN if "--plan" in words else SHORT.get(words[0], "")
    argv = [sys.executable, "-m", "engine.cli", *words, *shlex.split(short)]
    return subprocess.run(argv, cwd=directory, capture_output=True, text=True, check=False)


def test_it_is_short_and_names_every_command() -> None:
    """At most 250 lines; no command is missing, none is invented."""
    assert len(README.splitlines()) <= 250
    named = set(re.findall(r"`synth-engine ([\w-]+)", README)) | {words[0] for words in commands()}
    assert named == set(COMMANDS)


def test_its_tree_is_the_repositorys() -> None:
    """Every folder in the annotated tree exists, and every package of the engine is in it."""
    tree = block(r"```\nengine/(.*?)```")
    told = set(re.findall(r"(\w+)/", tree)) | {"engine"}
    packages = {path.name for path in (ROOT / "engine").iterdir() if (path / "__init__.py").exists()}
    assert packages - told == set()
    everything = {path.name for path in ROOT.iterdir()} | {path.name for path in (ROOT / "engine").iterdir()}
    everything |= {path.name for path in (ROOT / "learner").iterdir()} | {"results"}
    assert told - everything == set()


def test_its_links_lead_somewhere() -> None:
    """Relative links exist."""
    for target in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / target).exists(), target


@pytest.mark.slow
def test_its_commands_run(tmp_path: Path) -> None:
    """In the order in which they are written, with the configuration that is shown; `serve` answers and ends."""
    (tmp_path / "mine.toml").write_text(block(r"```toml\n(.*?)```"))
    for words in commands():
        if words[0] == "serve":
            argv = [sys.executable, "-m", "engine.cli", *words, "--port", "0"]
            with child(*argv, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as server:
                assert server.stdout is not None
                assert json.loads(server.stdout.readline())["url"].startswith("http://127.0.0.1:")
                server.terminate()
            continue
        done = run(tmp_path, words)
        assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
