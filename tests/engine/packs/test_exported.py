"""engine.packs.exported: what a run's world says, in a file that another run starts from."""

import subprocess
import sys
import tempfile
from pathlib import Path

import anyio
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config.load import load
from engine.errors import ConfigError
from engine.packs.exported import exported, read_exported
from engine.preflight.manifest import create, reopen
from engine.rundir.rows import write_rows
from engine.world.mapped import MappedWorld
from engine.world.mapping import Equivalent
from engine.world.meaning import differing, kind_of_call
from engine.world.offline import OfflineSimulator
from engine.world.states import Key
from engine.world.store import EntryStore, open_store, read_store
from tests.engine.world.test_mapping import CALLS, NoSimulator, play, seeded
from tests.parts.places import ROOT
from tests.parts.worlds import ORDER, call, shop, task_json

RESPONSES = [seeded("shop_hours", {"opens": 9}, day="Monday")]
TASK = shop(world={"state": shop().world.state, "responses": RESPONSES})
SUNDAY, WEEKEND = call("shop_hours", day="Sunday"), call("shop_hours", day="sunday")


class Merging(OfflineSimulator):
    """Takes `sunday` for Sunday."""

    async def simulate(self, state, call, known):
        if call == WEEKEND:
            same = Key("shop_hours", b'{"day":"Sunday"}')
            if same in state.entries:
                return Equivalent(same, state.entries[same].observation)
        return await super().simulate(state, call, known)


async def _grow(path, episodes):
    async with open_store(path) as store:
        world = MappedWorld(Merging(), store)
        said = [await play(world, TASK, calls) for calls in episodes]
    return said, await _lines(path)


async def _lines(path):
    async with read_store(path) as store:
        return [exported(row) for task in sorted(store.tasks) for row in await store.load(task)]


async def _frozen(path, episodes):
    async with open_store(path) as store:
        world = MappedWorld(NoSimulator(), store, mode="frozen")
        return [await play(world, TASK, calls) for calls in episodes]


@settings(max_examples=20)
@given(st.lists(st.lists(st.sampled_from([*CALLS, SUNDAY, WEEKEND]), max_size=8), min_size=1, max_size=5))
def test_a_run_that_starts_from_an_export_says_the_same(episodes):
    """For any episodes, without a simulator; and exports the same again, but for where it has the answers from."""
    with tempfile.TemporaryDirectory() as directory:
        file, first, second = (Path(directory) / name for name in ("world.jsonl", "one.sqlite", "two.sqlite"))
        said, lines = anyio.run(_grow, first, episodes)
        file.write_bytes(b"".join(lines))
        write_rows(EntryStore, second, read_exported(file, [TASK]))
        assert anyio.run(_frozen, second, episodes) == said
        again = [orjson.loads(line) for line in anyio.run(_lines, second)]
        assert again == [{**orjson.loads(line), "source": "imported"} for line in lines]


TEXTS = st.text("aB 1é", max_size=3)
ARGUMENTS = st.dictionaries(st.sampled_from(["day", "item"]), st.none() | TEXTS | st.integers(0, 2), max_size=2)


@given(ARGUMENTS, ARGUMENTS)
def test_calls_are_of_one_kind_exactly_if_they_may_mean_the_same(mine, theirs):
    """So that pairs to compare are found without comparing all."""
    tool = TASK.tool("shop_hours")
    assert (kind_of_call(tool, mine) == kind_of_call(tool, theirs)) == (differing(tool, mine, theirs) is None)


# --- files that cannot be used ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    """A sound export: a seeded answer, one that was made, one taken from it, a write and an answer after it."""
    path = tmp_path_factory.mktemp("grown") / "world.sqlite"
    _, lines = anyio.run(_grow, path, [[CALLS[-2], SUNDAY, WEEKEND, ORDER, SUNDAY]])
    return [orjson.loads(line) for line in lines]


def refusal(tmp_path, content):
    """Why a file is refused."""
    file = tmp_path / "world.jsonl"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as raised:
        read_exported(file, [TASK])
    return str(raised.value).replace(str(file), "FILE")


def written(lines):
    """Lines as a file has them."""
    return b"".join(orjson.dumps(line) + b"\n" for line in lines)


def test_the_lines_of_the_fixture(lines, tmp_path):
    """In the order of their keys; blank lines are none."""
    file = tmp_path / "world.jsonl"
    file.write_bytes(b"\n" + written(lines).replace(b"\n", b"\r\n\n"))
    assert len(read_exported(file, [TASK])) == len(lines) == 5
    assert [(line["tool"], line["source"], line["same_as"]) for line in lines] == [
        ("place_order", "simulated", None),
        ("shop_hours", "seeded", None),
        ("shop_hours", "simulated", None),
        ("shop_hours", "equivalent", {"day": "Sunday"}),
        ("shop_hours", "simulated", None),
    ]


