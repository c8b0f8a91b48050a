"""engine.audit: a sound run passes, and each planted fault is found by exactly the check that is meant for it."""

from dataclasses import replace

import orjson
import pytest
import zstandard
from click.testing import CliRunner

from engine.audit.check import RunRecords
from engine.audit.run import audit
from engine.commands.audit import command
from engine.rundir.layout import write_json
from engine.stream.segment import CLOSED
from engine.telemetry import engine_metrics as keys
from engine.types import Outcome, Span, TurnTiming
from tests.parts.recorded_runs import SERVER, RecordedRun, advantages, small_pack, write_state


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    """Eight tasks of the tiny family."""
    return small_pack(tmp_path_factory.mktemp("pack") / "small.jsonl")


@pytest.fixture
def recorded(tmp_path, pack):
    """A sound run, not written yet."""
    return RecordedRun.make(tmp_path, pack)


def broken(run):
    """Name and count of every check that found something."""
    return {finding.name: finding.count for finding in audit(RunRecords.read(run)) if not finding.ok}


def with_episode(recorded, group, index, **changes):
    """Replace fields of one training episode."""
    episode_group = recorded.groups[group]
    episodes = list(episode_group.episodes)
    episodes[index] = replace(episodes[index], **changes)
    recorded.groups[group] = replace(episode_group, episodes=tuple(episodes))


def test_a_sound_run_keeps_every_promise(recorded):
    """No check cries wolf, and each says how much it looked at."""
    findings = audit(RunRecords.read(recorded.write()))
    assert [finding.name for finding in findings if not finding.ok] == []
    assert not any(finding.checked.startswith(("0 ", "none")) for finding in findings if "swap" not in finding.name)


def test_an_episode_of_two_versions_is_found(recorded):
    """One token span of another version than the pin."""
    episode = recorded.groups[2].episodes[1]
    spans = (Span(start=3, length=2, version=1), Span(start=5, length=2, version=2))
    with_episode(recorded, 2, 1, tokens=replace(episode.tokens, spans=spans))
    assert broken(recorded.write()) == {"episodes_mixed_versions": 1}


def test_a_pause_across_a_load_is_found(recorded):
    """A request that stood still for a second while its server loaded an adapter; the same second elsewhere is none."""
    recorded.swaps.append(
        {"event": "load", "server": SERVER, "adapter": "x", "version": 9, "start_s": 60.0, "end_s": 61.0, "ok": True}
    )
    with_episode(recorded, 0, 0, timings=(TurnTiming(turn=0, phase="policy", start_s=59.9, end_s=61.1),))
    assert broken(recorded.write()) == {"requests_paused_by_swap": 1}


def test_a_slow_request_is_no_pause_by_itself(recorded):
    """Overlapping a load is no pause: it must be over 3 x p99 of the others by half a second."""
    recorded.swaps.append(
        {"event": "load", "server": SERVER, "adapter": "x", "version": 9, "start_s": 60.0, "end_s": 60.1, "ok": True}
    )
    with_episode(recorded, 0, 0, timings=(TurnTiming(turn=0, phase="policy", start_s=59.9, end_s=60.9),))
    assert broken(recorded.write()) == {}


def test_another_servers_load_is_no_excuse_and_no_fault(recorded):
    """Loads count against the requests of their own server only."""
    recorded.swaps.append(
        {"event": "load", "server": "http://b", "adapter": "x", "version": 9, "start_s": 60.0, "end_s": 61, "ok": True}
    )
    with_episode(recorded, 0, 0, timings=(TurnTiming(turn=0, phase="policy", start_s=59.9, end_s=61.1),))
    assert broken(recorded.write()) == {}


def test_waiting_for_a_restart_is_no_pause(recorded):
    """A request that met its server's restart waited for that, not for the load that followed."""
    swap = {"server": SERVER, "start_s": 60.0, "end_s": 61.0, "ok": True}
    recorded.swaps += [{**swap, "event": "load", "adapter": "x", "version": 9}, {**swap, "event": "restart"}]
    with_episode(recorded, 0, 0, timings=(TurnTiming(turn=0, phase="policy", start_s=59.9, end_s=61.1),))
    assert broken(recorded.write()) == {}


def test_a_server_that_was_only_silent_is_no_excuse(recorded):
    """It stood still across the load: that it also missed its health checks makes it no restart."""
    swap = {"server": SERVER, "start_s": 60.0, "end_s": 61.0, "ok": True}
    recorded.swaps += [{**swap, "event": "load", "adapter": "x", "version": 9}, {**swap, "event": "down"}]
    with_episode(recorded, 0, 0, timings=(TurnTiming(turn=0, phase="policy", start_s=59.9, end_s=61.1),))
    assert broken(recorded.write()) == {"requests_paused_by_swap": 1}


