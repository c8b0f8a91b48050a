"""engine.verify.fork: a recorded episode up to one of its turns as it was, and from there on live."""

import re
import shutil
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import anyio
import numpy as np
import orjson
import pytest
from anyio.from_thread import start_blocking_portal

from engine.chat.chat_format import ChatFormat
from engine.config.load import load
from engine.errors import ConfigError, RunError
from engine.packs.pack import load_pack
from engine.rundir.layout import RunDir
from engine.scripted.policy import SERVER
from engine.scripted.server import MockServer
from engine.scripted.zero_adapter import zero_adapter
from engine.serving.models import find_model
from engine.serving.served import served_apart
from engine.stream.reader import read_group
from engine.types import Outcome, StopReason
from engine.verify.fork import Fork, before, begun, find_fork, go_on
from engine.verify.run import verify_run
from tests.parts.judged_runs import invoke, judging
from tests.parts.played_runs import Script, asked_run, called, offline_run, recorded
from tests.parts.policy_parts import serving
from tests.parts.recorded_runs import GROUP_SIZE, small_pack, write_stream

TOGETHER = 3


class Together(Script):
    """The script, said only once TOGETHER turns have been asked for at once."""

    def __init__(self, chat, seed):
        super().__init__(chat, seed)
        self._asked, self._all = 0, anyio.Event()

    async def complete(self, turn):
        self._asked += 1
        if self._asked == TOGETHER:
            self._all.set()
        await self._all.wait()
        return await super().complete(turn)


class Recording(MockServer):
    """A policy server that remembers what it was asked, and with which adapters."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.bodies, self.loaded = [], {}

    def _reply(self, body, *, aborted):
        self.bodies.append(body)
        self.loaded |= self.adapters
        return super()._reply(body, aborted=aborted)


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    """A run without language models."""
    return offline_run(tmp_path_factory.mktemp("offline"))


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """A run whose tools, users and judge were played by a language model, which is gone."""
    return asked_run(tmp_path_factory.mktemp("asked"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A run on tasks of the tiny family, with an adapter for version 1 only."""
    base = tmp_path_factory.mktemp("tiny")
    run = recorded(base, small_pack(base / "small.jsonl"), **{"policy.script": "engine.scripted:GoldPolicy"})
    run.adapter(1).mkdir()
    for name, content in zero_adapter(find_model("tiny").path, 24, 48).items():
        (run.adapter(1) / name).write_bytes(content)
    return run


def episode_of(run, episode_id):
    """A recorded episode."""
    group = read_group(run.trajectories, episode_id.partition(".")[0])
    return next(episode for episode in group.episodes if episode.id == episode_id)


def played(run, episode_id, turn, *, branches=1, said=None):
    """The branches, as the command plays them."""
    group, episode = find_fork(run, episode_id, turn)
    tasks = {task.id: task for task in load_pack(run.pack).tasks}
    fork = Fork(run=run, config=load(run.config).config, tasks=tasks, group=group, episode=episode, turn=turn)
    record = anyio.run(begun, fork, said)
    with served_apart("fork", fork.config, None) as live:
        return anyio.run(go_on, fork, record, live, None, branches)


def content_of(run):
    """Every file of a run."""
    return {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file() and not path.is_symlink()}


def rows(output):
    """Episode and reward of every line of the table."""
    cells = (line.split("│")[1:3] for line in output.splitlines() if line.startswith("│ g"))
    return {episode.strip(): reward.strip() for episode, reward in cells}


# --- what is played ---------------------------------------------------------------------------------------------------


def test_branches_begin_as_recorded_and_go_on_live(offline):
    """Messages, events, ids and log-probabilities up to that turn are the record's; then each goes its way."""
    whole = episode_of(offline, "g000001.01")
    branches = played(offline, whole.id, 2, branches=GROUP_SIZE)
    known = before(whole, 2)
    assert [branch.id for branch in branches] == [f"g000001.01+02.{index:02d}" for index in range(GROUP_SIZE)]
    for branch in branches:
        assert branch.messages[: len(known.messages)] == known.messages
        assert branch.events[: len(known.events)] == known.events
        assert np.array_equal(branch.tokens.ids[: len(known.tokens.ids)], known.tokens.ids)
        assert np.array_equal(branch.tokens.logprobs[: len(known.tokens.logprobs)], known.tokens.logprobs)
        assert branch.seed == whole.seed
    # The script's lines, by the number of the branch: the second one is that of the record.
    assert [branch.messages[-1] == whole.messages[-1] for branch in branches] == [False, True, False, False]
    assert branches[1].reward == whole.reward
    assert branches[0].events[-1].text == "The code is 47."


def test_branches_are_played_at_once(offline):
    """Each waits until all of them have asked for their turn."""
    script = ("--set", "policy.script=tests.engine.verify.test_fork:Together", "--set", "limits.turn_s=30")
    _, output = invoke("fork", offline.path, "g000000.02@1", "-n", TOGETHER, *script)
    assert len(rows(output)) == 1 + TOGETHER
    assert "masked" not in output


