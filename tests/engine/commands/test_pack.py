"""engine.commands.pack: what `pack check` points at is there for somebody who has the program alone."""

import jsonschema
import orjson
import pytest
from click.testing import CliRunner

from engine.cli import cli
from engine.packs.line_schema import header_schema, task_schema
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
