"""Worlds, users, scorers and advantages of one's own: the examples play, and what cannot work says so before a run."""

import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from engine.config.load import load
from engine.config.plugins import plugins
from engine.core.seams import ScoringRecord
from engine.errors import ConfigError, RunError
from engine.packs.pack import load_pack
from engine.preflight.rehearsal import rehearse, try_here
from engine.rundir.layout import RunDir, read_lines
from engine.stream.reader import iter_groups
from engine.types import Event, EventKind, StopReason
from learner.advantage import find_advantage
from learner.forming import usable_group
from tests.parts.learner_runs import make_group
from tests.parts.places import EXAMPLES

PROGRAM = Path(sys.executable).with_name("synth-engine")
SHORT = ("run.steps=1", "schedule.groups_per_step=2", "schedule.group_size=6", "eval.heldout_tasks=0", "eval.every=0")


@pytest.fixture
def copied(tmp_path):
    """A directory of somebody's, with the examples in it."""
    return Path(shutil.copytree(EXAMPLES, tmp_path / "mine"))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """`here(source)` is the name of a module with that source, in the directory that the program was started in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def written(source):
        name = f"somebodys_{random.getrandbits(64):x}"
        (tmp_path / f"{name}.py").write_text(source)
        return name

    return written


def program(directory, *arguments):
    """The installed command, run in a directory: beside it there is none of somebody's modules."""
    done = subprocess.run([PROGRAM, *arguments], cwd=directory, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def settings(*overrides):
    """`--set` for each."""
    return [word for override in overrides for word in ("--set", override)]


# --- the examples ---------------------------------------------------------------------------------------------------


def test_the_examples_are_played(copied):
    """World, user and scorer of the current directory, by name: perfect episodes of the script are rewarded as such."""
    code, said = program(copied, "eval", "--config", "library.toml")
    assert code == 0, said
    assert "reward 1.000" in said
    assert "0 masked" in said


@pytest.mark.slow
def test_the_examples_run_and_are_verified_and_forked(copied):
    """In a run's own processes; nothing in them depends on anything but task, seed and what was said."""
    code, said = program(copied, "run", "--config", "library.toml", "--plain")
    assert code == 0, said
    assert "audit: every promise was kept" in said
    code, said = program(copied, "verify")
    assert code == 0, said
    episodes = [
        episode for group in iter_groups(RunDir(copied / "runs" / "library").trajectories) for episode in group.episodes
    ]
    assert {episode.final_state["lent"].get("The Sea Road", "R4417") for episode in episodes} == {"R4417", "R0001"}
    replies = {message["content"] for episode in episodes for message in episode.messages if message["role"] == "user"}
    assert len(replies) > len({episode.task_id for episode in episodes}) * 3
    whole = next(episode for episode in episodes if episode.turns > 1 and episode.reward)
    code, said = program(copied, "fork", f"{whole.id}@1", "-n", "2")
    assert code == 0, said
    assert [f"{whole.id}+01.{branch:02d}" in said for branch in range(3)] == [True, True, False]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_the_example_of_an_advantage_trains(copied, ranks):
    """In the learner's process, or in several."""
    words = settings(*SHORT, "learner.advantage=advantages:ranks", f"learner.ranks={ranks}")
    code, said = program(copied, "run", "--config", "tiny", "--plain", *words)
    assert code == 0, said
    [step] = read_lines(RunDir(copied / "runs" / "tiny").learner / "steps.jsonl")
    for group in step["groups"]:
        assert sum(group["advantages"]) == pytest.approx(0.0)
        assert max(map(abs, group["advantages"])) <= 1.0


@pytest.mark.parametrize(("name", "expected"), [("leave_one_out", [-1.5, 1.5, 0.0]), ("ranks", [-1.0, 1.0, 0.0])])
def test_the_advantages_form_a_step(monkeypatch, name, expected):
    """By the learner's own forming; a masked episode stays outside."""
    monkeypatch.chdir(EXAMPLES)
    monkeypatch.setattr(sys, "path", list(sys.path))
    usable = usable_group(make_group(0, rewards=[1.0, 3.0, 2.0, None]), find_advantage(f"advantages:{name}"), version=0)
    assert list(usable.advantages) == [*map(pytest.approx, expected), None]


def test_the_example_of_a_scorer_takes_off_for_words(monkeypatch):
    """Up to thirty words to the user are free, what tools are told is not counted, and there is a bound."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from brief_scorer import penalty  # noqa: PLC0415 - it is importable there only

    def record(words):
        said = {EventKind.SAID: "so " * words, EventKind.CALLED: "so " * 99}
        events = [Event(number=i, turn=i, kind=kind, text=text) for i, (kind, text) in enumerate(said.items())]
        [task, *_] = load_pack(EXAMPLES / "library.jsonl").tasks
        return ScoringRecord(task=task, messages=(), events=events, final_state={}, stop=StopReason.ANSWER)

    assert [penalty(record(words)) for words in (0, 30, 32, 900)] == [0.0, 0.0, pytest.approx(0.01), 0.3]


# --- what cannot work ------------------------------------------------------------------------------------------------

WORLD = """
from engine.types import Observation
class Session:
    async def call(self, call): {call}
    async def close(self): {close}
class World:
    def __init__(self{needs}): {made}
    async def open(self, task, seed): {open}
"""
GOOD_WORLD = {
    "call": "return Observation(content='{}', ok=True)",
    "close": "return {}",
    "needs": "",
    "made": "pass",
    "open": "return Session()",
}


def tried(*overrides):
    """A rehearsal of these objects on the example's tasks."""
    try_here(load("tiny", overrides).config, load_pack(EXAMPLES / "library.jsonl").tasks)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"made": "self.db = missing"}, r"making one, without arguments, raised NameError: .*\.py, line 7\)"),
        ({"needs": ", path"}, "making one, without arguments, raised TypeError: .*'path'"),
        ({"open": "return None"}, r"call\(.*AttributeError: 'NoneType' object has no attribute 'call'"),
        ({"open": "raise KeyError('books')"}, r"open\(task, seed\) raised KeyError: 'books' .*line 8"),
        (
            {"open": "import anyio; await anyio.sleep(9)"},
            r"open\(task, seed\) gave no answer within limits.turn_s = 0.5",
        ),
        ({"call": "return '{}'"}, "returned str, not engine.types.Observation"),
        ({"call": "return Observation(content={}, ok=True)"}, "the Observation: the text is dict, not str"),
        ({"call": "return call.arguments['title']"}, r"find_book.*raised KeyError: 'title' .*line 4"),
        (
            {"call": "return Observation(content='\\ud83d', ok=True)"},
            r"the Observation: half a surrogate pair \(\\ud83d\)",
        ),
        ({"close": "return {'n': [float('nan')]}"}, r"close\(\) .* no record can hold: n\.0: nan is no JSON number"),
        ({"close": "return {1: 2}"}, r"close\(\) .* no record can hold: a key is int, not str"),
        ({"close": "return {1j}"}, r"close\(\) of its session returned what no record can hold: set is no JSON value"),
    ],
)
def test_a_world_that_cannot_work_is_told(here, change, said):
    """Key, object, what was asked of it and what came of that, with the line where there is one; and where to read."""
    module = here(WORLD.format(**{**GOOD_WORLD, **change}))
    with pytest.raises(ConfigError, match=said) as caught:
        tried(f"world.kind={module}:World", "limits.turn_s=0.5")
    assert str(caught.value).startswith(f"world.kind = '{module}:World': ")


