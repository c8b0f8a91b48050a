"""engine.commands.judge_audit: a judge against the checks and against itself, over real HTTP."""

from collections import Counter
from types import SimpleNamespace

import orjson
import pytest

from engine.errors import ConfigError
from engine.judging.agreement import VerdictPair, agreement, by_version, disagreements, spreads, wavering
from engine.judging.repeats import Judged, sample
from engine.packs.pack import load_pack
from engine.scripted.cassette import Cassette
from engine.scripted.endpoint import ScriptedEndpoint
from engine.types import Reward, Verdict
from tests.parts.judged_runs import invoke, judged_run, judging, shops
from tests.parts.played_runs import recorded
from tests.parts.recorded_runs import RecordedRun, small_pack

EPISODES, ITEMS = 13, 4


class Planted(Cassette):
    """A judge that says `met(times that it was asked before, document, item)`, with event 0 as evidence.

    What is None of any item is no verdict at all."""

    def __init__(self, met):
        super().__init__()
        self.met, self.asked = met, Counter()

    def reply(self, document):
        key = orjson.dumps(document)
        met = {item["id"]: self.met(self.asked[key], document, item) for item in document["items"]}
        self.asked[key] += 1
        if None in met.values():
            return "I cannot say."
        return orjson.dumps({id_: 0 if true else None for id_, true in met.items()}).decode()


@pytest.fixture
def run(tmp_path):
    """A run whose items all have checks."""
    return recorded(tmp_path, shops(tmp_path / "shops.jsonl"))


def cells(output, first):
    """The cells of the row that begins so."""
    [row] = [line.split("│")[1:-1] for line in output.splitlines() if line.startswith(f"│ {first} ")]
    return [cell.strip() for cell in row[1:]]


def test_the_judge_is_compared_with_the_checks(run, tmp_path):
    """The scripted one takes any answer for the told code, and any reveal for the asked question."""
    out = tmp_path / "rows.jsonl"
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    with judging() as (endpoint, options):
        code, output = invoke("judge", "audit", run.path, *options, "--out", out)
    assert code == 0
    assert "scripted at temperature 0 (sim) judges 13 of 13 scored episodes, 3 times each" in output
    assert cells(output, "forbidden") == ["39", "9", "0", "0", "30", "100.0%", "77.2% to 100.0%", "1.00"]
    assert cells(output, "all")[:6] == ["156", "45", "0", "27", "84", "82.7%"]
    disagree, check, judge, episode, text = cells(output, "subgoal told")
    assert (disagree, check, text) == ("18 of 39", "missed", "Tells the code.")
    assert judge == "met (event 2, answered: No.)"
    assert f"synth-engine show {run.path} {episode}" in output
    assert "the same reward every time: 13 of 13 episodes" in output
    assert "per episode: 3.00 calls" in output
    assert endpoint.items == {"judge": 39}
    lines = [orjson.loads(line) for line in out.read_bytes().splitlines()]
    assert {(len(line["judged"]), line["deviation"]) for line in lines} == {(3, 0.0)}
    # Nothing but judge.sqlite is new.
    after = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    assert {path: after.pop(path) for path in before} == before
    assert list(after) == [run.judge]


def test_what_was_asked_is_not_asked_again(run):
    """Nor is anybody needed for it; another temperature is another question, and more episodes are more questions."""
    audit = ("judge", "audit", run.path, "--episodes", "5", "--repeats", "2")
    with judging() as (endpoint, options):
        _, first = invoke(*audit, *options)
        assert endpoint.items == {"judge": 10}
    _, second = invoke(*audit, *options)
    assert "10 questions: 10 asked now, 0 answered by judge.sqlite" in first
    assert "10 questions: 0 asked now, 10 answered by judge.sqlite" in second
    assert second.replace("0 asked now, 10 answered", "10 asked now, 0 answered") == first
    with judging() as (endpoint, options):
        invoke(*audit, *options, "--set", "endpoints.sim.temperature=0.5")
        assert endpoint.items == {"judge": 10}
        _, output = invoke("judge", "audit", run.path, "--episodes", "6", "--repeats", "2", *options)
    assert "12 questions: 2 asked now" in output


def test_episodes_that_went_the_same_way_are_one_question(tmp_path):
    """Of eight tasks, six were played in two ways and two only once in each."""
    run = RecordedRun.make(tmp_path, small_pack(tmp_path / "small.jsonl")).write()
    with judging() as (endpoint, options):
        _, output = invoke("judge", "audit", run.path, *options)
    assert endpoint.items == {"judge": 3 * 16}
    assert "84 questions: 48 asked now, 36 answered by judge.sqlite" in output
    # Wilson's interval of 16 of 16, not of 84 of 84.
    assert cells(output, "forbidden")[-2] == "80.6% to 100.0%"


def test_a_judge_that_wavers_is_measured(run):
    """It changes its mind about all items but the first, where the agent answered."""

    def met(asked, document, item):
        return item["part"] != "forbidden" and asked == 1 and document["stop"] == "answer"

    with judging(ScriptedEndpoint(cassette=Planted(met))) as (_, options):
        one_by_one = ("--set", "endpoints.sim.concurrency=1")
        _, output = invoke("judge", "audit", run.path, *options, *one_by_one, "--repeats", "4")
    assert "the same reward every time: 3 of 13 episodes; verdicts that changed over the repeats: 30 of 52" in output
    assert "episodes whose reward varies most:\n  g000002.02  0.250 ± 0.500  (0.00 1.00 0.00 0.00)" in output
    assert "█" in cells(output, "v0")[-1]


