"""`synth-engine synthesize --from-drafts`: drafts that a person wrote become a pack, or say why not."""

import copy

import anyio
import orjson
import pytest
from click.testing import CliRunner

from engine.cli import cli
from engine.errors import ConfigError
from engine.packs.pack import load_pack
from engine.synthesis.admission.admit import admission_of
from tests.parts.places import TESTS

DRAFTS = [orjson.loads((TESTS / f"data/draft_{name}.json").read_bytes()) for name in ("paint", "hall")]


def synthesize(tmp_path, drafts, *options):
    """Exit code, output and where the pack would be."""
    (tmp_path / "drafts.jsonl").write_bytes(b"\n".join(map(orjson.dumps, drafts)))
    argv = ["synthesize", "--from-drafts", str(tmp_path / "drafts.jsonl"), "-o", str(tmp_path / "shop.jsonl"), *options]
    done = CliRunner().invoke(cli, argv)
    return done.exit_code, done.output, tmp_path / "shop.jsonl"


def test_drafts_become_a_pack(tmp_path):
    """The pack is sound, and the command says what comes next."""
    code, output, pack = synthesize(tmp_path, DRAFTS)
    assert (code, "2 of 2 drafts became tasks; next: synth-engine pack check --admit" in output) == (0, True), output
    assert [task.id for task in load_pack(pack).tasks] == ["paint-for-the-gate", "hall-for-the-choir"]
    checked = CliRunner().invoke(cli, ["pack", "check", str(pack)])
    assert checked.exit_code == 0, checked.output


@pytest.mark.parametrize("index", [0, 1])
def test_what_was_compiled_is_admitted(tmp_path, index):
    """By every test of admission, the adversary's among them."""
    _, _, pack = synthesize(tmp_path, DRAFTS)
    found = anyio.run(admission_of, load_pack(pack).tasks[index], 100)
    assert found.admitted, [(finding.test, finding.flaws) for finding in found.findings if finding.flaws]


def test_the_same_drafts_give_the_same_pack(tmp_path):
    """Byte for byte."""
    packs = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        packs.append(synthesize(tmp_path / name, DRAFTS)[2].read_bytes())
    assert packs[0] == packs[1]


def flawed():
    """A draft with a flaw."""
    draft = copy.deepcopy(DRAFTS[0])
    draft["id"] = "flawed\x1b[2J"
    draft["world"]["state"]["deliveries"].pop("${day.wrong}")
    return draft


def test_a_draft_that_is_none_is_told_and_the_others_are_written(tmp_path):
    """With its place, the reason and a remedy; what a terminal would obey is not."""
    code, output, pack = synthesize(tmp_path, [flawed(), DRAFTS[1]])
    assert code == 1
    assert "mistaken: fact day: with the wrong value '2027-05-17' the plan does not come to its end" in output
    assert "\x1b" not in output
    assert "1 of 2 drafts became tasks" in output
    assert len(load_pack(pack).tasks) == 1


def test_for_a_script(tmp_path):
    """One JSON object; nothing is written where nothing came of it."""
    code, output, pack = synthesize(tmp_path, [flawed()], "--json")
    told = orjson.loads(output)
    assert (code, told["tasks"], [one["code"] for one in told["rejected"]]) == (1, [], ["mistaken"])
    assert not pack.exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no drafts"),
        (b"{", "line 1: not JSON"),
        (b"{}", "[0]: id: Field required"),
        (orjson.dumps([DRAFTS[0], DRAFTS[0]]), "ids are there twice"),
        (orjson.dumps({**DRAFTS[0], "colour": 1}), "colour: Extra inputs are not permitted"),
        (
            orjson.dumps({**DRAFTS[0], "world": {**DRAFTS[0]["world"], "plan": [{"id": "x", "cal": "y"}]}}),
            "world.plan.0: a step has one of the keys ask, call, if, answer",
        ),
    ],
)
def test_a_file_that_holds_none(tmp_path, content, reason):
    """It is refused whole, with file, place and field."""
    (tmp_path / "drafts.json").write_bytes(content)
    argv = ["synthesize", "--from-drafts", str(tmp_path / "drafts.json"), "-o", str(tmp_path / "shop.jsonl")]
    done = CliRunner().invoke(cli, argv)
    assert isinstance(done.exception, ConfigError)
    assert reason in str(done.exception)
    assert not (tmp_path / "shop.jsonl").exists()


def test_a_pack_has_an_ending(tmp_path):
    """So that every command recognises it."""
    argv = ["synthesize", "--from-drafts", "x", "-o", str(tmp_path / "shop.txt")]
    assert "a pack is a .jsonl or .jsonl.zst file" in CliRunner().invoke(cli, argv).output