@pytest.mark.parametrize("event", ["abort", "retry"])
def test_an_abort_across_a_load_is_found(recorded, event):
    """A request that was broken off counts where it overlaps a load or unload of its server, and only there."""
    abort = {"event": event, "server": SERVER, "adapter": "x", "turn": "g000000.00@00", "ok": False}
    recorded.swaps += [
        {**abort, "start_s": 100.05, "end_s": 100.3},
        {**abort, "start_s": 200.0, "end_s": 201.0},
    ]
    assert broken(recorded.write()) == {"requests_aborted_by_swap": 1}


def test_what_a_killed_server_broke_off_is_not_the_swaps_doing(recorded):
    """Its requests end a moment before anybody knows of the restart."""
    retry = {"event": "retry", "server": SERVER, "adapter": "x", "turn": "g000000.00@00", "ok": False}
    restart = {"event": "restart", "server": SERVER, "start_s": 100.9, "end_s": 103.0, "ok": True}
    recorded.swaps += [{**retry, "start_s": 100.0, "end_s": 100.4}, restart]
    assert broken(recorded.write()) == {}


def test_a_turn_that_was_moved_is_no_pause_and_no_abort(recorded):
    """It waited for a server that was silent across a load of its new one: the load is not to blame."""
    swap = {"event": "load", "server": SERVER, "adapter": "x", "version": 9, "start_s": 60.0, "end_s": 61.0, "ok": True}
    silent = {**swap, "server": "http://b", "ok": False}
    moved = {"event": "moved", "server": "http://b", "adapter": "x", "turn": "g000000.00@00", "ok": False}
    recorded.swaps += [swap, silent, {**moved, "start_s": 59.9, "end_s": 60.9}]
    with_episode(recorded, 0, 0, timings=(TurnTiming(turn=0, phase="policy", start_s=59.9, end_s=61.1),))
    assert broken(recorded.write()) == {}


def test_a_group_trained_twice_is_found(recorded):
    """All its trained episodes count."""
    recorded.steps[2]["groups"][0] = recorded.steps[1]["groups"][0] | {"staleness": 1}
    assert broken(recorded.write()) == {"episodes_trained_twice": 4}


def test_a_step_that_is_missing_is_found(recorded):
    """Versions grow by one."""
    del recorded.steps[1]
    assert broken(recorded.write()) == {"episodes_trained_twice": 0}


def test_a_lost_group_is_found(recorded):
    """A group that a step trained and the stream does not have: its four episodes are lost."""
    recorded.groups.pop()
    assert broken(recorded.write()) == {"episodes_lost": 4}


def test_a_short_stream_is_found_by_its_own_count(recorded):
    """closed.json counts one group more than can be read."""
    run = recorded.write()
    write_json(run.trajectories / CLOSED, {"segments": 1, "frames": 7})
    assert broken(run) == {"episodes_lost": 4}


def test_a_group_written_twice_is_found(recorded):
    """Emit-once."""
    recorded.groups.append(recorded.groups[0])
    assert broken(recorded.write()) == {"groups_emitted_twice": 1}


def test_a_partial_group_is_found(recorded):
    """A group is written whole."""
    recorded.groups[0] = replace(recorded.groups[0], episodes=recorded.groups[0].episodes[:3])
    assert broken(recorded.write()).keys() == {"groups_emitted_twice", "advantages_wrong"}


def test_a_stale_group_is_found(recorded):
    """A group two versions behind under a bound of one."""
    recorded.steps[0]["groups"][0], recorded.steps[2]["groups"][0] = (
        recorded.steps[2]["groups"][0],
        recorded.steps[0]["groups"][0] | {"staleness": 2},
    )
    found = broken(recorded.write())
    assert found == {"groups_too_stale": 2}


def test_wrong_advantages_are_found(recorded):
    """One number of one group."""
    recorded.steps[0]["groups"][1]["advantages"][2] += 0.01
    assert broken(recorded.write()) == {"advantages_wrong": 1}


def test_a_wrong_reward_is_found(recorded):
    """A reward that does not follow from the events."""
    reward = recorded.groups[4].episodes[0].reward
    with_episode(recorded, 4, 0, reward=replace(reward, value=0.9))
    assert broken(recorded.write()).keys() == {"rewards_wrong", "advantages_wrong"}


def test_a_scored_fault_is_found(recorded):
    """A simulator's fault must be masked."""
    with_episode(recorded, 4, 0, outcome=Outcome.TOOL_FAULT)
    assert broken(recorded.write()) == {"outcomes_contradicted": 1}


def test_a_fault_that_nobody_tells_of_is_found(recorded):
    """Whatever masks an episode is said."""
    with_episode(recorded, 4, 0, outcome=Outcome.USER_FAULT, reward=None)
    recorded.steps[2]["groups"][0]["advantages"] = advantages(recorded.groups[4])
    assert broken(recorded.write()) == {"outcomes_contradicted": 1}