def test_the_first_turn_can_be_played_anew(offline):
    """Then nothing but the prompt is the record's."""
    [branch] = played(offline, "g000002.03", 0)
    assert branch.messages[:2] == episode_of(offline, "g000002.03").messages[:2]
    assert branch.messages[2]["content"].startswith("<question>What quantity")


def test_what_is_said_is_that_turn_and_the_policy_goes_on(offline):
    """Its words are executed as if they were sampled, and in the ledger."""
    words = called("rush_order", item="apple")
    [branch] = played(offline, "g000000.00", 1, said=words)
    assert [event.tool for event in branch.events] == ["", "rush_order", "find_shop", "list_orders", ""]
    chat = ChatFormat.load(Path(load(offline.config).config.model.path))
    span = branch.tokens.spans[1]
    ids = branch.tokens.ids[span.start : span.start + span.length].tolist()
    assert (chat.decode(ids), chat.ended(ids)) == (words, True)
    assert branch.reward.F == 0


def test_a_policy_server_is_asked_to_go_on_from_the_recorded_tokens(tiny):
    """With the adapter of that version, which is gone from the server afterwards; over HTTP."""
    whole = episode_of(tiny, "g000001.02")
    with policy_server() as (server, options):
        code, output = invoke("fork", tiny.path, f"{whole.id}@1", "-n", "2", *options)
    assert code == 0
    assert f"{whole.id}@1: as recorded up to there, then adapter v1; branches: 2" in output
    [(name, path)] = server.loaded.items()
    assert name.startswith("fork-")
    assert (Path(path), server.adapters) == (tiny.adapter(1), {})
    assert {body["lora_path"] for body in server.bodies} == {name}
    first = [body["input_ids"] for body in server.bodies if "@01~" in body["rid"]]
    assert first == [whole.tokens.ids[: whole.tokens.spans[1].start].tolist()] * 2
    assert whole.server == SERVER


def test_the_base_goes_on_where_it_is_asked_for(tiny):
    """Also for an episode whose adapter was removed."""
    with policy_server() as (server, options):
        code, output = invoke("fork", tiny.path, "g000002.00@1", "--version", "0", *options)
    assert (code, "then the base; branches: 1" in output) == (0, True)
    assert (server.loaded, {body["lora_path"] for body in server.bodies}) == ({}, {None})


@contextmanager
def policy_server():
    """A policy server in a thread, and the options that name it."""
    mock = Recording(chat=ChatFormat.load(find_model("tiny").path), latency_s=0.0)
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(serving(mock)) as url:
        named = ("policy.launch=none", f'policy.urls=["{url}"]')
        yield mock, tuple(word for override in named for word in ("--set", override))


@pytest.mark.slow
def test_an_embedded_server_is_started_for_it(tiny):
    """With an adapter of any rank."""
    embedded = ("--set", "policy.launch=embedded")
    code, output = invoke("fork", tiny.path, "g000001.02@1", "-n", "3", *embedded)
    assert (code, len(rows(output))) == (0, 4)


# --- users, tools and judge -------------------------------------------------------------------------------------------


def test_what_a_model_answered_is_not_asked_again(asked):
    """A branch that goes the recorded way needs nobody, and comes out the same."""
    with judging() as (endpoint, options):
        code, output = invoke("fork", asked.path, "g000000.00@1", *options)
    assert (code, endpoint.items) == (0, {})
    assert rows(output)["g000000.00"] == rows(output)["g000000.00+01.00"]


def test_a_new_question_is_asked_and_nothing_of_it_is_kept(asked):
    """The user and the judge, at the endpoint; the run's files are what they were."""
    files = content_of(asked)
    with judging() as (endpoint, options):
        say = ("--say", "<question>Which item, once more?</question>")
        code, output = invoke("fork", asked.path, "g000000.00@1", *say, *options)
    assert code == 0
    assert re.search(r"@1 +agent asks +Which item, once more\?\n +user +The item is", output)
    assert set(endpoint.items) == {"user", "judge"}
    assert content_of(asked) == files


def test_a_new_call_means_the_same_as_one_that_a_sibling_made(asked):
    """A branch lives in the run's world, with all the answers that there are."""
    sibling = next(event for event in episode_of(asked, "g000000.01").events if event.tool == "find_shop")
    with judging() as (endpoint, options):
        say = ("--say", called("find_shop", street="HIGH, street"))
        _, output = invoke("fork", asked.path, "g000000.03@0", *say, *options)
    assert endpoint.items["tool"] == 1
    assert f"@0  agent calls   find_shop(street='HIGH, street')\n      tool          {sibling.text}\n" in output


def test_without_its_endpoint_a_branch_is_masked_with_the_reason(asked):
    """The address in the configuration leads nowhere."""
    say = ("--say", "<question>Which item, once more?</question>")
    code, output = invoke("fork", asked.path, "g000000.00@1", *say, "--set", "endpoints.sim.retries=0")
    assert code == 1
    assert "simulator_fault_user" in output
    assert "127.0.0.1:1" in output
    assert output.splitlines()[-1] == "no branch could be scored, 1 masked"


