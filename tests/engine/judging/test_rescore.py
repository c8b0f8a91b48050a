"""engine.commands.rescore and engine.audit.verdicts: what a judge decided is looked up, and never guessed."""

import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import pytest

from engine.audit.check import RunRecords
from engine.audit.run import audit
from engine.errors import ConfigError
from engine.rundir.layout import RunDir
from engine.scripted.cassette import Cassette
from engine.scripted.endpoint import ScriptedEndpoint
from engine.stream.reader import iter_groups
from engine.types import Reward, Verdict
from tests.parts.judged_runs import invoke, judged_run, judging, shops
from tests.parts.played_runs import packed, recorded
from tests.parts.recorded_runs import write_stream

TRAINING, EPISODES = 12, 13


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """A run whose judge is gone."""
    return judged_run(tmp_path_factory.mktemp("judged"))


@pytest.fixture
def run(judged, tmp_path):
    """A copy that a test may change."""
    return RunDir(Path(shutil.copytree(judged.path, tmp_path / "copy")))


def rows(output):
    """The cells of the table."""
    lines = [line.split("│")[1:-1] for line in output.splitlines() if "│" in line]
    return {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in lines}


def counts(output):
    """Episodes scored, changed, without a task and without a reward, of both streams."""
    found = rows(output)
    return [[int(cells[column]) for column in (0, 3, 4, 5)] for cells in (found["training"], found["evaluations"])]


def verdicts_wrong(run):
    """What the audit says of the judge's verdicts."""
    [found] = [finding for finding in audit(RunRecords.read(run)) if finding.name == "verdicts_wrong"]
    return found


def test_recorded_verdicts_give_the_recorded_rewards(run):
    """The judge is gone; nothing is changed, and nothing new is in the directory."""
    before = {path: path.stat().st_mtime_ns for path in sorted(run.path.rglob("*"))}
    code, output = invoke("rescore", run.path)
    assert (code, counts(output)) == (0, [[TRAINING, 0, 0, 0], [1, 0, 0, 0]])
    assert {path: path.stat().st_mtime_ns for path in sorted(run.path.rglob("*"))} == before


def test_what_the_judge_has_not_decided_is_listed_and_asked_only_on_demand(run, tmp_path):
    """Afterwards it is known; the run's own journal stays as it was."""
    pack, out = shops(tmp_path / "other.jsonl", "told", "ordered"), tmp_path / "rows.jsonl"
    journal = run.journal.read_bytes()
    _, output = invoke("rescore", run.path, "--pack", pack, "--out", out)
    assert counts(output) == [[0, 0, 0, TRAINING], [0, 0, 0, 1]]
    assert "13 episodes need the judge: pass --judge\n" in output
    assert "g000000.00, g000000.01, g000000.02" in output
    lines = [orjson.loads(line) for line in out.read_bytes().splitlines()]
    assert {line["after"] for line in lines} == {None}
    assert "not in the journal" in lines[0]["error"]
    with judging() as (endpoint, options):
        _, output = invoke("rescore", run.path, "--pack", pack, "--judge", *options)
    assert [row[0] for row in counts(output)] == [TRAINING, 1]
    assert "need the judge" not in output
    # Episodes of a task that went the same way are one question.
    assert 0 < endpoint.items["judge"] <= EPISODES
    assert run.journal.read_bytes() == journal
    _, again = invoke("rescore", run.path, "--pack", pack)
    assert rows(again) == rows(output)


def test_a_judge_that_fails_makes_no_reward(run, tmp_path):
    """It is told how many, and why."""
    pack = shops(tmp_path / "other.jsonl", "asked")
    with judging(ScriptedEndpoint(cassette=Cassette(strict=True))) as (_, options):
        _, output = invoke("rescore", run.path, "--pack", pack, "--judge", *options)
    assert counts(output) == [[0, 0, 0, TRAINING], [0, 0, 0, 1]]
    assert "13 episodes got no reward: g000000.00" in output
    assert "the cassette has no reply" in output


