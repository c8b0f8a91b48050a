"""The rules of an import, one by one, and what is refused."""

import copy
from pathlib import Path

import orjson
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from engine.cli import cli
from engine.commands import pack_import
from engine.errors import ConfigError
from engine.importing.agenticqwen.build import reads
from engine.importing.agenticqwen.calls import ExpectedCall, counting_schema, responses, spoiling
from engine.importing.agenticqwen.format import AGENTICQWEN
from engine.importing.agenticqwen.literal import argument_leaves, is_identifier, names_one_thing, occurs, words
from engine.importing.agenticqwen.prohibitions import Stance, stance
from engine.importing.format import ImportedTask, ImportFormat, ImportOptions
from engine.importing.formats import FORMATS
from engine.importing.load import ImportRefusedError, import_file, import_tasks
from engine.importing.report import Note, report
from engine.packs.pack import load_pack
from engine.schema.validate import compiled_schema
from engine.task import Rubric, RubricItem, Task, Tool
from tests.parts.places import TESTS

OURS = TESTS / "data/agenticqwen_ours.json"
TASKS = orjson.loads(OURS.read_bytes())


# --- literally ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text", "said"),
    [
        ("BX-310", "Box BX-310, please.", True),
        ("BX-310", "Box BX-3101", False),
        ("moving", "I am Moving house.", True),
        ("moving", "removing", False),
        ("a", "a word", False),
        ("", "anything", False),
        ("x" * 81, "x" * 81, False),
        (30, "30 tickets", True),
        (30, "at 15:30", False),
        (30, "130", False),
        (28, "latency 28ms", True),
        (777, "event E-777", False),
        (-65, "signal -65 dBm", True),
        (6000.0, "exactly $6,000", True),
        (312.5, "312.50 in all", True),
        (2025, "2025-06-15", False),
        (True, "true", False),
        (None, "null", False),
        (["a1", "b2"], "b2 and a1", True),
        (["a1", "b2"], "a1", False),
        ([], "anything", False),
    ],
)
def test_a_value_is_said_whole_or_not_at_all(value, text, said):
    """Apart from case, and from how a number is grouped."""
    assert occurs(value, text) is said


@given(st.text(min_size=2, max_size=80))
def test_any_text_is_said_where_it_stands_alone(value):
    """Whatever it consists of: no character means something to the search."""
    assert occurs(value, f"( {value} )")


def test_what_looks_like_an_id():
    """Spelled in one way, and naming one thing."""
    assert [is_identifier(value) for value in ("BX-310", "team_lead", "2026-03-14", "moving", "two words 2", 7)] == [
        True,
        True,
        True,
        False,
        False,
        False,
    ]
    assert [names_one_thing(value) for value in ("BX-310", "team_lead", "2026-03-14", "15:00")] == [
        True,
        False,
        False,
        False,
    ]


def test_names_and_leaves():
    """Nested arguments by their innermost names; lists of scalars whole."""
    assert words("newSchoolID_2") == ["new", "school", "id", "2"]
    arguments = {"order": {"grower_id": "G1", "lines": [{"sku": "a"}, {"sku": "b"}]}, "days": [1, 2]}
    assert list(argument_leaves(arguments)) == [("grower_id", "G1"), ("sku", "a"), ("sku", "b"), ("days", [1, 2])]


