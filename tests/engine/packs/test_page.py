"""docs/packs.md: its tables are those of the sources, its example plays, and no error lacks an explanation."""

import re
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from engine.errors import ConfigError
from engine.packs.pack import check_pack, load_pack
from engine.synthesis.admission.admit import admission_of
from engine.synthesis.planted import Planted, guessed, planted, script
from engine.task import Task
from engine.world.effects import fill
from engine.world.offline_user import OfflineUserSession
from tests.bar.packs_page import PAGE, messages, renewed
from tests.engine.packs.test_showcase_pack import earned, play, verdicts
from tests.parts.places import ROOT

TEXT = PAGE.read_text(encoding="utf-8")
HEADER, TASK = (orjson.loads(block) for block in re.findall(r"```json\n(.*?)```", TEXT, flags=re.DOTALL)[:2])


def written(directory: Path) -> Path:
    """The page's example as a pack file."""
    path = directory / "florist.jsonl"
    path.write_bytes(orjson.dumps(HEADER) + b"\n" + orjson.dumps(TASK) + b"\n")
    return path


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    """The task of the page's example."""
    (loaded,) = load_pack(written(tmp_path_factory.mktemp("page"))).tasks
    return loaded


def test_its_tables_are_generated():
    """Fields, effects and checks as `pack schema` has them."""
    assert renewed(TEXT) == TEXT, "run `make pages`, and commit it"


def test_its_example_is_sound(tmp_path: Path):
    """Nothing is wrong with it, and nothing is other than is meant."""
    checked = check_pack(written(tmp_path))
    assert (checked.problems, checked.flaws) == ([], [])


def test_its_example_leaves_nothing_out():
    """It has every field that the table has, but for those of tasks of another kind."""
    table = TEXT.partition("<!-- fields -->")[2].partition("<!-- /fields -->")[0]
    fields = set(re.findall(r"^\| `([\w.\[\]]+)` \|", table, re.MULTILINE))
    named = {re.sub(r"\bfacts\.\w+", "facts.NAME", path) for path in _paths(TASK)}
    assert fields - named == {"answer", "kind"}


def _paths(value: object, place: str = "") -> set[str]:
    inner = (
        value.items()
        if isinstance(value, dict)
        else [("[]", item) for item in value]
        if isinstance(value, list)
        else []
    )
    found = {place} if place else set()
    for name, held in inner:
        found |= _paths(held, f"{place}{name}" if name == "[]" or not place else f"{place}.{name}")
    return found


async def test_its_example_plays_as_the_page_says(task: Task):
    """Gold earns 1, doing nothing 0, and each planted edit flips its own item."""
    plays = {one.name: one for one in planted(task)}
    gold = verdicts(await play(task, script(task).gold))
    for name, one in plays.items():
        assert await _flips(task, one, gold) == one.flips, name
    assert earned(await play(task, plays["gold"].completions)).value == 1
    assert earned(await play(task, plays["nothing"].completions)).value == 0
    assert earned(await play(task, plays["flips courier"].completions)).value == 0


async def _flips(task: Task, one: Planted, gold: dict[str, bool]) -> set[str]:
    found = verdicts(await play(task, one.completions))
    return {item for item in gold if found[item] != gold[item]}


async def test_guessing_does_not_pay_in_its_example(task: Task):
    """Without the user's facts neither what was wanted is ordered, nor anything asked."""
    reward = earned(await play(task, guessed(task)))
    assert (reward.I, reward.N < 1) == (0, True)
    assert task.user is not None
    for fact, questions in script(task).asks.items():
        for question in questions:
            assert (await OfflineUserSession(task.user).reply(question)).revealed == (fact,)


async def test_its_example_is_admitted(task: Task):
    """By every test that the page describes."""
    admission = await admission_of(task, 200)
    assert [finding for finding in admission.findings if finding.result != "passed"] == []


@pytest.mark.parametrize(
    ("calls", "answers"),
    [
        ([("get_stock", {"flower": "tulip"})], ['{"price":1.5,"fresh":true}']),
        ([("get_stock", {"flower": "orchid"})], ['{"error":"not found"}']),
        ([("place_order", {"flower": "rose", "stems": 1, "day": "x"})], ['{"error":"not possible"}']),
        ([("delivery_hours", {"day": "2027-05-16"})], ['{"error":"closed on Sundays"}']),
        (
            [
                ("place_order", {"flower": "tulip", "stems": 12.0, "day": "2027-05-14", "card": ""}),
                ("delivery_hours", {"day": "2027-05-14"}),
            ],
            ['{"order":"B-47"}', '{"from":16}'],
        ),
    ],
)
async def test_its_tools_answer_as_the_page_says(task: Task, calls: list[tuple[str, dict]], answers: list[str]):
    """Effects, refusals, responses, and a response after a write that leaves nothing to the order of things."""
    said = [orjson.dumps({"name": name, "arguments": arguments}).decode() for name, arguments in calls]
    episode = await play(task, [*(f"<tool_call>{call}</tool_call>" for call in said), "<answer>Done.</answer>"])
    assert [event.text for event in episode.events[:-1]] == answers


def test_its_templates_are_filled_as_it_says():
    """The table of templates, with the arguments that its head has."""
    section = TEXT.partition("A *template* is")[2].partition("What a call answers")[0]
    (_, head), *rows = re.findall(r"^\| (.+?) \| (.+?) \| .*\|$", section, re.MULTILINE)
    arguments = orjson.loads(head.split("`")[1])
    values = [(template.strip("`"), made.strip("`")) for template, made in rows if "/orders" not in template]
    assert len(values) == 3
    for template, made in values:
        assert fill(orjson.loads(template), arguments) == orjson.loads(made)


def test_every_reason_is_explained():
    """The first column of the table of errors has what the sources say of a pack."""
    reasons = "\n".join(re.findall(r"^\| (.+?) \| ", TEXT.partition("## Errors")[2], re.MULTILINE))
    found = list(messages())
    assert len({text for _, text in found}) > 35
    assert [(place, text) for place, text in found if text not in reasons] == []


def test_what_errors_point_at_is_there():
    """Every section that the sources name is a heading."""
    heads = {head.lower().replace(" ", "-") for head in re.findall(r"^## (.+)$", TEXT, re.MULTILINE)}
    cited = {
        section
        for path in (ROOT / "engine").rglob("*.py")
        for section in re.findall(r"docs/packs\.md#([\w-]+)", path.read_text("utf-8"))
    }
    assert cited
    assert cited <= heads


def test_a_script_that_does_not_fit_points_at_the_page(task: Task):
    """Whoever writes one finds an example."""
    with pytest.raises(ConfigError, match=r"docs/packs\.md#scripts"):
        script(replace(task, meta={"gold": 7}))
