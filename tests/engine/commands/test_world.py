"""`synth-engine world` over a small run whose tools were played by a language model."""

import shutil
from pathlib import Path

import anyio
import orjson
import pytest
from click.testing import CliRunner

from engine.cli import cli
from engine.config.load import load
from engine.core.episode import run_episode
from engine.core.seams import EpisodePlan
from engine.errors import ConfigError, RunError
from engine.packs.exported import exported
from engine.packs.pack import load_pack
from engine.preflight.manifest import create
from engine.run.compose import build_parts
from engine.rundir.layout import RunDir
from engine.scripted.endpoint import ScriptedEndpoint
from engine.stream.reader import iter_groups
from engine.types import Source
from engine.verify.run import verify_run
from engine.world.store import MappingRow, open_store, read_store
from tests.parts.llm_parts import listening
from tests.parts.played_runs import EPISODES, LLM, packed, recorded
from tests.parts.recorded_runs import RecordedRun, group, small_pack, write_stream

MERGED = "high  street!"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Where the run `recorded` lives: three groups and an evaluation, with one merge a training task."""
    base = tmp_path_factory.mktemp("runs")
    recorded(base, packed(base / "shops.jsonl"), **{name: value for name, value in LLM.items() if "judge" not in name})
    return base


@pytest.fixture
def run(base, tmp_path):
    """A copy that a test may change."""
    return RunDir(Path(shutil.copytree(base / "recorded", tmp_path / "copy", symlinks=True)))


def invoke(*arguments):
    """Exit code and output of `synth-engine world ...`."""
    result = CliRunner().invoke(cli, ["world", *map(str, arguments)], catch_exceptions=False)
    return result.exit_code, result.output


def merges(run):
    """Ids of the merges, as `audit` prints them."""
    lines = invoke("audit", run.path)[1].splitlines()
    return [line.split("│")[1].strip() for line in lines if line.startswith("│ ") and "find_shop" in line]


def keep(run, *rows):
    """More entries."""

    async def put():
        async with open_store(run.world) as store:
            for row in rows:
                store.put(row)

    anyio.run(put)


def made(street, content, **changes):
    """An entry about a street of the first task."""
    arguments = orjson.dumps({"street": street}).decode()
    return MappingRow("shop-0", "", "find_shop", arguments, content, 1, "simulated", None)._replace(**changes)


# --- audit ------------------------------------------------------------------------------------------------------------


def test_audit_lists_every_merge_with_both_calls(base):
    """The latest run, without a trace in it; counts, rates, and the tasks."""
    before = {path: path.stat().st_mtime_ns for path in sorted((base / "recorded").rglob("*"))}
    code, output = invoke("audit", "--dir", base)
    assert code == 0
    assert "24 entries of 4 worlds in 8 states" in output
    assert "3 semantic merges" in output
    assert output.count(f'{{"street":"{MERGED}"}}') == output.count('{"street":"High Street"}') == 3
    assert "│ equivalent │ taken from a call that means the same    │       3 │ 12.5% │" in output
    assert {path: path.stat().st_mtime_ns for path in sorted((base / "recorded").rglob("*"))} == before


def test_audit_finds_what_a_person_should_compare(run):
    """The most alike first; the text of models is text, not markup."""
    keep(run, made("[red]High[/] St.", '{"name":"[bold]A"}'), made("Low Road", '{"name":"B"}'))
    code, output = invoke("audit", run.path)
    assert code == 0
    assert "3 pairs of calls that differ in words alone, with different answers" in output
    assert '{"street":"[red]High[/] St."}' in output
    assert '{"name":"[bold]A"}' in output
    assert output.index("25%") < output.index("0%", output.index("25%"))


@pytest.mark.parametrize(
    ("street", "tool", "flaw"),
    [
        ("High Street 2", "find_shop", "street differs"),
        ("high st", "find_shop", "the other call has another answer"),
        ("high st", "shop_hours", "not calls of one tool"),
    ],
)
def test_audit_fails_for_a_merge_that_cannot_be_right(run, street, tool, flaw):
    """There is none in a run; somebody changed the file."""
    same = orjson.dumps([tool, '{"street":"High Street"}']).decode()
    keep(run, made(street, "{}", source="equivalent", same_as=same))
    code, output = invoke("audit", run.path)
    assert code == 1
    assert f": {flaw}" in output


def test_audit_counts_the_writes_before_an_answer(run):
    """With the beginning of the state's hash; a state that no answer leads to says so."""
    output = invoke("audit", run.path)[1]
    assert "start" in output
    keep(run, made("x", "{}", world="e" * 64, source="equivalent", same_as='["find_shop","{\\"street\\":\\"y\\"}"]'))
    assert "eeeeeeee" in invoke("audit", run.path)[1]