# --- prose ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rubric", "said"),
    [
        ("The assistant must not call pay or ship.", Stance.FORBIDDEN),
        ("No call to `pay` should be made.", Stance.FORBIDDEN),
        ("2) No pay tool should be called.", Stance.FORBIDDEN),
        ("It is right to be NOT calling pay.", Stance.FORBIDDEN),
        ("It should look but never pay.", Stance.FORBIDDEN),
        ("The assistant must not hesitate but call pay.", Stance.SILENT),
        ("It must not refuse after pay succeeded.", Stance.SILENT),
        ("It must not call pay before the user agrees.", Stance.DEPENDS),
        ("It must ask before calling pay.", Stance.DEPENDS),
        ("Violation: pay is called without consent. The assistant must not call pay.", Stance.FORBIDDEN),
        ("The assistant may call pay.", Stance.PERMITTED),
        ("The assistant is allowed to pay.", Stance.PERMITTED),
        ("The bill must not be changed; calling pay is right.", Stance.SILENT),
        ("It must not call prepay or pay_later.", Stance.SILENT),
        ("If pay is called, it is a failure.", Stance.SILENT),
        ("", Stance.SILENT),
    ],
)
def test_what_prose_says_of_a_tool(rubric, said):
    """A prohibition reaches the tools that it names, a condition leaves the decision to a judge."""
    assert stance("pay", rubric) is said


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("get_x", True),
        ("checkStock", True),
        ("lookup", True),
        ("getaway_book", False),
        ("run_x", False),
        ("_get", False),
    ],
)
def test_a_tool_reads_by_the_verb_of_its_name(name, read):
    """And any other writes."""
    assert reads(name) is read


# --- calls ----------------------------------------------------------------------------------------------------------


def made(name="set_state", answer=None, *, ok=True, required=("item",), writes=True, **arguments):
    """A call of a tool that takes anything."""
    parameters = {"type": "object", "properties": {}, "required": list(required)}
    tool = Tool(name=name, description="", parameters=parameters, effect={"write": True} if writes else None)
    return ExpectedCall(tool=tool, arguments=arguments, answer=answer, ok=ok)


def fits(schema, arguments):
    """Whether arguments count under a schema."""
    return compiled_schema(schema)(arguments) is None


def known(value):
    """All but what is made up."""
    return value != "made up"


def test_what_counts_as_an_expected_call():
    """Known values in their spelling or their case, lists in any order; wording and unknown values are free."""
    call = made(
        item="BX-1", reason="Too old", note="made up", urgent=True, tags=["x1", "x2"], of={"n": 2, "t": "made up"}
    )
    schema = counting_schema(call, known)
    good = {"item": "BX-1", "reason": "too OLD", "note": "?", "urgent": True, "tags": ["x2", "x1"], "of": {"n": 2}}
    assert fits(schema, good)
    for name, wrong in {
        "item": "bx-1",
        "reason": "too olds",
        "urgent": False,
        "tags": ["x1", "x3"],
        "of": {"n": 3},
    }.items():
        assert not fits(schema, good | {name: wrong}), name
    assert not fits(schema, {name: value for name, value in good.items() if name != "reason"})


def test_an_optional_argument_of_a_read_is_free():
    """Unless it is an identifier."""
    schema = counting_schema(made("get_x", writes=False, item="BX-1", rows=10, sort="ascending", region="R-2"), known)
    assert schema["required"] == ["item", "region"]


def test_a_forbidden_call_is_told_by_what_it_names():
    """Whatever else it says; by all its values where a wanted call names the same; not at all where they are one."""
    bad = made(item="BX-1", reason="old", state="gone")
    assert spoiling(bad, known, [made("other", item="BX-1")])["required"] == ["item"]
    assert spoiling(bad, known, [made(item="BX-1", reason="old", state="kept")])["required"] == [
        "item",
        "reason",
        "state",
    ]
    assert spoiling(bad, known, [made(item="BX-1", reason="old", state="gone", more=1)]) is None
    assert spoiling(made(item="made up"), known, []) == {}


def test_an_answer_is_fixed_once_and_again_only_after_a_write():
    """The first path's answer stands where no write tells the states apart."""
    look, write = made("get_x", {"n": 1}, writes=False, item="a"), made(item="a")
    again = made("get_x", {"n": 2}, writes=False, item="a")
    seeded, contradictions = responses([[look, write, again]])
    assert [(answer.tool, answer.answer, len(answer.after)) for answer in seeded] == [
        ("get_x", {"n": 1}, 0),
        ("set_state", None, 0),
        ("get_x", {"n": 2}, 1),
    ]
    assert contradictions == 0
    seeded, contradictions = responses([[look], [again]])
    assert [answer.answer for answer in seeded] == [{"n": 1}]
    assert contradictions == 1


