"""The learner under torchrun, as a run starts it: kills of a rank, of torchrun and of who started it; a stop; a run."""

import os
import signal
import time
from contextlib import contextmanager, suppress

import psutil
import pytest

from engine.config.load import load
from engine.rundir.layout import RunDir, read_json, read_lines
from engine.stream.reader import read_group_ids
from engine.supervise import supervisor as supervise
from tests.kills.test_run_kills import beginning, finished, pid_of, started, step, wait_for
from tests.parts.children import child, python
from tests.parts.learner_kills import check_history, hashes, make_groups
from tests.parts.learner_runs import make_model, make_policy, make_run, write_stream

RANKS, STEPS = 2, 12


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny model on disk."""
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def groups(model):
    """Enough for all steps."""
    return make_groups(make_policy(model), 2 * STEPS)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, model, groups):
    """Adapter hashes of two ranks that nobody killed."""
    run = make_run(tmp_path_factory.mktemp("whole") / "demo", model, steps=STEPS, ranks=RANKS)
    write_stream(run, groups)
    with torchrun(run) as process:
        assert process.wait(120) == 0
    check_history(run, groups)
    return hashes(run)


@contextmanager
def torchrun(run):
    """The learner's command of the run; none of its processes outlives the block."""
    command = supervise.commands(run, load(run.config).config, [])[1]
    with command.log.open("ab") as log, child(*command.argv, env=command.environment, stderr=log) as process:
        ranks = []
        try:
            wait_for(lambda: len(psutil.Process(process.pid).children()) == RANKS, process)
            ranks = psutil.Process(process.pid).children()
            process.ranks = ranks
            yield process
        finally:
            for rank in ranks:
                with suppress(psutil.NoSuchProcess):
                    rank.kill()


def gone(processes):
    """Whether all of them ended, in good time."""
    return not psutil.wait_procs(processes, timeout=60)[1]


def rank_of(process):
    """The rank of one of torchrun's children."""
    return int(process.environ()["RANK"])


@pytest.mark.slow
@pytest.mark.parametrize("killed", ["rank 0", "rank 1", "torchrun"])
def test_a_kill_ends_every_rank_and_costs_nothing(tmp_path, model, groups, undisturbed, killed):
    """Killed in the midst of a run and started again: every group once, no directory rewritten, the same bytes."""
    run = make_run(tmp_path / "demo", model, steps=STEPS, ranks=RANKS)
    write_stream(run, groups[:9], closed=False)
    with torchrun(run) as process:
        wait_for(lambda: step(run) >= 2, process)
        victims = {f"rank {rank_of(rank)}": rank for rank in process.ranks}
        victims.get(killed, process).kill()
        assert process.wait(60) != 0
        assert gone(process.ranks)
    assert read_json(run.progress)["state"] == "running"
    before = hashes(run)
    write_stream(run, groups[9:], number=1)
    with torchrun(run) as process:
        assert process.wait(120) == 0
    check_history(run, groups)
    assert hashes(run) == undisturbed
    assert before.items() <= hashes(run).items()


@pytest.mark.slow
def test_a_stop_ends_every_rank_after_the_step(tmp_path, model, groups):
    """SIGTERM to torchrun while they wait for groups: all end by themselves, and what was trained is there."""
    run = make_run(tmp_path / "demo", model, steps=STEPS, ranks=RANKS)
    write_stream(run, groups[:2], closed=False)
    with torchrun(run) as process:
        wait_for(lambda: step(run) == 1, process)
        process.terminate()
        process.wait(60)
        assert gone(process.ranks)
    log = (run.path / "learner.log").read_text()
    assert "forcefully exiting" not in log
    assert "another rank" not in log
    progress = read_json(run.progress)
    assert (progress["step"], progress["state"]) == (1, "running")


@pytest.mark.slow
def test_ranks_end_with_whoever_started_them(tmp_path, model):
    """A supervisor that is killed takes torchrun and every rank with it."""
    run = make_run(tmp_path / "demo", model, ranks=RANKS)
    script = (
        "import sys, time; from engine.supervise import supervisor; from engine.config.load import load;"
        "from engine.processes.child import Child; from engine.rundir.layout import RunDir; from pathlib import Path;"
        "run = RunDir(Path(sys.argv[1])); child = Child(supervisor.commands(run, load(run.config).config, [])[1]);"
        "child.start(0); time.sleep(600)"
    )
    with python("-c", script, run.path) as process:
        wait_for(lambda: run.versions() == [0], process)
        family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        assert len(family) == 1 + RANKS
        assert gone(family)


@pytest.mark.slow
def test_a_run_goes_on_after_a_rank_was_killed(tmp_path):
    """`synth-engine run` with two ranks, one of them killed twice: the learner is restarted, the run finishes."""
    run = RunDir(tmp_path / "killed")
    acknowledged = set()
    with started(tmp_path, *beginning(tmp_path, "learner.ranks=2")) as process:
        for after, victim in ((1, 1), (3, 0)):
            wait_for(lambda after=after: step(run) >= after and pid_of(run, "learner") is not None, process)
            acknowledged |= set(read_group_ids(run.trajectories))
            ranks = psutil.Process(pid_of(run, "learner")).children()
            os.kill(next(rank.pid for rank in ranks if rank_of(rank) == victim), signal.SIGKILL)
            time.sleep(1.5)
        assert process.wait(280) == 0, (tmp_path / "out").read_text()
    assert acknowledged <= set(read_group_ids(run.trajectories))
    finished(run, (tmp_path / "out").read_text())
    assert [row["step"] for row in read_lines(run.learner / "steps.jsonl")] == [1, 2, 3, 4, 5]