def test_a_run_of_checks_alone_says_how_to_name_a_judge(tmp_path):
    """Under a rubric that needs one; and names it on the command line."""
    run = recorded(tmp_path, packed(tmp_path / "shops.jsonl"))
    pack = shops(tmp_path / "other.jsonl", "asked")
    _, output = invoke("rescore", run.path, "--pack", pack)
    assert "13 episodes need the judge: pass --judge --set scorer.judge=NAME" in output
    with pytest.raises(ConfigError, match=r"scorer\.judge names no endpoint"):
        invoke("rescore", run.path, "--pack", pack, "--judge")
    with judging() as (_, options):
        _, output = invoke("rescore", run.path, "--pack", pack, "--judge", *options)
    assert [row[0] for row in counts(output)] == [TRAINING, 1]


class Half:
    """A scorer of one's own, which fails where the agent rushed."""

    async def score(self, record):
        if any(event.tool == "rush_order" for event in record.events):
            raise KeyError("rushed")
        return Reward(value=0.5, F=1, N=0.5, I=0.5)


def test_a_scorer_of_ones_own_scores_again_and_has_no_judge(tmp_path):
    """What it cannot score is told."""
    run = recorded(tmp_path, packed(tmp_path / "shops.jsonl"))
    own = ("rescore", run.path, "--set", "scorer.kind=tests.engine.judging.test_rescore:Half")
    _, output = invoke(*own)
    assert rows(output)["training"][2] == "0.500 ± 0.000"
    assert counts(output)[0][2:] == [0, 3]
    assert "3 episodes got no reward: g000000.01, g000001.01, g000002.01" in output
    assert "the first of them: scorer: KeyError: 'rushed'" in output
    with pytest.raises(ConfigError, match=r"--judge has no effect with scorer\.kind"):
        invoke(*own, "--judge")


class Odd:
    """A scorer of one's own, whose rewards no row could hold."""

    async def score(self, record):
        whole = Reward(value=0.5, F=1, N=0.5, I=0.5)
        tools = {event.tool for event in record.events}
        if "rush_order" in tools:
            return replace(whole, value=np.float64(0.5))
        if "place_order" in tools:
            raise ValueError("\ud83d")
        return (
            replace(whole, items=(Verdict(id="\ud83d", part="subgoal", met=True),)) if "find_shop" in tools else whole
        )


def test_a_reward_that_no_record_can_hold_is_none(tmp_path):
    """Each such episode is told with the reason; the rows are written."""
    run, out = recorded(tmp_path, packed(tmp_path / "shops.jsonl")), tmp_path / "rows.jsonl"
    _, output = invoke("rescore", run.path, "--set", "scorer.kind=tests.engine.judging.test_rescore:Odd", "--out", out)
    assert counts(output)[0][2:] == [0, 9]
    lines = [orjson.loads(line) for line in out.read_bytes().splitlines()]
    assert {line.get("error") for line in lines} == {
        None,
        "scorer: ValueError: \\ud83d",
        "scorer: ValueError: the Reward: value: numpy.float64 is no JSON value",
        "scorer: ValueError: the Reward: items.0.id: half a surrogate pair (\\ud83d) is no character",
    }


def test_the_audit_finds_every_verdict_in_the_journal(run):
    """A sound run; one whose journal is gone; one whose answers are."""
    found = verdicts_wrong(run)
    assert (found.ok, found.checked) == (True, f"{EPISODES} episodes")
    with closing(sqlite3.connect(run.journal)) as journal, journal:
        journal.execute("DELETE FROM exchanges WHERE number = (SELECT min(number) FROM exchanges)")
    found = verdicts_wrong(run)
    assert found.count > 0
    assert found.violations[0].startswith("the journal does not answer for g000000.00")
    run.journal.unlink()
    assert verdicts_wrong(run).count == EPISODES


def test_the_audit_finds_a_verdict_that_the_judge_did_not_give(run):
    """Somebody changed the record: the reward still adds up, and the journal knows better."""
    groups = list(iter_groups(run.trajectories))
    episode = groups[0].episodes[0]
    *others, told, asked = episode.reward.items
    assert (told.by, told.met, told.evidence) == ("judge", True, 4)
    reward = replace(episode.reward, items=(*others, replace(told, evidence=3), asked))
    groups[0] = replace(groups[0], episodes=(replace(episode, reward=reward), *groups[0].episodes[1:]))
    write_stream(run, run.trajectories, groups)
    findings = {finding.name: finding.violations for finding in audit(RunRecords.read(run)) if not finding.ok}
    assert findings["verdicts_wrong"] == ["the journal has other verdicts on g000000.00"]
    assert "rewards_wrong" not in findings