def test_a_report_adds_up_by_field():
    """Kept first; nothing for what did not happen; an unknown field is a mistake."""
    notes = {
        "t1": [Note("b", "x"), Note("a", "gone", kept=False)],
        "t2": [Note("b", "x", count=2), Note("b", "y", count=0)],
    }
    made = report(notes, ("a", "b"))
    assert [(line.field, line.became, line.count, line.tasks) for line in made.lines] == [
        ("a", "gone", 1, ("t1",)),
        ("b", "x", 3, ("t1", "t2")),
    ]
    with pytest.raises(ValueError, match="not in tuple"):
        report({"t": [Note("c", "x")]}, ("a",))


# --- refused --------------------------------------------------------------------------------------------------------


def broken(change):
    """Our tasks with the first one changed in place."""
    tasks = copy.deepcopy(TASKS)
    change(tasks[0])
    return tasks


def system(task, old, new):
    """Replace a part of the system message."""
    content = task["prompt"][0]["content"]
    assert old in content
    task["prompt"][0]["content"] = content.replace(old, new)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda task: task.pop("rubrics"), "rubrics: Field required"),
        (lambda task: task.update(more=1), "more: Extra inputs"),
        (lambda task: task.update(task_background=3), "task_background: Input should be a valid string"),
        (lambda task: task["tool_return_expected"].pop("hack_path"), "tool_return_expected.hack_path: Field required"),
        (lambda task: task["tool_return_expected"]["normal_path"][0].update(input=[]), "normal_path[0].input"),
        (lambda task: task["prompt"].pop(), "prompt: has 0 user messages"),
        (lambda task: system(task, "<policy>", ""), "prompt: the system message has no <policy>"),
        (lambda task: system(task, "</tools>", ""), "no <tools>, </tools>"),
        (lambda task: system(task, '<tools>\n{"type"', '<tools>\n{type"'), "prompt.tools line 1: not JSON"),
        (
            lambda task: system(task, '"function": {"name": "lend_item"', '"function": {"nom": "x"'),
            "line 2: has no func",
        ),
        (
            lambda task: system(task, '"name": "lend_item"', '"strict": 1, "name": "lend_item"'),
            "unknown members: strict",
        ),
        (lambda task: system(task, '"lend_item"', '"lend item"'), "tools[1].name: 'lend item' is no function name"),
        (lambda task: system(task, '"lend_item"', '"get_member"'), "'get_member' occurs twice"),
        (lambda task: system(task, '"type": "integer"', '"type": "whole"'), "tools[1].parameters"),
        (lambda task: task["prompt"][1].update(content="\nNote: think."), "instruction: is empty"),
        (lambda task: task.update(id=" "), "id: is empty"),
        (lambda task: task.update(id=TASKS[1]["id"]), "id: already used"),
        (
            lambda task: task.update(rubrics="", tool_return_expected={"normal_path": [], "hack_path": []}),
            "doing nothing",
        ),
    ],
)
def test_a_broken_task_is_refused_by_task_field_and_reason(change, said):
    """And with it the file."""
    with pytest.raises(ImportRefusedError) as refused:
        import_tasks(AGENTICQWEN, orjson.dumps(broken(change)), ImportOptions(), Path("tasks.json"))
    (problem,) = {str(found) for found in refused.value.problems}
    assert problem.startswith("tasks.json: task ")
    assert said in problem
    assert problem.endswith(")")  # the remedy


def test_every_broken_task_is_listed():
    """Not the first one alone, and one without an id by its place."""
    tasks = copy.deepcopy(TASKS)
    del tasks[0]["id"], tasks[2]["rubrics"]
    tasks.append("no task")
    with pytest.raises(ConfigError) as refused:
        import_tasks(AGENTICQWEN, orjson.dumps(tasks), ImportOptions())
    lines = str(refused.value).splitlines()
    assert len(lines) == 3
    assert [line.split(": ")[1] for line in lines] == ["task [0]", f"task {TASKS[2]['id']}", "task [6]"]


