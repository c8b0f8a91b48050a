"""SIGKILL of the learner at the five points of a step, in real processes; what an observer sees meanwhile."""

import hashlib
import threading

import pytest

from engine.rundir.layout import RunDir, read_json, read_lines
from tests.parts import learner_kills
from tests.parts.learner_kills import POINTS, check_history, finish, hashes, make_groups
from tests.parts.learner_runs import make_model, make_policy, make_run, write_stream


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny model on disk."""
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def groups(model):
    """Ten groups; 3, in the step that is killed, and 8, in the last one, have no variance."""
    return make_groups(make_policy(model), 8)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, model, groups):
    """Adapter hashes of a run that nobody killed."""
    run = make_run(tmp_path_factory.mktemp("whole") / "demo", model, steps=4)
    write_stream(run, groups)
    assert finish(run.path) == 0
    check_history(run, groups)
    return hashes(run)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_hashes_find_a_rewritten_directory(tmp_path, name):
    """What the kills are judged by looks at the files themselves: other bytes under the same meta.json are found."""
    run = RunDir(tmp_path)
    run.adapter(0).mkdir(parents=True)
    for file in ("adapter_model.safetensors", "adapter_config.json", "meta.json"):
        (run.adapter(0) / file).write_text("{}")
    before = hashes(run)
    (run.adapter(0) / name).write_text("[]")
    assert before.keys() == hashes(run).keys() == {0}
    assert before != hashes(run)


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
def test_a_kill_at_any_point_of_a_step_changes_nothing(tmp_path, model, groups, undisturbed, point):
    """Killed in step 2, after it counted a drop, and resumed: every group once, no directory rewritten, the same
    adapters as undisturbed (11)."""
    run = make_run(tmp_path / "demo", model, steps=4)
    write_stream(run, groups)
    assert finish(run.path, point=point, at_step=2) == -9
    progress = read_json(run.progress)
    assert (progress["state"], progress["dropped"]["zero_variance"]) == ("running", 1)
    before = hashes(run)
    assert len(before) == (3 if point in ("after publish", "after progress") else 2)
    assert finish(run.path) == 0
    check_history(run, groups)
    dropped = [row["dropped"] for row in read_lines(run.learner / "steps.jsonl")]
    assert dropped == [{}, {"zero_variance": ["g000003"]}, {}, {"zero_variance": ["g000008"]}]
    assert read_json(run.progress)["dropped"]["zero_variance"] == 2
    assert hashes(run) == undisturbed
    assert before.items() <= hashes(run).items()
    assert not list(run.adapters.glob(".*"))


@pytest.mark.slow
def test_an_observer_never_sees_a_partial_directory(tmp_path, model, groups):
    """Listing adapters/ in a loop while the learner publishes: three files and a matching hash, or nothing (15)."""
    run = make_run(tmp_path / "demo", model, steps=4)
    write_stream(run, groups)
    problems, looks, over = [], [0], threading.Event()

    def look():
        while not over.is_set():
            for version in run.versions():
                directory = run.adapter(version)
                names = sorted(path.name for path in directory.iterdir())
                weights = (directory / "adapter_model.safetensors").read_bytes()
                meta = read_json(directory / "meta.json")
                whole = names == ["adapter_config.json", "adapter_model.safetensors", "meta.json"]
                if not whole or meta["adapter_sha256"] != hashlib.sha256(weights).hexdigest():
                    problems.append(version)
                looks[0] += 1

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        assert learner_kills.finish(run.path) == 0
    finally:
        over.set()
        watcher.join()
    assert problems == []
    assert looks[0] > 20
