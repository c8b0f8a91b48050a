"""The learner on recorded streams: steps, drops, files, determinism, failures."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from engine.config.keys import key
from engine.config.load import load
from engine.config.tree import LearnerSection
from engine.errors import RunError
from engine.learnerdir.checkpoint import CheckpointState
from engine.learnerdir.counters import LearnerCounters
from engine.rundir.layout import read_json, read_lines, write_json
from engine.stream.segment import segment_path
from learner.__main__ import EXIT_CONFIG, EXIT_FAILED, EXIT_OK, serve
from learner.checkpoint import compared_settings, require_same_settings, settings_sha256
from learner.lifetime import Lifetime
from learner.loop import Learner
from tests.parts.children import child
from tests.parts.declared_metrics import LEARNER, unfilled
from tests.parts.learner_runs import HEADER, make_group, make_model, make_policy, make_run, whole_logprobs, write_stream
from tests.parts.places import ROOT
from tests.parts.waiting import LONG_S, wait_until


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny model on disk."""
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def groups(model):
    """Eight usable groups with the base's own log-probabilities, and a zero-variance one at position 3."""
    base = make_policy(model)
    usable = [make_group(position, policy=base) for position in range(9)]
    return [group if group.position != 3 else make_group(3, policy=base, rewards=[0.5] * 4) for group in usable]


def train(run, *, flush=False):
    """Run the learner in this process; returns its exit code."""
    return serve(Learner(run, load(run.config).config, Lifetime()), flush=flush)


class UntilPartialStep(Lifetime):
    """Asks for a stop when progress.json tells of two steps and a group that waits for the third."""

    def __init__(self, run):
        super().__init__()
        self.run = run

    @property
    def stopping(self):
        told = read_json(self.run.progress)
        return told is not None and (told["step"], told["waiting"]) == (2, 1)


def hashes(run):
    """sha256 of every published adapter's weights."""
    return [
        hashlib.sha256((run.adapter(v) / "adapter_model.safetensors").read_bytes()).hexdigest() for v in run.versions()
    ]


def test_a_recorded_stream_trains_and_publishes_every_step(tmp_path, model, groups):
    """Steps in arrival order, a drop with its reason, versions 0..3, rows and progress that agree with each other."""
    run = make_run(tmp_path / "demo", model)
    write_stream(run, groups)
    assert train(run) == EXIT_OK
    steps = list(read_lines(run.learner / "steps.jsonl"))
    assert [[row["id"] for row in step["groups"]] for step in steps] == [
        ["g000000", "g000001"],
        ["g000002", "g000004"],
        ["g000005", "g000006"],
    ]
    assert [step["dropped"] for step in steps] == [{}, {"zero_variance": ["g000003"]}, {}]
    assert [step["version"] for step in steps] == [1, 2, 3]
    assert [step["staleness_tokens"].keys() for step in steps] == [{"0"}, {"1"}, {"2"}]
    assert run.versions() == [0, 1, 2, 3]
    assert len(set(hashes(run))) == 4
    progress = read_json(run.progress)
    assert progress["state"] == "done"
    assert (progress["step"], progress["version"], progress["trained_groups"], progress["frames_read"]) == (3, 3, 6, 7)
    assert list(progress["cursor"].values()) == steps[-1]["cursor"]
    rows = list(read_lines(run.learner_metrics))
    assert [row["learner/step_count"] for row in rows] == [1, 2, 3]
    assert unfilled(rows, LEARNER) == set()
    assert sorted(path.name for path in run.learner.glob("checkpoint-*")) == ["checkpoint-00002", "checkpoint-00003"]


def test_meta_tells_the_step_and_the_hash(tmp_path, model, groups):
    """meta.json matches the files beside it; nothing else lies in the directory."""
    run = make_run(tmp_path / "demo", model, steps=1)
    write_stream(run, groups)
    train(run)
    for version in (0, 1):
        meta = read_json(run.adapter(version) / "meta.json")
        weights = (run.adapter(version) / "adapter_model.safetensors").read_bytes()
        assert meta["adapter_sha256"] == hashlib.sha256(weights).hexdigest()
        assert (meta["version"], meta["step"], meta["bytes"], meta["r"]) == (version, version, len(weights), 4)
        assert sorted(path.name for path in run.adapter(version).iterdir()) == [
            "adapter_config.json",
            "adapter_model.safetensors",
            "meta.json",
        ]
    assert meta["parent_version"] == 0
    assert meta["update_norm"] > 0


