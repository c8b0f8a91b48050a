"""engine.verify: what was recorded comes out again without network, and whatever was changed meanwhile is found."""

import math
import shutil
import socket
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import anyio
import orjson
import pytest
import zstandard
from click.testing import CliRunner

from engine.cli import cli
from engine.config.load import load
from engine.rundir.layout import RunDir, read_json, write_json
from engine.schema.canonical import with_defaults
from engine.serving.models import sha256
from engine.stream.digest import transcript_sha256
from engine.stream.reader import iter_groups
from engine.types import Outcome, StopReason
from engine.verify.compare import difference
from engine.verify.run import verify_run
from tests.parts.played_runs import EPISODES, asked_run, offline_run, packed, recorded
from tests.parts.recorded_runs import write_stream


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    """A run without language models."""
    return offline_run(tmp_path_factory.mktemp("offline"))


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """A run whose tools, users and judge were played by a language model, which is gone."""
    return asked_run(tmp_path_factory.mktemp("asked"))


@pytest.fixture(autouse=True)
def no_network(offline, asked, monkeypatch):
    """Once the runs are recorded, nobody connects to anything."""

    def refused(*_):
        raise AssertionError("verify opened a connection")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)


def copied(run, tmp_path):
    """A copy of the run that a test may change."""
    return RunDir(Path(shutil.copytree(run.path, tmp_path / "copy", symlinks=True)))


def verified(run, *episodes):
    """What comes out."""
    return anyio.run(verify_run, run, episodes, lambda done, total: None)


def invoke(*arguments):
    """The command's exit code and output."""
    result = CliRunner().invoke(cli, ["verify", *map(str, arguments)], catch_exceptions=False)
    return result.exit_code, result.output


def differences(run):
    """Episode and place of every difference."""
    return {(found.episode, found.where) for found in verified(run).differences}


# --- nothing was changed ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["offline", "asked"])
def test_what_was_recorded_comes_out_again(request, kind):
    """Training and evaluation, by the command; nothing in the run directory is touched."""
    run = request.getfixturevalue(kind)
    before = {path: path.stat().st_mtime_ns for path in sorted(run.path.rglob("*"))}
    code, output = invoke(run.path)
    assert (code, output.splitlines()[-1]) == (0, f"{EPISODES} episodes verified: {EPISODES} identical")
    assert {path: path.stat().st_mtime_ns for path in sorted(run.path.rglob("*"))} == before
    stops = {episode.stop for group in iter_groups(run.trajectories) for episode in group.episodes}
    assert stops == {StopReason.ANSWER, StopReason.TURNS} or kind == "asked"


def test_the_journal_answers_for_tools_users_and_judge(asked):
    """All three were asked, and their exchanges are counted."""
    exchanges = verified(asked).exchanges
    assert set(exchanges.accepted) == {"tool", "user", "judge"}
    code, output = invoke(asked.path)
    assert (code, "every row is sound" in output) == (0, True)


def test_one_episode_alone_with_its_hash(offline):
    """With the run or, where that is the latest, without; the hash is the record's."""
    [*_, group] = iter_groups(offline.trajectories)
    digest = transcript_sha256(group.episodes[2])
    told = f"{group.episodes[2].id}: identical, sha256 {digest}\n1 episode verified: 1 identical\n"
    assert invoke(offline.path, group.episodes[2].id) == (0, told)
    assert invoke(group.episodes[2].id, "--dir", offline.path.parent) == (0, told)
    assert invoke("e00000-0003.00", "--dir", offline.path.parent)[0] == 0


@pytest.mark.parametrize("name", ["g000000.09", "g000077.00", "e00009-0001.00", "latest"])
def test_an_episode_that_is_not_there_is_named(offline, name):
    """With the way to find one."""
    result = CliRunner().invoke(cli, ["verify", str(offline.path), name])
    assert result.exit_code
    assert f"it has no episode {name}; `synth-engine show" in str(result.exception)


def test_masked_episodes_are_counted(tmp_path, offline):
    """They depend on time and faults."""
    run, groups = copied(offline, tmp_path), list(iter_groups(offline.trajectories))
    masked = {"outcome": Outcome.INFRA_ERROR, "stop": StopReason.WALL_CLOCK, "reward": None}
    first = groups[0]
    groups[0] = replace(first, episodes=(replace(first.episodes[0], **masked), *first.episodes[1:]))
    write_stream(run, run.trajectories, groups)
    code, output = invoke(run.path)
    assert code == 0
    assert "not verified, for time and faults made them: 1 infra_error" in output
    assert f"{EPISODES - 1} episodes verified: {EPISODES - 1} identical" in output


def test_seeded_faults_are_executed_without_waiting(tmp_path, monkeypatch):
    """Garbage and refusals come again at the same calls; what hung or failed was masked; delays are left out."""
    faults = "'*: garbage=0.2, flaky=0.2, timeout=0.05, error=0.05, latency_s=0.05'"
    run = recorded(tmp_path, packed(tmp_path / "shops.jsonl"), **{"world.faults": faults, "limits.turn_s": 0.5})
    texts = [event.text for group in iter_groups(run.trajectories) for event in _events(group)]
    assert any(text.endswith("502</html>{") for text in texts)
    assert any("temporarily unavailable" in text for text in texts)
    waits: list[float] = []

    async def sleep(delay: float = math.inf) -> None:
        waits.append(delay)

    monkeypatch.setattr(anyio, "sleep", sleep)
    monkeypatch.setattr(anyio, "sleep_forever", sleep)
    result = verified(run)
    assert not any(waits)
    assert result.identical == EPISODES - result.not_verified.total() > 0