def test_a_run_without_answers_is_named(tmp_path):
    """A world of one's own keeps its answers itself."""
    other = RecordedRun.make(tmp_path, small_pack(tmp_path / "pack.jsonl")).write()
    for words in (["audit", other.path], ["export", other.path], ["veto", other.path, "x"]):
        with pytest.raises(ConfigError, match=r"world\.sqlite"):
            invoke(*words)
    assert not other.world.exists()


# --- diff, export -----------------------------------------------------------------------------------------------------


def test_diff_says_what_only_one_has_and_what_differs(base, run):
    """Nothing, between a run and its copy."""
    assert invoke("diff", base / "recorded", run.path)[0] == 0
    keep(run, made("[b]New", '{"name":"N"}'), made("Odd", '{"name":"O"}'))
    other = RunDir(Path(shutil.copytree(run.path, run.path.with_name("other"), symlinks=True)))
    keep(run, made("One", '{"name":"1"}'), made("Both", '{"error":"no"}', ok=0))
    keep(other, made("Two", '{"name":"2"}'), made("Both", '{"name":"3"}'))
    code, output = invoke("diff", run.path, other.path)
    assert code == 1
    assert output.splitlines() == [
        "shop-0",
        '  start     find_shop {"street":"Both"}',
        '    < refused: {"error":"no"}',
        '    > {"name":"3"}',
        '  start     find_shop {"street":"One"}',
        '    < {"name":"1"}',
        '  start     find_shop {"street":"Two"}',
        '    > {"name":"2"}',
        f"26 entries the same, 1 differ; only in {run.path}: 1, only in {other.path}: 1",
    ]


def test_an_export_is_sorted_and_starts_another_run(base, tmp_path):
    """To a file that is not there yet, or to standard output; the copy differs in nothing."""
    file = tmp_path / "world.jsonl"
    assert invoke("export", "--dir", base, "--out", file) == (0, "")
    content = file.read_bytes()
    assert invoke("export", base / "recorded") == (0, content.decode())
    with pytest.raises(ConfigError, match="exists"):
        invoke("export", base / "recorded", "--out", file)
    lines = [orjson.loads(line) for line in content.splitlines()]
    keys = [(line["task"], line["world"], line["tool"], orjson.dumps(line["arguments"])) for line in lines]
    assert keys == sorted(keys)
    sets = [f"run.dir={tmp_path}", f"tasks.pack={base / 'shops.jsonl'}", f"world.mapping={file}"]
    started = create(load("dry", sets).config)
    assert invoke("diff", base / "recorded", started.path)[0] == 0
    assert (
        "imported   │ there when the run began (world.mapping) │      24 │ 100.0%" in invoke("audit", started.path)[1]
    )


# --- veto -------------------------------------------------------------------------------------------------------------