def test_outcomes_are_counted_and_add_up(recorded):
    """What the engine counted, over its restarts, is in the stream; the table says how many there are of each."""
    with_episode(recorded, 4, 0, outcome=Outcome.JUDGE_FAULT, reward=None, error="no verdict")
    recorded.steps[2]["groups"][0]["advantages"] = advantages(recorded.groups[4])
    for row, finished, masked in zip(recorded.rows, (12, 20, 2, 4), (0, 1, 0, 0), strict=True):
        row |= {keys.EPISODES_FINISHED: finished, keys.EPISODES_MASKED: masked}
    run = recorded.write()
    [outcomes] = [one for one in audit(RunRecords.read(run)) if one.name == "outcomes_contradicted"]
    assert (outcomes.ok, outcomes.checked) == (True, "28 episodes: 27 agent_fail + 1 simulator_fault_judge")


def test_an_episode_that_was_counted_and_is_not_there_is_found(recorded):
    """One that ended without a reward, here."""
    recorded.rows[-1] |= {keys.EPISODES_FINISHED: 24, keys.EPISODES_MASKED: 1}
    assert broken(recorded.write()) == {"outcomes_contradicted": 1}


def judged(recorded, evidence):
    """Judge one episode's last item of its first group, and say so in its task; the reward stays the same."""
    episode = recorded.groups[0].episodes[1]
    *others, last = episode.reward.items
    assert last.met
    verdicts = (*others, replace(last, by="judge", evidence=evidence))
    with_episode(recorded, 0, 1, reward=replace(episode.reward, items=verdicts))
    run = recorded.write()
    header, *tasks = map(
        orjson.loads, zstandard.ZstdDecompressor().stream_reader(run.pack.read_bytes()).read().splitlines()
    )
    for task in tasks:
        if task["id"] == episode.task_id:
            del task["rubric"]["interactions"][-1]["check"]
    run.pack.write_bytes(zstandard.ZstdCompressor().compress(b"\n".join(map(orjson.dumps, [header, *tasks]))))
    return run


def test_a_judges_verdict_is_what_it_was(recorded):
    """Nobody judges again; the episodes of the task that no judge looked at cannot be scored any more."""
    [rewards] = [one for one in audit(RunRecords.read(judged(recorded, 0))) if one.name == "rewards_wrong"]
    assert "g000000.01" not in rewards.violations[0]
    assert rewards.count == 3


def test_a_verdict_without_evidence_is_found(recorded):
    """The event that it names must be there."""
    [rewards] = [one for one in audit(RunRecords.read(judged(recorded, 9))) if one.name == "rewards_wrong"]
    assert rewards.count == 4


def test_a_row_over_the_budget_is_found(recorded):
    """Four groups may be outstanding here."""
    recorded.rows[0] |= {keys.GROUPS_ADMITTED: 5, keys.GROUPS_WRITTEN: 0}
    assert broken(recorded.write()) == {"budget_rows_over": 1}


def test_a_restarted_engine_is_not_blamed_for_what_it_has_not_heard_yet(recorded):
    """It counts the whole stream before it knows what was trained of it, and has admitted nothing."""
    late = {keys.GROUPS_ADMITTED: 6, keys.GROUPS_WRITTEN: 6, keys.GROUPS_TRAINED: 0}
    recorded.rows.append(recorded.rows[-1] | late | {keys.EPISODES_STARTED: 0})
    assert broken(recorded.write()) == {}


def test_a_rewritten_adapter_is_found(recorded):
    """The hash in meta.json is the content's."""
    run = recorded.write()
    (run.adapter(2) / "adapter_model.safetensors").write_bytes(b"other")
    assert broken(run) == {"adapters_changed": 1}


def test_a_checkpoint_of_another_step_or_adapter_is_found(recorded):
    """A resume from it would go on with something else than what was published."""
    run = recorded.write()
    path = run.learner / "checkpoint-00003"
    write_state(path, step=3, version=2)
    assert broken(run) == {"checkpoints_contradicted": 1}
    write_state(path, step=3, version=3, cursor=(0, 9))
    assert broken(run) == {"checkpoints_contradicted": 1}
    write_state(path, step=2, version=2)
    assert broken(run) == {"checkpoints_contradicted": 1}
    (path / "state.json").write_bytes(b'{"format": 1}')
    assert broken(run) == {"checkpoints_contradicted": 1}


def test_the_command_prints_a_table_and_fails_on_a_broken_promise(recorded):
    """Exit code 0, then 1 with the sentence."""
    run = recorded.write()
    sound = CliRunner().invoke(command, [str(run.path)])
    assert sound.exit_code == 0
    assert "BROKEN" not in sound.output
    (run.adapter(2) / "adapter_model.safetensors").write_bytes(b"other")
    result = CliRunner().invoke(command, [str(run.path)])
    assert result.exit_code == 1
    assert "adapters_changed: the content is not what meta.json says: v00002" in result.output