def test_a_world_that_can_work_is_not_complained_of(here):
    """Nor one whose simulator just fails: that is what ToolError is for."""
    tried(f"world.kind={here(WORLD.format(**GOOD_WORLD))}:World")
    failing = GOOD_WORLD | {"call": "from engine.errors import ToolError; raise ToolError('down')"}
    tried(f"world.kind={here(WORLD.format(**failing))}:World")


IMPORTS = "import numpy as np\nfrom engine.types import Reward\n"
SET_USER = """
from engine.types import Reply
class User:
    async def open(self, *_): return self
    async def reply(self, said): return Reply(text=said, revealed={'title'})
"""


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("", "module .* has no 'User'; name what it defines: nothing"),
        ("import no_such_thing", r"cannot import it \(No module named 'no_such_thing'\); start this in the directory"),
        ("def User(:", "importing it raised SyntaxError"),
        ("1 / 0", r"importing it raised ZeroDivisionError: .*line 1\)"),
        ("class User:\n    def open(self, *_): return self", r"open\(task, seed, session\) is not `async def`"),
        ("class User: pass", r"open\(.*AttributeError: 'User' object has no attribute 'open'"),
        (
            "class User:\n    async def open(self, *_): return self\n    async def reply(self, said): return said",
            r"reply\('Hello\?'\) of its session: returned str, not engine\.types\.Reply",
        ),
        (
            SET_USER,
            r"reply\('Hello\?'\) of its session: what the Reply revealed is set, not a tuple of names",
        ),
    ],
)
def test_a_user_that_cannot_work_is_told(here, source, said):
    """The same of a module that cannot even be imported."""
    module = here(source)
    with pytest.raises(ConfigError, match=said) as caught:
        tried(f"user.kind={module}:User")
    assert str(caught.value).startswith(f"user.kind = '{module}:User': ")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("0.5", "returned float, not engine.types.Reward"),
        ("Reward(value=float('nan'), F=1, N=1, I=1)", "the Reward: value: nan is no JSON number"),
        ("Reward(value=1, F=1, N=1, I=1, items=['met'])", "the items of the Reward are not all engine.types.Verdict"),
        ("Reward(value=np.float64(1), F=1, N=1, I=1)", "the Reward: value: numpy.float64 is no JSON value"),
        ("Reward(value=1, F=1, N=1, I=1, items=iter([]))", "the items of the Reward are not all engine.types.Verdict"),
        ("Reward(value=None, F=1, N=1, I=1)", "the value of the Reward is NoneType, not a number"),
    ],
)
def test_a_scorer_that_cannot_work_is_told(here, value, said):
    """A reward that no record could hold."""
    source = f"class Scorer:\n    async def score(self, record): return {value}"
    with pytest.raises(ConfigError, match=said):
        tried(f"scorer.kind={here(IMPORTS + source)}:Scorer")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return [1 / 0]", "ZeroDivisionError"),
        ("return [0.0]", "it returned .0.0., not as many finite numbers"),
        ("return [float('inf')] * len(rewards)", "not as many finite numbers"),
        ("return None", "TypeError"),
    ],
)
def test_an_advantage_that_cannot_work_is_told(here, body, said):
    """Before a run; and where it works for three rewards but not for others, by the learner."""
    module = here(f"def mine(rewards, group_id):\n    {body}")
    with pytest.raises(ConfigError, match=said):
        tried(f"learner.advantage={module}:mine")
    with pytest.raises((ConfigError, RunError), match=r"learner\.advantage.*g000000|g000000: learner\.advantage"):
        usable_group(make_group(0), find_advantage(f"{module}:mine"), version=0)


def test_a_run_with_a_plugin_that_cannot_work_is_not_made(tmp_path):
    """One sentence, exit code 2, no directory; the simulated learner has no use for an advantage, so none is tried."""
    (tmp_path / "mine.py").write_text("class World:\n    async def open(self, task): ...\n")
    code, said = program(tmp_path, "run", "--config", "dry", *settings("world.kind=mine:World"))
    assert code == 2
    assert "world.kind = 'mine:World': open(task, seed) raised TypeError: World.open() takes 2 positional" in said
    assert "Traceback" not in said
    assert not (tmp_path / "runs").exists()


def test_without_a_plugin_nothing_is_tried(tmp_path):
    """No process is started, the pack is not read."""
    config = load("tiny").config
    assert plugins(config) == {}
    rehearse(config, tmp_path / "none")