def again(run):
    """What the first task's call is answered when the run goes on."""
    settings, task = load(run.config).config, load_pack(run.pack).tasks[0]

    async def played():
        async with listening(ScriptedEndpoint().application()) as url:
            there = {"sim": settings.endpoints["sim"].model_copy(update={"url": url})}
            config = settings.model_copy(update={"endpoints": there})
            async with build_parts(run, config, lambda: 0.0, lambda _: None) as parts:
                plan = EpisodePlan(
                    id="g000009.02",
                    group_id="g000009",
                    task=task,
                    seed=9,
                    version=0,
                    adapter="a-v00000",
                    limits=config.limits.value(),
                    sampling=config.sampling,
                    queued_s=0.0,
                )
                episode = await run_episode(plan, parts.seams, lambda _: False)
                await parts.flush()
                return episode

    episode = anyio.run(played)
    more = group("g000009", 9, Source.POLICY, [episode])
    write_stream(run, run.trajectories, [*iter_groups(run.trajectories), more])
    return [event.text for event in episode.events if event.tool == "find_shop"]


def test_a_vetoed_merge_is_asked_again_when_the_run_goes_on(run):
    """What was recorded before still verifies, and nothing of it is changed."""
    streams = [path for place in (run.trajectories, run.eval) for path in place.iterdir()]
    before = [path.read_bytes() for path in streams]
    first, *others = merges(run)
    code, output = invoke("veto", run.path, first)
    assert (code, output) == (0, f'withdrawn: shop-0: start: find_shop {{"street":"{MERGED}"}}\n')
    assert merges(run) == others
    told = f'veto 1: shop-0: find_shop {{"street":"{MERGED}"}} is not {{"street":"High Street"}}; 1 answers withdrawn'
    assert f"{told} after 4 groups" in invoke("audit", run.path)[1]
    assert [path.read_bytes() for path in streams] == before
    assert anyio.run(verify_run, run, (), lambda done, total: None).identical == EPISODES
    [answer] = again(run)
    assert orjson.loads(answer)["street"] == MERGED
    assert merges(run) == others
    result = anyio.run(verify_run, run, (), lambda done, total: None)
    assert (result.differences, result.identical) == ([], EPISODES + 1)


@pytest.mark.parametrize("mode", ["grow", "frozen"])
def test_what_began_with_exported_answers_verifies(base, tmp_path, mode):
    """Also what was withdrawn since; the journal has nothing of them."""
    changed = tmp_path / "world.jsonl"
    changed.write_bytes(anyio.run(_renamed, RunDir(base / "recorded")))
    settings = {name: value for name, value in LLM.items() if "judge" not in name}
    settings |= {"world.mapping": changed, "world.mode": mode}
    run = recorded(tmp_path, base / "shops.jsonl", **settings)
    assert any(
        "Renamed" in event.text for group in iter_groups(run.trajectories) for e in group.episodes for event in e.events
    )
    for _ in range(2):
        result = anyio.run(verify_run, run, (), lambda done, total: None)
        assert (result.differences, result.identical) == ([], EPISODES)
        if merges(run):
            invoke("veto", run.path, merges(run)[0])


async def _renamed(run):
    async with read_store(run.world) as store:
        rows = [row for task in sorted(store.tasks) for row in await store.load(task)]
    lines = [orjson.loads(exported(row)) for row in rows]
    for line in lines:
        if line["tool"] == "find_shop":
            line["answer"]["name"] = "Renamed"
    return b"".join(orjson.dumps(line) + b"\n" for line in lines)


def test_veto_takes_the_latest_run_and_refuses_one_at_work(run):
    """Its engine has the answers in memory."""
    merge = merges(run)[0]
    (run.path.parent / "latest").symlink_to(run.path.name)
    with run.locked(), pytest.raises(RunError, match="another synth-engine is running it"):
        invoke("veto", merge, "--dir", run.path.parent)
    assert invoke("veto", merge, "--dir", run.path.parent)[0] == 0
    assert invoke("veto", run.path, merge, "more")[0] == 2
    with pytest.raises(ConfigError, match="withdrawn already"):
        invoke("veto", run.path, merge)