def test_a_task_that_nests_too_deeply_is_refused():
    """Before anything walks it."""
    deep = orjson.loads("[" * 200 + "]" * 200)
    tasks = broken(lambda task: task["tool_return_expected"]["normal_path"][0].update(expected_output=deep))
    with pytest.raises(ConfigError, match="nests deeper"):
        import_tasks(AGENTICQWEN, orjson.dumps(tasks), ImportOptions())


@pytest.mark.parametrize(
    ("content", "said"),
    [("{", "not JSON"), ("{}", "is no array of tasks"), ("[]", "has no tasks"), (None, "cannot be read")],
)
def test_a_file_that_is_none_is_refused(tmp_path, content, said):
    """With its name and a remedy; the command ends with exit code 1 and writes nothing."""
    file, pack = tmp_path / "tasks.json", tmp_path / "pack.jsonl"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=said):
        import_file(AGENTICQWEN, file, ImportOptions())
    done = CliRunner().invoke(cli, ["pack", "import", "agenticqwen", str(file), "--output", str(pack)])
    assert done.exit_code == 1
    assert f"{file}: " in done.output
    assert said in done.output
    assert "1 problem; nothing was imported" in done.output
    assert not pack.exists()


def test_a_pack_has_a_packs_name(tmp_path):
    """Before anything is read."""
    done = CliRunner().invoke(cli, ["pack", "import", "agenticqwen", str(OURS), "--output", str(tmp_path / "a.json")])
    assert done.exit_code == 2
    assert "a pack is a .jsonl or .jsonl.zst file" in done.output


def test_a_format_is_one_entry(tmp_path, monkeypatch):
    """With it the command imports its files, says what a file is, and writes a pack that is sound."""

    def build(value, options):
        rubric = Rubric(subgoals=(RubricItem(id="said", text="", check={"answered": {"matches": value["answer"]}}),))
        task = Task(id=value["id"], instruction=value["asks"], rubric=rubric, split=options.split)
        return ImportedTask(task, (Note("asks", "instruction"),))

    quiz = ImportFormat(
        title="Quiz",
        file="one JSON object a line",
        rules="Questions become instructions.",
        fields=("asks",),
        read=lambda content: list(map(orjson.loads, content.splitlines())),
        build=build,
    )
    monkeypatch.setitem(pack_import.command.commands, "quiz", pack_import.command_of("quiz", quiz))
    file, pack = tmp_path / "quiz.jsonl", tmp_path / "pack.jsonl"
    file.write_bytes(b'{"id": "q1", "asks": "Four and three?", "answer": "7"}')
    run = CliRunner().invoke
    done = run(cli, ["pack", "import", "quiz", str(file), "--output", str(pack), "--split", "heldout"])
    assert (done.exit_code, load_pack(pack).tasks[0].split) == (0, "heldout")
    assert "Imported from the Quiz task format" in load_pack(pack).header.description
    assert (
        "Import FILE, one JSON object a line in the format of Quiz."
        in run(cli, ["pack", "import", "quiz", "-h"]).output
    )
    file.write_bytes(b'{"id": "q1", "asks": "", "answer": "7"}')
    refused = run(cli, ["pack", "import", "quiz", str(file)])
    assert (refused.exit_code, "task q1: instruction: is empty" in refused.output) == (1, True)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_has_its_command(name):
    """Under its name, with what becomes of its fields; nothing is no file of any."""
    help_ = CliRunner().invoke(cli, ["pack", "import", name, "--help"]).output
    assert FORMATS[name].title in help_
    assert " ".join(FORMATS[name].rules.split()[:4]) in " ".join(help_.split())
    with pytest.raises(ImportRefusedError):
        import_tasks(FORMATS[name], b"", ImportOptions())