def test_replaying_a_stream_gives_the_same_bytes(tmp_path, model, groups):
    """Two runs over one stream publish byte-identical adapters and the same counts (acceptance 12)."""
    runs = [make_run(tmp_path / name, model) for name in ("one", "two")]
    for run in runs:
        write_stream(run, groups)
        train(run)
    assert hashes(runs[0]) == hashes(runs[1])
    first, second = (read_json(run.progress) for run in runs)
    timings = {"wait_s", "step_s"}
    assert {key: first[key] for key in first.keys() - timings} == {key: second[key] for key in second.keys() - timings}


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, model, groups):
    """Two steps and a group of the third, a new process, the rest: the same adapters as in one go, each group once."""
    whole = make_run(tmp_path / "whole", model)
    write_stream(whole, groups)
    train(whole)
    cut = make_run(tmp_path / "cut", model, steps=3)
    write_stream(cut, groups[:6], closed=False)
    assert serve(Learner(cut, load(cut.config).config, UntilPartialStep(cut)), flush=False) == EXIT_OK
    assert read_json(cut.progress)["state"] == "running"
    assert cut.versions() == [0, 1, 2]
    write_stream(cut, groups[6:], number=1)
    assert train(cut) == EXIT_OK
    assert hashes(cut) == hashes(whole)
    rows = [list(read_lines(run.learner / "steps.jsonl")) for run in (cut, whole)]
    assert [row["groups"] for row in rows[0]] == [row["groups"] for row in rows[1]]


def test_the_end_of_a_stream_leaves_a_partial_step_unless_flushed(tmp_path, model, groups):
    """Three usable groups: one step of two; the third waits for a resume, or `--flush` trains it alone."""
    run = make_run(tmp_path / "demo", model)
    write_stream(run, groups[:3])
    assert train(run) == EXIT_OK
    assert (read_json(run.progress)["step"], read_json(run.progress)["waiting"]) == (1, 1)
    assert train(run, flush=True) == EXIT_OK
    progress = read_json(run.progress)
    assert (progress["step"], progress["waiting"], progress["trained_groups"]) == (2, 0, 3)
    assert [row["flushed"] for row in read_lines(run.learner / "steps.jsonl")] == [False, True]


def test_progress_adds_up_in_every_version_and_stale_groups_are_dropped(tmp_path, model, groups, monkeypatch):
    """Trained + dropped + waiting = frames read, whenever the file is replaced; old groups carry the reason (16)."""
    seen = []
    monkeypatch.setattr("engine.learnerdir.progress.write_json", lambda path, value: seen.append(value))
    run = make_run(tmp_path / "demo", model)
    text = run.config.read_text().replace("max_staleness = 100", "max_staleness = 1")
    run.config.write_text(text)
    write_stream(run, groups)
    train(run)
    assert seen[-1]["dropped"] == {"stale": 4, "unscored": 0, "failed": 0, "zero_variance": 1}
    for value in seen:
        assert value["trained_groups"] + sum(value["dropped"].values()) + value["waiting"] == value["frames_read"]
    assert [value["frames_read"] for value in seen] == sorted(value["frames_read"] for value in seen)


def test_a_nan_in_one_log_probability_loses_that_token_only(tmp_path, model, groups):
    """The step goes on and the token is counted (acceptance 14)."""
    first = groups[0].episodes[0]
    logprobs = first.tokens.logprobs.copy()
    logprobs[1] = np.nan
    broken = replace(first, tokens=replace(first.tokens, logprobs=logprobs))
    run = make_run(tmp_path / "demo", model, steps=1)
    write_stream(run, [replace(groups[0], episodes=(broken, *groups[0].episodes[1:])), *groups[1:]])
    assert train(run) == EXIT_OK
    [row] = read_lines(run.learner / "metrics.jsonl")
    assert row["learner/mu_not_finite_tokens"] == 1


