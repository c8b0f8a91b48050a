"""engine.commands.pack: what `pack check` points at is there for somebody who has the program alone."""

import jsonschema
import orjson
import pytest
from click.testing import CliRunner

from engine.cli import cli
from engine.packs.line_schema import header_schema, task_schema
from engine.packs.pack import load_pack
from tests.parts.worlds import task_json

HEADER = {"format": 1, "pack": "shop"}


def invoke(*arguments):
    """The exit code of a command, and what it prints."""
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    return result.exit_code, result.output


def checked(directory, *tasks):
    """What `pack check` says of these tasks."""
    path = directory / "pack.jsonl"
    path.write_bytes(b"".join(orjson.dumps(value) + b"\n" for value in (HEADER, *tasks)))
    return invoke("pack", "check", path)


@pytest.mark.parametrize(("options", "made"), [([], task_schema), (["--header"], header_schema)])
def test_the_schema_is_printed_as_json(options, made):
    """And as nothing else, so that it can be written into a file."""
    code, output = invoke("pack", "schema", *options)
    assert (code, orjson.loads(output)) == (0, made())


def test_help_has_an_example_to_copy():
    """The command line, and the setting of an editor as JSON."""
    code, output = invoke("pack", "schema", "--help")
    (setting,) = (line for line in output.splitlines() if "json.schemas" in line)
    assert code == 0
    assert "synth-engine pack schema > task.schema.json" in output
    assert orjson.loads(f"{{{setting}}}")["json.schemas"][0]["url"] == "./task.schema.json"


@pytest.mark.parametrize(
    ("change", "place", "section"),
    [
        ({"colour": 1}, "task shop-1: colour: ", "docs/packs.md#fields"),
        ({"tools": 7}, "task shop-1: tools: ", "docs/packs.md#fields"),
        (
            {"rubric": {"subgoals": [{"id": "s", "text": "", "check": {"sayd": 1}}]}},
            "task shop-1: rubric.subgoals[0].check: ",
            "docs/packs.md#checks",
        ),
        (
            {"rubric": {"subgoals": [{"id": "s", "text": "", "check": {"called": {"tool": "x"}}}]}},
            "task shop-1: rubric.subgoals[0].check.called.tool: ",
            "docs/packs.md#checks",
        ),
    ],
)
def test_an_error_names_the_command_and_the_section(tmp_path, change, place, section):
    """The page is in the repository; the command is wherever the error is."""
    code, output = checked(tmp_path, task_json(**change))
    (said,) = (line for line in output.splitlines() if place in line)
    assert code == 1
    assert "(`synth-engine pack schema` has the " in said
    assert section in said


def test_a_line_that_the_printed_schema_takes_passes_the_check(tmp_path):
    """With the tools that somebody has who installed the program."""
    task = task_json()
    jsonschema.Draft202012Validator(orjson.loads(invoke("pack", "schema")[1])).validate(task)
    code, output = checked(tmp_path, task)
    assert (code, "sound" in output) == (0, True)


def test_a_flaw_is_listed_and_stops_no_run(tmp_path):
    """In the form of an error, with what is in the pack; exit code 1."""
    code, output = checked(
        tmp_path, task_json(), task_json(id="shop-2", instruction="Order it by Friday, and quickly.")
    )
    assert (code, "sound" in output) == (0, True)
    leaky = task_json(id="shop-2", instruction="Order K4107.")
    leaky["user"] |= {"context": "Has K4107.", "facts": {"quantity": {"value": "K4107", "keywords": ["quantity"]}}}
    code, output = checked(tmp_path, task_json(), leaky)
    first, second, *_ = output.splitlines()
    assert code == 1
    assert first.startswith(f"{tmp_path / 'pack.jsonl'}:3: task shop-2: instruction: says 'K4107', the user's fact")
    assert second == f"{tmp_path / 'pack.jsonl'}: 1 flaw; a run takes it as it is"
    assert "2 tasks (2 train; 2 tool_use)" in output
    assert load_pack(tmp_path / "pack.jsonl").tasks[1].instruction == "Order K4107."


def test_problems_and_flaws_are_counted_apart(tmp_path):
    """A task that has a problem is not looked at for flaws, another one is."""
    idle = {"subgoals": [{"id": "s", "text": "", "check": {"answered": {"matches": ""}}}]}
    code, output = checked(tmp_path, task_json(rubric=idle, rules=7), task_json(id="shop-2", rubric=idle))
    assert (code, output.splitlines()[-1]) == (1, "1 problem, 1 flaw")
    assert [line.split(": ")[1:3] for line in output.splitlines()[:-1]] == [
        ["task shop-1", "rules"],
        ["task shop-2", "rubric.subgoals[0].check"],
    ]


def test_what_a_judge_decides_is_told(tmp_path):
    """It is no error."""
    code, output = checked(tmp_path, task_json(rubric={"subgoals": [{"id": "s", "text": "All is well."}]}))
    assert code == 0
    assert (
        "1 rubric item has no check, of 1 task (the first: s of task shop-1): the judge of scorer.judge decides"
        in output
    )
    assert "no check" not in checked(tmp_path, task_json())[1]


def test_a_terminal_obeys_no_text_of_a_pack(tmp_path):
    """Ids, names and values are shown as escapes where they are none to be seen."""
    red = "\x1b[31m"
    leaky = task_json(id=f"shop{red}", instruction=f"Order K{red}41.")
    leaky["user"]["facts"] = {"quantity": {"value": f"K{red}41", "keywords": ["quantity"]}}
    for task in (leaky, task_json(id=f"shop{red}", rules=7)):
        code, output = checked(tmp_path, task)
        assert (code, "\x1b" in output, r"task shop\x1b[31m: " in output) == (1, False, True)
