"""`pack check` plays tasks, `--admit` puts them to every test, `pack card` shows one."""

from pathlib import Path
from typing import Any

import orjson
import pytest
from click.testing import CliRunner

from engine.cli import cli
from engine.errors import ConfigError
from engine.synthesis.admission.admit import TESTS
from tests.parts.admission_tasks import ANSWER, breakfast, lookup

EVIL = "\x1b[2J[red]x[/]"


def invoke(*arguments: object) -> tuple[int, str]:
    """Exit code and standard output of `synth-engine pack ...`."""
    result = CliRunner().invoke(cli, ["pack", *map(str, arguments)], catch_exceptions=False)
    return result.exit_code, result.stdout


def packed(directory: Path, *tasks: dict[str, Any]) -> Path:
    """A pack of these tasks."""
    path = directory / "pack.jsonl"
    path.write_bytes(b"".join(orjson.dumps(value) + b"\n" for value in ({"format": 1, "pack": "p"}, *tasks)))
    return path


def flawed() -> dict[str, Any]:
    """A breakfast whose instruction gives a fact away, with text that wants to be more than text."""
    value = breakfast()
    value["id"] = f"flawed {EVIL}"
    value["instruction"] = f"For twelve of us. {EVIL}"
    value["meta"]["gold"][5] = ANSWER.replace("Your", EVIL)
    value["world"]["state"]["hours"]["note"] = EVIL
    return value


def test_admit_counts_tests_and_tells_failures(tmp_path: Path):
    """A table of tests, a table of codes, the first failure with its evidence; exit code 1."""
    code, output = invoke("check", "--admit", packed(tmp_path, breakfast(), lookup(), flawed()), "--search", 20)
    assert code == 1
    assert "│ leak      │      1 │      1 │              1 │" in output
    assert "leak_shown" in output
    assert "instruction says guests, which is 12" in output
    assert "2 of 3 tasks admitted" in output
    assert "\x1b" not in output
    assert "[red]x[/]" in output


def test_admit_ends_well_for_a_sound_pack(tmp_path: Path):
    """Exit code 0."""
    code, output = invoke("check", "--admit", packed(tmp_path, breakfast(), lookup()), "--search", 20)
    assert (code, "2 of 2 tasks admitted" in output) == (0, True)


def test_admit_as_json_is_one_object_a_task(tmp_path: Path):
    """With results, codes, evidence and scripts; nothing else goes to standard output."""
    code, output = invoke("check", "--admit", "--json", packed(tmp_path, breakfast(), flawed()), "--search", 20)
    sound, bad = map(orjson.loads, output.splitlines())
    assert code == 1
    assert (sound["admitted"], bad["admitted"]) == (True, False)
    assert list(sound["tests"]) == list(TESTS)
    (flaw,) = bad["tests"]["leak"]["flaws"]
    assert (flaw["code"], flaw["script"]) == ("leak_shown", [])


@pytest.mark.parametrize("alone", [("--json",), ("--search", "5")])
def test_options_of_admit_need_it(tmp_path: Path, alone: tuple[str, ...]):
    """They would have no effect."""
    result = CliRunner().invoke(cli, ["pack", "check", str(packed(tmp_path, breakfast())), *alone])
    assert result.exit_code == 2
    assert "--admit" in result.output


def test_check_plays_gold_and_nothing(tmp_path: Path):
    """A gold script that earns less than 1, one that is no script, and a rubric that doing nothing meets."""
    low, none, free = (breakfast(), lookup(), lookup())
    low["meta"]["gold"][3] = low["meta"]["gold"][2]
    none |= {"id": "none", "meta": {"gold": "a text"}}
    free |= {"id": "free", "rubric": {"subgoals": [{"id": "any", "text": "", "check": {"answered": {"matches": ""}}}]}}
    code, output = invoke("check", packed(tmp_path, low, none, free))
    assert code == 1
    assert "task breakfast-1: meta.gold: earns " in output
    assert "for booked, told" not in output
    assert "booked" in output
    assert "task none: meta.gold: is no list of completions" in output
    assert "task free: rubric: doing nothing earns 1" in output
    assert "flaws; a run takes it as it is" in output


def test_check_leaves_to_a_judge_what_is_a_judges(tmp_path: Path):
    """A task with an item that no check decides is not played."""
    value = lookup()
    del value["rubric"]["subgoals"][0]["check"]
    value["meta"]["gold"] = []
    code, output = invoke("check", packed(tmp_path, value))
    assert (code, "sound" in output) == (0, True)


def test_a_card_shows_what_a_person_judges_by(tmp_path: Path):
    """Facts, tools, gold with the world's answers and the verdicts, every test, and the text of the pack as text."""
    value = flawed()
    code, output = invoke("card", packed(tmp_path, lookup(), value), value["id"], "--search", 20)
    assert code == 1
    for shown in (
        "guests = 12 (asked by how many, people)",
        "list_slots: list_slots.",
        "agent calls   list_slots(day='2027-05-14')",
        '{"table":"K-7","row":"R4"}',
        "met ask_guests",
        "reward        1.00",
        "leak_shown: instruction says guests, which is 12",
        "[red]x[/]",
    ):
        assert shown in output
    assert "\x1b" not in output


def test_a_card_of_a_task_without_a_script_says_what_is_missing(tmp_path: Path):
    """Everything else is shown."""
    value = lookup()
    del value["meta"]
    code, output = invoke("card", packed(tmp_path, value), "lookup-1")
    assert code == 1
    assert "no_script" in output
    assert "cannot be admitted" in output
    assert "When do you open" in output


def test_a_card_that_shows_a_flaw_shows_its_script(tmp_path: Path):
    """Line by line, so that a person can play it."""
    value = breakfast()
    value["world"]["state"]["hours"]["note"] = "a table for 12 is laid"
    code, output = invoke("card", packed(tmp_path, value), "breakfast-1", "--search", 0)
    assert code == 1
    assert "leak: leak_read: what the agent says" in output
    assert '  <tool_call>{"name":"opening_hours","arguments":{}}</tool_call>' in output


def test_a_task_that_is_not_there_is_named(tmp_path: Path):
    """With what lists them."""
    with pytest.raises(ConfigError, match="no task 'x'"):
        invoke("card", packed(tmp_path, lookup()), "x")