# --- what is printed --------------------------------------------------------------------------------------------------


def test_the_command_tells_what_came_of_it(offline):
    """The transcript from that turn on, every branch beside the record, and how many passed; the run stays as it is."""
    files = content_of(offline)
    code, output = invoke("fork", offline.path, "g000001.01@1", "-n", 2)
    assert code == 0
    assert "When?" not in output
    assert "@1  agent calls   place_order(item=' apple ', quantity=5.0)" in output
    assert set(rows(output)) == {"g000001.01", "g000001.01+01.00", "g000001.01+01.01"}
    branches = [float(rows(output)[f"g000001.01+01.0{index}"]) for index in range(2)]
    recorded_reward = episode_of(offline, "g000001.01").reward.value
    told = f"0 of 2 branches passed, mean reward {sum(branches) / 2:.2f}; recorded: {recorded_reward:.2f}"
    assert output.splitlines()[-1] == told
    assert content_of(offline) == files


def test_a_turn_has_the_number_that_show_prints(offline):
    """Each one, those without an action too; with an episode alone, the latest run is meant."""
    whole = episode_of(offline, "g000000.02")
    _, shown = invoke("show", offline.path, whole.id)
    assert re.findall(r"^  @(\d+)", shown, re.MULTILINE) == [str(turn) for turn in range(whole.turns)]
    assert re.search(r"@1 +agent writes +<tool_call>nothing\n +tool error +\{\"error\":\"malformed call", shown)
    code, output = invoke("fork", f"{whole.id}@{whole.turns - 1}", "--dir", offline.path.parent)
    assert (code, re.findall(r"^  @(\d+)", output, re.MULTILINE)) == (0, [str(whole.turns - 1)])


def test_words_are_no_markup(offline):
    """Neither those that are said nor those of a policy."""
    _, output = invoke("fork", offline.path, "g000000.00@1", "--say", "<answer>[bold]Done[/].</answer>")
    assert "agent answers [bold]Done[/].\n" in output


# --- what cannot be done ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("g000000.09@0",), "it has no episode g000000.09; `synth-engine show"),
        (("g000000.00@4",), r"g000000.00 has 4 turns, 0 to 3: there is no g000000.00@4"),
        (("g000000.00",), "'g000000.00' names no turn of an episode: write EPISODE@TURN"),
        (("g000000.00@1", "--version", "2"), "--version has no effect with policy.launch = 'scripted'"),
        (("g000000.00@1", "--say", "word " * 500), r"--say has \d+ tokens, more than a turn may have"),
    ],
)
def test_a_wrong_place_is_named(offline, arguments, reason):
    """With what there is instead."""
    with pytest.raises(ConfigError, match=reason):
        invoke("fork", offline.path, *arguments)


def test_a_run_that_is_not_there_is_named(tmp_path):
    """As everywhere."""
    with pytest.raises(ConfigError, match="no run 'gone'"):
        invoke("fork", "gone", "g000000.00@1", "--dir", tmp_path)


def test_an_adapter_that_was_removed_is_named_with_those_there_are(tiny):
    """Before anything starts."""
    with pytest.raises(
        ConfigError, match=r"it has no adapter 2 \(any more\); pass --version 0 \(the base\), or one of: 1"
    ):
        invoke("fork", tiny.path, "g000002.00@1", "--set", "policy.launch=embedded")


def changed(run, tmp_path, change):
    """A copy of the run whose first episode was changed."""
    copy = RunDir(Path(shutil.copytree(run.path, tmp_path / "copy", symlinks=True)))
    group = read_group(run.trajectories, "g000000")
    write_stream(copy, copy.trajectories, [replace(group, episodes=(change(group.episodes[0]), *group.episodes[1:]))])
    return copy


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"outcome": Outcome.INFRA_ERROR, "stop": StopReason.WALL_CLOCK, "reward": None}, r"is masked \(infra_error\)"),
        ({"tokens": None}, "has no token ids"),
    ],
)
def test_what_cannot_be_executed_again_is_refused(offline, tmp_path, changes, reason):
    """A masked episode, and one that no policy could go on from."""
    run = changed(offline, tmp_path, lambda episode: replace(episode, **changes))
    with pytest.raises(ConfigError, match=f"g000000.00 {reason}"):
        invoke("fork", run.path, "g000000.00@1")


def test_a_past_that_comes_out_differently_ends_it(offline, tmp_path):
    """With the first difference and the way to see more; a fork before it works."""

    def altered(episode):
        observation = orjson.dumps({"code": "48"}).decode()
        messages = [
            message | {"content": observation} if "47" in message["content"] else message
            for message in episode.messages
        ]
        return replace(episode, messages=tuple(messages))

    run = changed(offline, tmp_path, altered)
    assert anyio.run(verify_run, run, ["g000000.00"], lambda done, total: None).differences
    with pytest.raises(
        RunError, match=r"before turn 2 comes out differently now: message 5, .*see `synth-engine verify"
    ):
        invoke("fork", run.path, "g000000.00@2")
    assert invoke("fork", run.path, "g000000.00@1")[0] == 0