def test_a_nan_in_a_gradient_publishes_nothing_and_names_the_groups(tmp_path, model, groups, monkeypatch, capsys):
    """State failed, exit 1, one sentence; the last version stays (acceptance 14)."""
    run = make_run(tmp_path / "demo", model)
    write_stream(run, groups)
    learner = Learner(run, load(run.config).config, Lifetime())
    poisoned = "base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"
    train_step = Learner._train

    def poison(self, *arguments, **options):
        if self.counters.step == 1:
            self.policy.parameters[poisoned].register_hook(lambda grad: grad * float("nan"))
        train_step(self, *arguments, **options)

    monkeypatch.setattr(Learner, "_train", poison)
    assert serve(learner, flush=False) == EXIT_FAILED
    assert run.versions() == [0, 1]
    progress = read_json(run.progress)
    assert progress["state"] == "failed"
    assert poisoned in progress["error"]
    assert "g000002, g000004" in progress["error"]
    assert progress["error"] in capsys.readouterr().err
    failed = read_json(run.learner / "failed-step.json")
    assert (failed["step"], failed["groups"]) == (2, ["g000002", "g000004"])


def test_a_learner_that_learns_nothing_stops(tmp_path, model, groups, monkeypatch):
    """Three adapters in a row equal to their parent are a detached graph or a learning rate of 0."""
    monkeypatch.setattr("learner.schedule.Schedule.at", lambda self, step: 0.0)
    run = make_run(tmp_path / "demo", model, steps=4)
    write_stream(run, groups)
    assert train(run) == EXIT_FAILED
    assert "nothing is learned" in read_json(run.progress)["error"]
    assert run.versions() == [0, 1, 2]


def test_an_adapter_that_is_not_applied_stops_the_run(tmp_path, model, monkeypatch):
    """Mu of an adapted server, a learner whose adapter is off: the message names the adapter (acceptance 9)."""
    sampler = make_policy(model, adapted=True)
    run = make_run(tmp_path / "demo", model, steps=4)
    write_stream(run, [make_group(position, policy=sampler) for position in range(8)])
    assert train(run) == EXIT_FAILED
    assert "adapter is not applied" in read_json(run.progress)["error"]
    assert read_json(run.progress)["step"] == 2


def test_the_probe_is_silent_where_learner_and_server_agree(tmp_path, model, groups):
    """Mu of the published version itself: k3 below 1e-8 in float32, the base's own above it once trained."""
    run = make_run(tmp_path / "demo", model, steps=3, lr=3e-2)
    write_stream(run, groups)
    train(run)
    rows = list(read_lines(run.learner / "metrics.jsonl"))
    assert all(row["learner/mismatch_k3_nats"] < 1e-8 for row in rows)
    assert rows[0]["learner/drift_k3_nats"] < 1e-8
    assert rows[2]["learner/drift_k3_nats"] > 1e-4


def test_training_raises_the_probability_of_better_episodes(tmp_path, model, groups):
    """The direction is right: after the steps the best episode of a group gained on the worst."""
    run = make_run(tmp_path / "demo", model, steps=1, lr=1e-2)
    write_stream(run, groups)
    learner = Learner(run, load(run.config).config, Lifetime())
    serve(learner, flush=False)
    base = make_policy(model)
    gains = []
    for group in groups[:2]:
        for episode in group.episodes[:2]:
            targets = np.concatenate([np.arange(s.start, s.start + s.length) for s in episode.tokens.spans]) - 1
            change = whole_logprobs(learner.policy, episode.tokens.ids) - whole_logprobs(base, episode.tokens.ids)
            gains.append(float(change[targets].mean()))
    assert gains[1] > gains[0]
    assert gains[3] > gains[2]


@pytest.mark.parametrize("told", [True, False])
def test_a_changed_setting_is_refused_on_resume(tmp_path, model, groups, told):
    """A checkpoint of another learning rate is not continued; one of before does not tell which setting it is."""
    run = make_run(tmp_path / "demo", model, steps=1)
    write_stream(run, groups)
    train(run)
    if not told:
        state = run.checkpoint(1) / "state.json"
        state.write_text(json.dumps({key: value for key, value in read_json(state).items() if key != "settings"}))
    run.config.write_text(run.config.read_text().replace("lr = 0.001", "lr = 0.002"))
    assert train(run) == EXIT_FAILED
    named = f" (learner.lr was 0.001, is 0.002); set them back in {run.config}, or" if told else ";"
    expected = f"{run.learner}: its checkpoint was made with other settings{named} start a new run"
    assert read_json(run.progress)["error"] == expected