def test_a_judge_that_fails_is_counted_and_its_episodes_are_left_out(run):
    """First where the agent never came to an end; then always, which is an error."""
    audit = ("judge", "audit", run.path, "--repeats", "1")
    with judging(
        ScriptedEndpoint(cassette=Planted(lambda _, document, __: None if document["stop"] == "turns" else False))
    ) as (
        _,
        options,
    ):
        code, output = invoke(*audit, *options)
    assert code == 0
    assert "unscored: 3 of 13" in output
    assert cells(output, "all")[0] == str(10 * ITEMS)
    with judging(ScriptedEndpoint(cassette=Planted(lambda *_: None))) as (_, options):
        code, output = invoke(*audit, *options, "--set", "endpoints.sim.model=another")
    assert code == 1
    assert "unscored: 13 of 13, for the judge failed; the first: shop-" in output
    assert "4 replies were refused" in output
    assert "refused replies: 52 malformed" in output
    assert "agree" not in output


def test_a_run_with_a_judge_brings_it(tmp_path):
    """Its own journal is not touched; items without a check count for the variance alone."""
    run = judged_run(tmp_path)
    journal = run.journal.read_bytes()
    with judging() as (_, options):
        code, output = invoke("judge", "audit", run.path, *options[:2])
    assert code == 0
    assert cells(output, "subgoal")[0] == "39"
    assert "of 52" in output
    assert run.journal.read_bytes() == journal


def test_nobody_is_asked_where_there_is_no_judge_or_no_episode(run):
    """With the remedy."""
    with pytest.raises(ConfigError, match=r"scorer\.judge names no endpoint: name the judge, with --set scorer\.judge"):
        invoke("judge", "audit", run.path)
    for path in run.trajectories.iterdir():
        path.unlink()
    for path in run.eval.iterdir():
        path.unlink()
    with pytest.raises(ConfigError, match="no scored episode"):
        invoke("judge", "audit", run.path)


def test_a_larger_sample_holds_the_smaller_one(run):
    """By seed: another one draws others."""
    tasks = {task.id: task for task in load_pack(run.pack).tasks}

    def drawn(count, seed=0):
        chosen, total = sample(run, tasks, count, seed)
        assert total == EPISODES
        return {one.episode.id for one in chosen}

    assert drawn(3) < drawn(7) < drawn(50)
    assert drawn(3) != drawn(3, seed=1)
    assert len(drawn(50)) == EPISODES


# --- the numbers ------------------------------------------------------------------------------------------------------


def pair(task, episode, check, judge, item="a"):
    """A check's verdict and a judge's."""
    judged = SimpleNamespace(task=SimpleNamespace(id=task), episode=SimpleNamespace(id=episode))
    entry = SimpleNamespace(part="subgoal", item=SimpleNamespace(id=item, text=item))
    said = [Verdict(id=item, part="subgoal", met=met) for met in (check, judge)]
    return VerdictPair(judged, entry, *said, f"{episode} {item}".encode())


def test_agreement_beyond_chance():
    """The textbook's example of Cohen's kappa: 20 and 15 of 50 agree, 5 and 10 do not."""
    table = ((True, True, 20), (True, False, 5), (False, True, 10), (False, False, 15))
    found = [pair("t", str((row, n)), *row[:2]) for row in table for n in range(row[2])]
    result = agreement(found)
    assert (result.share, round(result.kappa, 3)) == (0.7, 0.4)
    assert agreement([pair("t", "e", True, True)]).kappa is None


def test_repeats_and_tasks_that_fail_as_a_whole_make_no_interval_narrower():
    """8 of 10 by Wilson; the same said three times; the same with all disagreements in one task of two."""
    alone = [pair("t", f"e{n}", True, n < 8) for n in range(10)]
    low, high = agreement(alone).low, agreement(alone).high
    assert (round(low, 3), round(high, 3)) == (0.490, 0.943)
    repeated = agreement(alone * 3)
    assert (repeated.low, repeated.high) == (low, high)
    clustered = agreement([pair("bad" if n >= 8 else f"t{n % 2}", f"e{n}", True, n < 8) for n in range(10)])
    assert clustered.low < low


def test_items_with_most_disagreements_come_first():
    """The same item of several tasks is one."""
    found = [pair("t", "e", True, False, "b"), *(pair(f"t{n}", f"e{n}", True, n == 0, "a") for n in range(3))]
    assert [(wrong.first.open.item.id, wrong.differ, wrong.verdicts) for wrong in disagreements(found)] == [
        ("a", 2, 3),
        ("b", 1, 1),
    ]


def test_variance_needs_two_repeats():
    """By adapter version, in ranges where there are many."""
    judged = [Judged(episode=SimpleNamespace(version=version), task=None) for version in range(4)]
    for one, values in zip(judged, ((0.0, 1.0), (0.5, 0.5), (0.5,), (0.0, 0.5)), strict=True):
        for repeat, value in enumerate(values):
            verdict = Verdict(id="a", part="subgoal", met=value > 0.4)
            one.rewards[repeat] = Reward(value=value, F=1, N=value, I=1, items=(verdict,))
    found = spreads(judged)
    assert [(spread.mean, round(spread.deviation, 3)) for spread in found] == [(0.5, 0.707), (0.5, 0.0), (0.25, 0.354)]
    assert wavering(judged) == (2, 3)
    assert [(name, len(inside)) for name, inside in by_version(found, 2)] == [("v0 to v1", 2), ("v2 to v3", 1)]
    assert [name for name, _ in by_version(found, 9)] == ["v0", "v1", "v3"]
    assert list(by_version([], 9)) == []
