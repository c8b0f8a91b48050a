"""engine.preflight.judged: items that nobody would decide are refused before anything starts, in one sentence."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from engine.cli import cli
from engine.config.load import load
from engine.errors import ConfigError
from engine.packs.pack import load_pack
from engine.preflight.judged import judged_items, require_decided
from tests.parts.judged_runs import rubric, shops
from tests.parts.worlds import shop

SENTENCE = (
    "tasks.pack: 8 rubric items have no check, of 4 tasks (the first: ordered of task shop-0), and scorer.judge is "
    "empty: set scorer.judge=NAME, a language model of [endpoints.NAME] that decides them, give them "
    "checks, or import the tasks again with `synth-engine pack import ... --no-judge`, which leaves such items out"
)


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    """Four tasks of the shop, of which a judge decides two items each."""
    return shops(tmp_path / "judged.jsonl", "ordered", "told")


def invoke(pack: Path, *command: str) -> tuple[int, str, BaseException | None]:
    """Exit code, output and error of a command about a dry run in the pack's directory."""
    sets = ("--set", f"tasks.pack={pack}", "--set", f"run.dir={pack.parent / 'runs'}")
    result = CliRunner().invoke(cli, [*command, "--config", "dry", *sets])
    return result.exit_code, result.output, result.exception


@pytest.mark.parametrize("command", [("run",), ("run", "--plan")])
def test_a_run_is_refused(pack: Path, command: tuple[str, ...]):
    """And planning one: nothing is started or made."""
    _, output, error = invoke(pack, *command)
    assert (output, str(error), type(error)) == ("", SENTENCE, ConfigError)
    assert list(pack.parent.iterdir()) == [pack]


def test_an_evaluation_is_refused(pack: Path):
    """By the tasks that it would play: one is held out here."""
    _, output, error = invoke(pack, "eval")
    assert (output, type(error)) == ("", ConfigError)
    counted = "2 rubric items have no check, of 1 task (the first: ordered of task shop-3)"
    assert str(error) == SENTENCE.replace(SENTENCE.partition(": ")[2].partition(", and")[0], counted)


def test_the_doctor_says_so(pack: Path):
    """As what would stop a run; of tasks that code decides it says how many there are."""
    code, output, _ = invoke(pack, "doctor")
    assert code == 1
    assert SENTENCE in output
    decided = shops(pack.parent / "decided.jsonl")
    code, output, _ = invoke(decided, "doctor")
    assert code == 0
    assert f"tasks         4 in {decided}" in output


def test_the_doctor_reads_the_pack(tmp_path: Path):
    """One that no run takes would stop a run."""
    (tmp_path / "broken.jsonl").write_bytes(b"{}")
    code, output, _ = invoke(tmp_path / "broken.jsonl", "doctor")
    assert code == 1
    assert "header.format: Field required" in output


@pytest.mark.parametrize(
    "settings",
    [
        ["scorer.judge=big", "endpoints.big.url=http://127.0.0.1:1", "endpoints.big.model=m"],
        ["scorer.kind=tests.parts.nothing:Scorer"],
    ],
)
def test_somebody_decides(pack: Path, settings: list[str]):
    """A judge, or a scorer of one's own."""
    require_decided(load("dry", settings).config, load_pack(pack).tasks)


@pytest.mark.parametrize(
    ("judged", "said"),
    [
        ((), ""),
        (("told",), "1 rubric item has no check, of 1 task (the first: told of task shop-1)"),
        (("asked", "rushed"), "2 rubric items have no check, of 1 task (the first: rushed of task shop-1)"),
    ],
)
def test_items_are_counted(judged: tuple[str, ...], said: str):
    """In all parts of a rubric."""
    assert judged_items([shop(id="shop-0"), shop(rubric=rubric(*judged))]) == said