def test_a_model_that_was_moved_is_the_same_setting(tmp_path, model, groups):
    """The path that the run began with is compared, wherever the model lies now."""
    run = make_run(tmp_path / "demo", model, steps=1)
    write_json(run.manifest, {"model_path": str(model)})
    write_stream(run, groups)
    train(run)
    moved = shutil.copytree(model, tmp_path / "moved")
    run.config.write_text(run.config.read_text().replace(str(model), str(moved)).replace("steps = 1", "steps = 2", 1))
    assert train(run) == EXIT_OK
    assert run.versions() == [0, 1, 2]


class NextLearnerSection(LearnerSection):
    """The section of a later version, with two keys more."""

    dropout: float = key(0.0, "Nothing that there is")
    workers: int = key(1, "Nothing that there is either", resumable=True)


@pytest.mark.parametrize(
    ("changed", "named"),
    [({}, None), ({"workers": 4}, None), ({"dropout": 0.1}, r"\(learner\.dropout was its default, is 0\.1\)")],
)
def test_a_new_key_at_its_default_ends_no_run(tmp_path, model, changed, named):
    """A checkpoint from before the key was added is continued, unless the key is set and a resume may not change it."""
    run = make_run(tmp_path / "demo", model)
    config = load(run.config).config
    before = compared_settings(run, config)
    state = CheckpointState(
        counters=LearnerCounters(), trained=None, config_sha256=settings_sha256(before), settings=before
    )
    later = config.model_copy(update={"learner": NextLearnerSection(**config.learner.model_dump(), **changed)})
    with nullcontext() if named is None else pytest.raises(RunError, match=named):
        require_same_settings(run, state, compared_settings(run, later))


def test_more_steps_may_be_asked_for_on_resume(tmp_path, model, groups):
    """run.steps is resumable: the learner goes on where it was done."""
    run = make_run(tmp_path / "demo", model, steps=1)
    write_stream(run, groups)
    train(run)
    run.config.write_text(run.config.read_text().replace("steps = 1", "steps = 2", 1))
    assert train(run) == EXIT_OK
    assert run.versions() == [0, 1, 2]


def test_a_version_with_other_content_is_never_rewritten(tmp_path, model, groups):
    """A published directory that disagrees with the checkpoint is an error, not an overwrite."""
    run = make_run(tmp_path / "demo", model, steps=1)
    write_stream(run, groups)
    train(run)
    meta = run.adapter(1) / "meta.json"
    meta.write_text(json.dumps({**json.loads(meta.read_text()), "adapter_sha256": "0" * 64}))
    run.config.write_text(run.config.read_text().replace("steps = 1", "steps = 2", 1))
    assert train(run) == EXIT_FAILED
    assert "never rewritten" in read_json(run.progress)["error"]