def _events(group):
    return [event for episode in group.episodes for event in episode.events]


# --- something was changed --------------------------------------------------------------------------------------------


def repacked(run, change, *, known=True):
    """The run's copy of its tasks with `change` made to each; `known`: the manifest says so."""
    header, *tasks = zstandard.ZstdDecompressor().stream_reader(run.pack.read_bytes()).read().splitlines()
    lines = b"\n".join([header, *(orjson.dumps(change(orjson.loads(task))) for task in tasks)])
    run.pack.write_bytes(zstandard.ZstdCompressor().compress(lines))
    if known:
        write_json(run.manifest, {**read_json(run.manifest), "pack_sha256": sha256(run.pack)})


def stricter(task):
    """One check wants something else."""
    task["rubric"]["subgoals"][0]["check"]["called"]["arguments"] = {"properties": {"quantity": {"const": 6}}}
    return task


def test_a_changed_check_is_found(tmp_path, offline):
    """In the one episode of each group whose verdict it changes, by the verdict."""
    run = copied(offline, tmp_path)
    repacked(run, stricter)
    first = {f"g{position:06d}.00" for position in range(3)} | {"e00000-0003.00"}
    assert differences(run) == {(episode, "verdict subgoal/ordered") for episode in first}
    code, output = invoke(run.path)
    assert code == 1
    assert "g000001.00: verdict subgoal/ordered\n  expected  " in output
    assert f"{EPISODES} episodes verified: {EPISODES - 4} identical, 4 different" in output


def test_a_changed_check_without_effect_is_found(tmp_path, offline):
    """By the hash of the tasks, which the manifest has."""
    run = copied(offline, tmp_path)
    repacked(run, lambda task: task, known=False)
    code, output = invoke(run.path)
    assert code == 1
    assert "pack.jsonl.zst is not what the run began with: sha256" in output
    assert f"{EPISODES} identical" in output


@pytest.mark.parametrize("kind", ["offline", "asked"])
def test_a_broken_canonicalization_is_found(request, monkeypatch, kind):
    """Arguments as they were written: a white space too many is another fruit."""
    run = request.getfixturevalue(kind)
    monkeypatch.setattr("engine.world.admission.canonical_object", with_defaults)
    found = {episode for episode, _ in differences(run)}
    assert {f"g{position:06d}.00" for position in range(3)} <= found


def test_an_altered_completion_is_found(tmp_path, offline):
    """A token of the record that its text does not have."""
    run, groups = copied(offline, tmp_path), list(iter_groups(offline.trajectories))
    tokens = groups[1].episodes[1].tokens
    tokens.ids[tokens.spans[1].start + 9] += 1
    write_stream(run, run.trajectories, groups)
    [found] = verified(run).differences
    assert (found.episode, found.where.split()[0]) == ("g000001.01", "message")


def test_a_shorter_record_is_found(offline):
    """The replay goes on where the record ends, or ends where the record goes on."""
    [group, *_] = iter_groups(offline.trajectories)
    whole = group.episodes[0]
    shorter = replace(whole, messages=whole.messages[:-1])
    last = len(shorter.messages)
    assert difference(shorter, whole)[1:3] == (f"message {last}", "nothing")
    assert difference(whole, shorter).found == "nothing"
    assert difference(whole, replace(whole, final_state={"orders": {}})).where == "final state"
    assert difference(whole, replace(whole, stop=StopReason.TURNS)).where == "stop reason"
    assert difference(whole, whole) is None


def test_an_answer_that_is_not_in_the_journal_is_found(tmp_path, asked):
    """Nobody is asked in its place."""
    run = copied(asked, tmp_path)
    with closing(sqlite3.connect(run.journal)) as connection, connection:
        connection.execute("DELETE FROM exchanges WHERE role = 'tool' AND task = 'shop-1'")
    result = verified(run)
    assert {found.episode.partition(".")[0] for found in result.differences} == {"g000001"}
    assert all("shop-1: tool simulator: not in the journal" in found.error for found in result.differences)


def test_an_altered_byte_of_the_journal_is_found(tmp_path, asked):
    """By the whole run, whichever exchange it is."""
    run = copied(asked, tmp_path)
    content = run.journal.read_bytes()
    at = content.rindex(b'"says":"The ') + 12
    run.journal.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    result = CliRunner().invoke(cli, ["verify", str(run.path)])
    assert result.exit_code == 1
    assert "was altered after it was written; restore the file from a copy" in str(result.exception)


@pytest.mark.parametrize("missing", ["journal", "model"])
def test_what_is_missing_is_named(tmp_path, asked, missing):
    """With what is needed."""
    run = copied(asked, tmp_path)
    if missing == "journal":
        run.journal.unlink()
    else:
        config = run.config.read_text(encoding="utf-8")
        run.config.write_text(config.replace(load(run.config).config.model.path, str(tmp_path / "gone")), "utf-8")
    result = CliRunner().invoke(cli, ["verify", str(run.path)])
    assert result.exit_code
    assert {"journal": "this needs a journal", "model": "the run's model is gone"}[missing] in str(result.exception)