@pytest.mark.parametrize(
    ("number", "changes", "said"),
    [
        (2, {"extra": 1}, "extra: Extra inputs are not permitted (the fields are those of"),
        (2, {"ok": 1}, "ok: Input should be a valid boolean"),
        (2, {"world": "x"}, "world: String should match pattern"),
        (2, {"source": "guessed"}, "source: Input should be"),
        (2, {"arguments": []}, "arguments: Input should be a valid dictionary"),
        (2, {"answer": [[[]]] * 2}, "the task itself says"),
        (2, {"task": "shop-9"}, "task shop-9: task: the pack has no such task (export from a run of this pack"),
        (2, {"tool": "shop"}, "tool: the task has no tool 'shop'"),
        (3, {"arguments": {"day": 3}}, "arguments: bad argument day"),
        (3, {"arguments": {}}, "arguments: missing argument day"),
        (3, {"arguments": {"day": " Monday"}}, "arguments: line 2 answers the same call (remove one of them)"),
        (3, {"same_as": {"day": "sunday"}}, "same_as: leads back to this call"),
        (4, {"same_as": {"day": "sunday"}}, "same_as: leads back to this call"),
        (4, {"same_as": {"day": "Sunday 2"}}, "same_as: day differs, and may not"),
        (4, {"same_as": {"day": "Monday"}}, "same_as: the call that it points at has another answer"),
        (2, {"answer": {"opens": 10}}, 'answer: the task itself says {"opens":9} (ok true)'),
        (1, {"ok": False}, 'answer: the task itself says {"code":"47"} (ok true)'),
        (1, {"arguments": {"item": "pear", "quantity": 5}}, 'the task itself says {"error":"not possible"} (ok false)'),
    ],
)
def test_what_is_wrong_with_a_line_is_named(tmp_path, lines, number, changes, said):
    """File, line, task, field, reason and remedy."""
    changed = [*lines]
    changed[number - 1] = {**lines[number - 1], **changes}
    reason = refusal(tmp_path, written(changed))
    assert reason.startswith(f"world.mapping: FILE:{number}: ")
    assert said in reason
    assert reason.endswith(")")


def test_a_torn_file_is_refused(tmp_path, lines):
    """By its last line; and whatever is no text."""
    whole = written(lines)
    assert refusal(tmp_path, whole[:-20]).startswith("world.mapping: FILE:5: not JSON: ")
    assert "cut off" in refusal(tmp_path, whole[:-20])
    assert "FILE:2: not JSON" in refusal(tmp_path, whole.split(b"\n")[0] + b"\n\xff\x00garbage\n")
    assert "FILE:1: nests deeper than 64 levels" in refusal(tmp_path, b"[" * 100 + b"]" * 100)
    assert "FILE:1: Input should be" in refusal(tmp_path, b"[]")
    with pytest.raises(ConfigError, match=r"world\.mapping: .*: cannot be read: Is a directory; check the path"):
        read_exported(tmp_path, [TASK])


@given(st.data())
def test_a_garbled_file_is_refused_or_sound(lines, data):
    """Never another error, whatever byte is changed or lost."""
    content = bytearray(written(lines))
    at = data.draw(st.integers(0, len(content) - 1))
    content[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "world.jsonl"
        file.write_bytes(content)
        try:
            rows, reason = read_exported(file, [TASK]), ""
        except ConfigError as error:
            rows, reason = [], str(error)
        assert reason.startswith(f"world.mapping: {file}:") or 0 < len(rows) <= len(lines)


# --- runs -------------------------------------------------------------------------------------------------------------


def packed(path):
    """A pack of the task."""
    task = task_json(world={"state": TASK.world.state, "responses": RESPONSES})
    path.write_bytes(b"\n".join(map(orjson.dumps, [{"format": 1, "pack": "shops"}, task])))
    return path


def test_a_run_has_the_answers_from_its_start_on(tmp_path, lines, monkeypatch):
    """The file is not needed any more, nor may another take its place; a wrong one leaves no run behind."""
    file = tmp_path / "world.jsonl"
    file.write_bytes(written(lines))
    monkeypatch.chdir(tmp_path)
    sets = [f"run.dir={tmp_path / 'runs'}", f"tasks.pack={packed(tmp_path / 'shops.jsonl')}", "world.mode=frozen"]
    run = create(load("dry", [*sets, "world.mapping=world.jsonl"]).config)
    file.write_bytes(b"{}")
    with pytest.raises(ConfigError, match=r"world\.jsonl:1: task: Field required"):
        create(load("dry", [*sets, "world.mapping=world.jsonl"]).config)
    assert [path.name for path in sorted((tmp_path / "runs").iterdir())] == ["dry", "latest"]
    file.unlink()
    assert reopen(run, ()).world.mapping == str(file)
    with pytest.raises(ConfigError, match="cannot change world"):
        reopen(run, ("world.mapping=other.jsonl",))
    script = f"""
import anyio
from pathlib import Path
from engine.world.llm_tools import FrozenSimulator
from tests.engine.packs.test_exported import SUNDAY, WEEKEND, MappedWorld, TASK, call, open_store, play
async def main():
    async with open_store(Path({str(run.world)!r})) as store:
        world = MappedWorld(FrozenSimulator(), store, mode="frozen")
        observations, _ = await play(world, TASK, [SUNDAY, WEEKEND, call("shop_hours", day="Friday")])
        print(*(observation.content for observation in observations), sep="\\n")
anyio.run(main)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    [answer] = {orjson.dumps(line["answer"]).decode() for line in lines[2:4]}
    assert done.stdout.splitlines() == [answer, answer, '{"error":"not found"}']


def test_private_worlds_start_from_nothing():
    """The setting would have no effect."""
    with pytest.raises(
        ConfigError, match=r"world\.mapping has no effect with world\.mode = 'private'; remove it, or set"
    ):
        load("dry", ["world.mode=private", "world.mapping=world.jsonl"])