def test_a_resume_without_the_groups_of_its_steps_is_refused(tmp_path, model, groups):
    """An engine played them again behind the cursor: they would be trained on a second time."""
    run = make_run(tmp_path / "demo", model, steps=2)
    write_stream(run, groups)
    assert train(run) == EXIT_OK
    before = hashes(run), (run.learner / "steps.jsonl").read_bytes()
    with segment_path(run.trajectories, 0).open("r+b") as file:
        file.truncate(file.seek(0, os.SEEK_END) // 3)
    write_stream(run, groups, number=1)
    more = load(run.config, ["run.steps=4"]).config
    assert serve(Learner(run, more, Lifetime()), flush=False) == EXIT_FAILED
    # Those that are gone are there again, where the learner would take them for new ones.
    assert "checkpoint-00002 counts 5 groups up to byte" in read_json(run.progress)["error"]
    assert (hashes(run), (run.learner / "steps.jsonl").read_bytes()) == before


def test_damage_in_the_middle_of_a_stream_stops_with_its_place(tmp_path, model, groups):
    """A flipped byte before whole frames names segment and offset (acceptance 13)."""
    run = make_run(tmp_path / "demo", model)
    write_stream(run, groups)
    path = segment_path(run.trajectories, 0)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert train(run) == EXIT_FAILED
    error = read_json(run.progress)["error"]
    assert "00000.seg, byte " in error
    assert read_json(run.progress)["step"] >= 1


def test_a_vocabulary_of_another_model_is_refused(tmp_path, model, groups, monkeypatch):
    """Ids that the model does not have stop the run before anything is computed."""
    monkeypatch.setattr("tests.parts.learner_runs.HEADER", replace(HEADER, vocab_size=65))
    run = make_run(tmp_path / "demo", model)
    write_stream(run, groups)
    assert train(run) == EXIT_FAILED
    assert "vocabulary of 65, the model has 64" in read_json(run.progress)["error"]


def test_a_step_that_cannot_end_in_time_is_abandoned(tmp_path, model, groups, monkeypatch):
    """A stop whose grace is over leaves no trace of the step; the next start trains it as if nothing had been."""
    run = make_run(tmp_path / "demo", model, steps=1)
    write_stream(run, groups)
    with monkeypatch.context() as patch:
        patch.setattr(Lifetime, "must_abandon", lambda self: True)
        assert train(run) == EXIT_OK
    assert run.versions() == [0]
    assert read_json(run.progress)["state"] == "running"
    assert list(read_lines(run.learner / "steps.jsonl")) == []
    assert train(run) == EXIT_OK
    assert run.versions() == [0, 1]


def test_a_stop_has_its_grace_and_a_second_signal_the_default_action(monkeypatch):
    """The first signal asks; after 30 s a step must be abandoned; a second signal is no longer caught."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        lifetime = Lifetime()
        lifetime.install(None)
        assert not lifetime.stopping
        os.kill(os.getpid(), signal.SIGTERM)
        wait_until(lambda: lifetime.stopping)
        assert not lifetime.must_abandon()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        later = time.monotonic() + 31
        monkeypatch.setattr("learner.lifetime.time.monotonic", lambda: later)
        assert lifetime.must_abandon()
    finally:
        for number, action in before.items():
            signal.signal(number, action)


def test_two_bos_tokens_are_refused(tmp_path, model, groups):
    """Template and caller both added one: the policy never saw that in its pretraining."""
    run = make_run(tmp_path / "demo", model)
    write_stream(run, groups)
    learner = Learner(run, load(run.config).config, Lifetime())
    doubled = groups[0].episodes[0].tokens.ids.copy()
    learner._begin()
    learner.policy.model.config.bos_token_id = int(doubled[0])
    doubled[1] = doubled[0]
    first = groups[0].episodes[0]
    group = replace(groups[0], episodes=(replace(first, tokens=replace(first.tokens, ids=doubled)),))
    with pytest.raises(RunError, match=r"g000000\.00: begins with two BOS"):
        learner._check_tokens(SimpleNamespace(header=None), group)


def environment():
    """For a child: one thread."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def start(run, *options):
    """The learner as the supervisor starts it."""
    argv = [sys.executable, "-m", "learner", str(run.path), *options]
    return child(*argv, env=environment(), stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_the_process_follows_a_live_writer_and_ends_on_sigterm(tmp_path, model, groups):
    """A real process: version 0 first, a step when groups arrive, exit 0 on SIGTERM with nothing lost."""
    run = make_run(tmp_path / "demo", model)
    with start(run) as process:
        wait_until(lambda: run.versions() == [0], LONG_S, while_runs=process)
        write_stream(run, groups[:2], closed=False)
        wait_until(
            lambda: run.versions() == [0, 1] and read_json(run.progress)["step"] == 1, LONG_S, while_runs=process
        )
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert read_json(run.progress)["step"] == 1


@pytest.mark.slow
def test_the_process_ends_when_its_parent_is_gone(tmp_path, model):
    """`--parent-pid` of somebody who is not the parent: the learner ends by itself."""
    run = make_run(tmp_path / "demo", model)
    with start(run, "--parent-pid", "1") as process:
        assert process.wait(120) == 0


@pytest.mark.slow
def test_a_configuration_that_cannot_be_used_exits_2(tmp_path, model):
    """One sentence on stderr that names the thing."""
    run = make_run(tmp_path / "demo", model, advantage="no_such_package:thing")
    with start(run) as process:
        _, error = process.communicate(timeout=120)
    assert process.returncode == EXIT_CONFIG
    assert error.startswith("learner.advantage = 'no_such_package:thing'")
    assert "Traceback" not in error
