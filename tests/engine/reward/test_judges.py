"""engine.reward.judges: a second judge asks for itself, and the first one has its answers of before."""

import shutil
from pathlib import Path

import anyio
import pytest

from engine.config.endpoints import EndpointSection
from engine.config.load import load
from engine.core.seams import ScoringRecord
from engine.errors import ConfigError, RewardError
from engine.judging.rescoring import rescorer
from engine.llm.asking import JournaledAsker
from engine.llm.journal import read_journal
from engine.packs.pack import load_pack
from engine.reward.judge import LlmJudge
from engine.reward.judges import JUDGES, identity, judge_of, made_judge
from engine.reward.rubric import RubricScorer, reward, rubric_items
from engine.rundir.layout import RunDir
from engine.scripted.endpoint import ScriptedEndpoint
from engine.stream.reader import iter_groups
from engine.verify.replay import open_replayer
from tests.engine.judging.test_rescore import verdicts_wrong
from tests.engine.reward.test_judge import record
from tests.parts.judged_runs import invoke, judged_run, judging
from tests.parts.llm_parts import asking
from tests.parts.places import ROOT
from tests.parts.played_runs import packed, recorded

pytestmark = pytest.mark.anyio
BEFORE = ROOT / "tests" / "data/judge_of_before.sqlite"
"""What the scripted judge said of test_judge.record(): once in a run, once more when `judge audit` asked again; written
by the version before there were judges by name."""
OWN = ("scorer.judge=sim", "endpoints.sim.url=http://127.0.0.1:1", "endpoints.sim.model=scripted")
LLM = load("dry", OWN).config


class Strict(LlmJudge):
    """Another judge; that it happens to ask what the first one asks must not matter."""


@pytest.fixture
def strict(monkeypatch):
    """Its name."""
    monkeypatch.setitem(JUDGES, "strict", Strict)
    return "strict"


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """A run whose judge is gone."""
    return judged_run(tmp_path_factory.mktemp("judged"))


@pytest.fixture
def run(judged, tmp_path):
    """A copy that a test may change."""
    return RunDir(Path(shutil.copytree(judged.path, tmp_path / "copy")))


@pytest.fixture
def before(tmp_path):
    """A copy of the journal of before."""
    return Path(shutil.copy(BEFORE, tmp_path / "journal.sqlite"))


async def test_answers_of_before_are_found(before):
    """A run's, and those of an audit: by what was asked, without anybody to ask."""
    async with read_journal(before) as journal:
        asker = JournaledAsker(journal, None)
        made = await RubricScorer(judge_of(LLM, asker)).score(record())
        assert (made.value, [verdict.evidence for verdict in made.items]) == (1, [None, 1, 2, 0])
        who = identity("llm", EndpointSection(url="http://127.0.0.1:1", model="scripted"))
        again = made_judge("llm", asker, {"repeat": 1, **who})
        assert reward(await again.decide(list(rubric_items(record().task.rubric)), record())).value == 1
        for other in ({"repeat": 2, **who}, {"repeat": 1, **who, "temperature": 0.5}):
            with pytest.raises(RewardError, match="not in the journal"):
                await made_judge("llm", asker, other).decide(list(rubric_items(record().task.rubric)), record())


@pytest.mark.parametrize("order", [("llm", "strict"), ("strict", "llm")])
async def test_two_judges_on_one_journal_ask_for_themselves(tmp_path, strict, order):
    """Whoever comes first; and each finds its own answers again."""
    scripted = ScriptedEndpoint()
    async with asking(tmp_path, scripted) as asker:
        for asked, kind in enumerate(order, 1):
            config = LLM.model_copy(update={"scorer": LLM.scorer.model_copy(update={"judge_kind": kind})})
            for _ in range(2):
                await RubricScorer(judge_of(config, asker)).score(record())
            assert scripted.items == {"judge": asked}


async def decided(run, config, tasks, episode):
    """What `rescore` and `fork` make of an episode by what is recorded: its reward, or why there is none."""
    found = []
    async with rescorer(run, config, None) as scorer, open_replayer(run, config, tasks) as replayer:
        for one in (scorer, replayer.scorer):
            try:
                found.append((await one.score(ScoringRecord.of(tasks[episode.task_id], episode))).value)
            except RewardError as error:
                found.append(str(error).rpartition(": ")[2])
    return found


def test_a_judge_has_the_answers_of_a_run_only_where_it_is_the_runs_own(judged):
    """Wherever it is served; another model and another temperature are other judges."""
    tasks = {task.id: task for task in load_pack(judged.pack).tasks}
    episode = next(iter_groups(judged.trajectories)).episodes[0]

    def found(override):
        return anyio.run(decided, judged, load(judged.config, [override]).config, tasks, episode)

    assert found("endpoints.sim.url=http://127.0.0.1:2") == [episode.reward.value] * 2
    assert found("endpoints.sim.model=another") == ["not in the journal"] * 2
    assert found("endpoints.sim.temperature=0.5") == ["not in the journal"] * 2


def test_another_kind_has_none_of_them(run, strict):
    """Its verdicts are asked for, once; then they are known beside the first one's."""
    _, output = invoke("rescore", run.path, "--set", f"scorer.judge_kind={strict}")
    assert "13 episodes need the judge" in output
    with judging() as (endpoint, options):
        named = (*options, "--set", f"scorer.judge_kind={strict}")
        invoke("rescore", run.path, "--judge", *named)
        asked = endpoint.items["judge"]
        assert asked > 0
        invoke("rescore", run.path, "--judge", *named)
        invoke("rescore", run.path, "--judge", *options)
        assert endpoint.items["judge"] == asked
    for kind in (strict, "llm"):
        assert "need the judge" not in invoke("rescore", run.path, "--set", f"scorer.judge_kind={kind}")[1]


def test_another_model_is_asked_although_the_run_has_answers(run):
    """Its verdicts do not become the first one's."""
    with judging() as (endpoint, options):
        invoke("rescore", run.path, "--judge", *options)
        assert endpoint.items == {}
        other = (*options, "--set", "endpoints.sim.model=another")
        invoke("rescore", run.path, "--judge", *other)
        asked = endpoint.items["judge"]
        assert asked > 0
        invoke("rescore", run.path, "--judge", *other)
        assert endpoint.items["judge"] == asked
    assert verdicts_wrong(run).ok


def test_audits_of_two_judges_are_apart(tmp_path, strict):
    """The same episodes, the same repeats: each is asked about all of them."""
    run = recorded(tmp_path, packed(tmp_path / "shops.jsonl"))
    with judging() as (endpoint, options):
        for asked, kind in ((13, "llm"), (26, strict), (26, "llm")):
            named = ("--set", f"scorer.judge_kind={kind}")
            invoke("judge", "audit", run.path, "--repeats", "1", *options, *named)
            assert endpoint.items == {"judge": asked}


def test_a_kind_that_there_is_not_is_refused_before_a_run_starts(tmp_path):
    """With the names of those that there are."""
    named = [word for one in (*OWN, "scorer.judge_kind=wise", f"run.dir={tmp_path}") for word in ("--set", one)]
    with pytest.raises(ConfigError, match=r"scorer\.judge_kind = 'wise': there is no such judge; name one of: llm"):
        invoke("run", "--config", "dry", *named)
    assert list(tmp_path.iterdir()) == []
