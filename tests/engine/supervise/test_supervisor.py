"""engine.supervise and engine.processes: order, restarts, drain, orphans, with real (small) processes."""

import os
import signal
import sys
import textwrap
import time
from types import SimpleNamespace

import psutil
import pytest

from engine.config.environment import child_environment
from engine.config.load import load
from engine.errors import RunError
from engine.processes import child as processes
from engine.processes.child import Child, Command, end_orphans, likely_cause, record
from engine.rundir.layout import RunDir, read_json, write_json
from engine.serving.addresses import addresses
from engine.stream.segment import CLOSED
from engine.supervise import supervisor as supervise
from engine.supervise.supervisor import Supervisor, SupervisorPhase
from tests.parts.children import child

PRELUDE = """
import json, os, pathlib, signal, sys, time
run = pathlib.Path(sys.argv[1])
def tell(line):
    with (run / "told").open("a") as file:
        file.write(line + "\\n")
def put(path, **value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".new").write_text(json.dumps({"format": 1, **value}))
    path.with_suffix(".new").rename(path)
def on_stop(name, code=0):
    def stop(*_):
        tell("stop " + name)
        sys.exit(code)
    signal.signal(signal.SIGTERM, stop)
def progress(state, **more):
    put(run / "learner/progress.json", state=state, **more)
def forever():
    while True:
        time.sleep(0.02)
"""
SERVER = """
import http.server
on_stop("server")
class Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *_):
        pass
tell("start server")
http.server.HTTPServer(("127.0.0.1", int(sys.argv[2])), Ready).serve_forever()
"""
LEARNER = """
on_stop("learner")
tell("start learner")
put(run / "adapters/v00000/meta.json", version=0)
progress("running")
while not (run / "phase.json").exists():
    time.sleep(0.02)
progress("done", step=60)
"""
ENGINE = """
on_stop("engine")
tell("start engine")
put(run / "phase.json", phase="done")
"""
WAITING_LEARNER = (
    'on_stop("learner")\nput(run / "adapters/v00000/meta.json", version=0)\nprogress("running")\nforever()'
)
WAITING_ENGINE = 'on_stop("engine")\ntell("start engine")\nforever()'


@pytest.fixture(autouse=True)
def _interruptible():
    """Ctrl-C has its default effect: whoever started the tests may ignore it, as `&` in a script and pytest-xdist do,
    and what is ignored the supervisor leaves ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def run(tmp_path):
    """An empty run directory."""
    run = RunDir(tmp_path / "run")
    run.create()
    return run


def supervisor(
    monkeypatch,
    run,
    *,
    server=SERVER,
    learner=LEARNER,
    engine=ENGINE,
    metrics="",
    on_tick=lambda _: None,
    sets=(),
):
    """A supervisor whose children are these scripts; two restarts, unless `sets` says otherwise."""

    def command(name, script, port=0):
        path = run.path / f"{name}.py"
        path.write_text(PRELUDE + textwrap.dedent(script))
        argv = (sys.executable, "-S", str(path), str(run.path), str(port))
        return Command(name=name, argv=argv, log=run.path / f"{name}.log", environment=child_environment())

    def commands(_, __, addresses):
        servers = [command(f"server-{index}", server, address.port) for index, address in enumerate(addresses)]
        return servers, command("learner", learner), command("engine", engine)

    monkeypatch.setattr(supervise, "commands", commands)
    monkeypatch.setattr(supervise, "metrics_command", lambda *_: command("metrics", metrics) if metrics else None)
    config = load(None, ["run.max_restarts=2", "run.drain_s=1", *sets]).config
    return Supervisor(run, config, on_tick)


def told(run):
    """What the scripts said, in order."""
    return (run.path / "told").read_text().splitlines()


def test_a_run_goes_from_its_start_to_its_end(monkeypatch, run):
    """The engine starts last, the servers stop last, nothing is left, and the exit code is 0."""
    phases = []
    ending = supervisor(monkeypatch, run, on_tick=lambda status: phases.append(status.phase)).run()
    assert (ending.code, ending.message) == (0, "")
    assert told(run)[-2:] == ["start engine", "stop server"]
    assert list(dict.fromkeys(phases)) == [SupervisorPhase.STARTING, SupervisorPhase.RUNNING, SupervisorPhase.DRAINING]
    assert read_json(run.processes)["processes"] == []
    assert read_json(run.path / "servers.json")["urls"][0].startswith("http://127.0.0.1:")


def kills_a_server(run):
    """What is said meanwhile, and a look at every tick that kills server-1 as soon as the run is at work."""
    notes, killed = [], []

    def look(status):
        notes.extend(status.notes)
        if status.phase is SupervisorPhase.RUNNING and not killed:
            pids = {row["name"]: row["pid"] for row in read_json(run.processes)["processes"]}
            killed.append(os.kill(pids["server-1"], signal.SIGKILL))

    return notes, look


def test_children_share_a_process_group_of_their_own(monkeypatch, run):
    """Ctrl-C on the terminal reaches the supervisor alone; one signal reaches all children."""
    groups = []

    def look(status):
        if status.phase is SupervisorPhase.RUNNING and not groups:
            groups.extend(os.getpgid(row["pid"]) for row in read_json(run.processes)["processes"])
            os.kill(os.getpid(), signal.SIGTERM)

    supervisor(monkeypatch, run, learner=WAITING_LEARNER, engine=WAITING_ENGINE, on_tick=look).run()
    assert len(groups) == 3
    assert len(set(groups)) == 1
    assert groups[0] != os.getpgid(0)


def test_a_server_that_never_gets_ready_ends_the_run(monkeypatch, run):
    """SGLang hangs when its port is taken; the last words and the cause are told."""
    hangs = 'on_stop("server")\nprint("[Errno 98] address already in use", flush=True)\nforever()'
    ending = supervisor(monkeypatch, run, server=hangs, learner=WAITING_LEARNER, sets=["policy.start_s=3"]).run()
    assert ending.code == 1
    assert "server-0 was not ready 3 s after its start (policy.start_s). Its port was taken" in ending.message
    assert "[Errno 98]" in ending.message
    assert told(run) == ["stop learner", "stop server"]


JUDGE = ["scorer.judge=j", "endpoints.j.launch=sglang", "endpoints.j.model=tiny"]


def test_the_server_of_an_endpoint_is_one_of_the_runs(monkeypatch, run):
    """It is waited for, named in servers.json beside the policy's, started again when it dies, and stopped last."""
    notes, look = kills_a_server(run)
    engine = """
    tell("start engine")
    while (run / "told").read_text().count("start server") < 3:
        time.sleep(0.02)
    put(run / "phase.json", phase="done")
    """
    ours = supervisor(monkeypatch, run, engine=engine, on_tick=look, sets=JUDGE)
    assert ours.run().code == 0
    assert notes == ["server-1 ended (killed by SIGKILL); starting it again in 1 s"]
    assert told(run)[: told(run).index("start engine")].count("start server") == 2
    assert told(run)[-2:] == ["stop server", "stop server"]
    listed = read_json(run.path / "servers.json")
    assert [*listed["urls"], *listed["endpoints"].values()] == [address.url for address in ours.addresses]
    assert list(listed["endpoints"]) == ["j"]


def test_an_endpoint_that_never_gets_ready_ends_the_run_with_its_own_key(monkeypatch, run):
    """The policy's server has its own limit."""
    hangs = 'on_stop("server")\nforever()'
    sets = [*JUDGE, "endpoints.j.start_s=1"]
    ending = supervisor(monkeypatch, run, server=hangs, learner=WAITING_LEARNER, sets=sets).run()
    assert ending.code == 1
    assert "server-1 was not ready 1 s after its start (endpoints.j.start_s)" in ending.message


def test_a_process_that_dies_is_started_again(monkeypatch, run):
    """An engine killed once comes back after a second, and the note says so."""
    engine = """
    first = not (run / "once").exists()
    (run / "once").touch()
    tell("start engine")
    if first:
        os.kill(os.getpid(), signal.SIGKILL)
    put(run / "phase.json", phase="done")
    """
    notes = []
    ending = supervisor(monkeypatch, run, engine=engine, on_tick=lambda status: notes.extend(status.notes)).run()
    assert ending.code == 0
    assert told(run).count("start engine") == 2
    assert notes == ["engine ended (killed by SIGKILL); starting it again in 1 s"]


def test_one_of_several_servers_is_started_again_alone(monkeypatch, run):
    """Each has its own port and log; the others, and the engine, go on."""
    engine = """
    tell("start engine")
    while (run / "told").read_text().count("start server") < 4:
        time.sleep(0.02)
    put(run / "phase.json", phase="done")
    """
    notes, look = kills_a_server(run)
    ending = supervisor(monkeypatch, run, engine=engine, on_tick=look, sets=["policy.servers=3"]).run()
    assert ending.code == 0
    assert notes == ["server-1 ended (killed by SIGKILL); starting it again in 1 s"]
    counts = {line: told(run).count(line) for line in ("start server", "start engine", "stop server")}
    assert counts == {"start server": 4, "start engine": 1, "stop server": 3}
    assert len(set(read_json(run.path / "servers.json")["urls"])) == 3


def test_it_gives_up_with_the_last_useful_lines(monkeypatch, run):
    """Over the limit the run stops, names process, exit, log file and the error, and drains the others."""
    engine = 'def broken():\n    raise RuntimeError("the moon is gone", time.monotonic())\nbroken()'
    ending = supervisor(monkeypatch, run, engine=engine, learner=WAITING_LEARNER, sets=["run.max_restarts=1"]).run()
    assert ending.code == 1
    assert "engine ended (exit code 1) after 1 restarts in ten minutes" in ending.message
    assert "RuntimeError: ('the moon is gone'" in ending.message
    assert str(run.path / "engine.log") in ending.message
    assert "raise RuntimeError" not in ending.message
    assert told(run)[-2:] == ["stop learner", "stop server"]


def test_an_error_that_comes_again_is_not_tried_a_third_time(monkeypatch, run):
    """The second start ended with the same words: so would a third. Not after ten minutes, and not a kill."""
    engine = 'tell("start engine")\nsys.exit("policy server x does not answer as SGLang does")'
    ending = supervisor(monkeypatch, run, engine=engine, learner=WAITING_LEARNER, sets=["run.max_restarts=9"]).run()
    assert ending.code == 1
    assert "engine ended (exit code 1) twice with the same words" in ending.message
    assert "policy server x does not answer" in ending.message
    assert told(run).count("start engine") == 2


@pytest.mark.parametrize("who", ["engine", "learner"])
def test_a_configuration_error_is_not_tried_again(monkeypatch, run, who):
    """Exit code 2 of a child ends the run with 2 and the child's own sentence."""
    scripts = {"learner": WAITING_LEARNER, who: 'sys.stderr.write("policy.urls: nobody is there\\n")\nsys.exit(2)'}
    ending = supervisor(monkeypatch, run, **scripts).run()
    assert ending.code == 2
    assert "policy.urls: nobody is there" in ending.message


def test_a_failed_learner_stops_the_run_with_its_sentence(monkeypatch, run):
    """State `failed` is the learner's last word; the engine is drained, nothing is restarted."""
    learner = WAITING_LEARNER.replace("forever()", 'progress("failed", error="step 7: loss is nan")\nsys.exit(1)')
    ending = supervisor(monkeypatch, run, learner=learner, engine=WAITING_ENGINE).run()
    assert (ending.code, ending.message) == (1, "the learner stopped: step 7: loss is nan")


def test_a_learner_that_ends_before_the_last_step_is_started_again(monkeypatch, run):
    """`done` at step 3 of 60 means that a stream was closed under it, not that the run is finished."""
    learner = """
    first = not (run / "once").exists()
    (run / "once").touch()
    put(run / "adapters/v00000/meta.json", version=0)
    progress("done", step=3 if first else 60)
    if not first:
        put(run / "phase.json", phase="done")
    """
    notes = []
    engine = 'while not (run / "phase.json").exists():\n    time.sleep(0.02)'
    view = notes.append
    ending = supervisor(
        monkeypatch, run, learner=learner, engine=engine, on_tick=lambda status: [*map(view, status.notes)]
    ).run()
    assert ending.code == 0
    assert notes == ["learner ended (exit code 0); starting it again in 1 s"]


def test_a_stream_closed_by_a_stop_is_open_again(monkeypatch, run):
    """--resume removes closed.json before the learner could take it for the end."""
    write_json(run.trajectories / CLOSED, {"segments": 1, "frames": 1})
    learner = "tell(f\"closed {(run / 'trajectories/closed.json').exists()}\")\n" + LEARNER
    assert supervisor(monkeypatch, run, learner=learner).run().code == 0
    assert "closed False" in told(run)


def test_an_old_word_of_the_learner_does_not_count(monkeypatch, run):
    """A `failed` of an earlier life does not end a run whose learner died before it could say anything."""
    write_json(run.progress, {"state": "failed", "error": "long ago"})
    os.utime(run.progress, (1.0, 1.0))
    ending = supervisor(monkeypatch, run, learner='raise ImportError("no torch")', sets=["run.max_restarts=0"]).run()
    assert "long ago" not in ending.message
    assert "ImportError: no torch" in ending.message


def test_one_signal_drains_in_order(monkeypatch, run):
    """Engine, then learner, then server are asked to end; the exit code names the signal."""

    def interrupt(status):
        if status.phase is SupervisorPhase.RUNNING and "start engine" in told(run):
            os.kill(os.getpid(), signal.SIGINT)

    ending = supervisor(monkeypatch, run, learner=WAITING_LEARNER, engine=WAITING_ENGINE, on_tick=interrupt).run()
    assert ending.code == 130
    assert told(run)[-3:] == ["stop engine", "stop learner", "stop server"]


def test_a_second_signal_stops_at_once(monkeypatch, run):
    """Children that do not end are killed; nothing survives."""
    stubborn = 'signal.signal(signal.SIGTERM, signal.SIG_IGN)\ntell("start engine")\nforever()'
    pids = []

    def interrupt(status):
        if status.phase is not SupervisorPhase.STARTING and "start engine" in told(run):
            pids.extend(row["pid"] for row in read_json(run.processes)["processes"])
            os.kill(os.getpid(), signal.SIGINT)

    ending = supervisor(monkeypatch, run, learner=WAITING_LEARNER, engine=stubborn, on_tick=interrupt).run()
    assert ending.code == 130
    assert ending.message == "stopped at once"
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_a_drain_is_bounded(monkeypatch, run):
    """A child that ignores the stop is killed after run.drain_s and a grace, and a note says so."""
    monkeypatch.setattr(supervise, "_GRACE_S", 0.2)
    stubborn = 'signal.signal(signal.SIGTERM, signal.SIG_IGN)\ntell("start engine")\nforever()'
    notes = []
    sent = []

    def interrupt(status):
        notes.extend(status.notes)
        if status.phase is SupervisorPhase.RUNNING and not sent and "start engine" in told(run):
            sent.append(os.kill(os.getpid(), signal.SIGTERM))

    ending = supervisor(monkeypatch, run, learner=WAITING_LEARNER, engine=stubborn, on_tick=interrupt).run()
    assert ending.code == 143
    assert any(note.startswith("engine did not end within 1 s") for note in notes)


@pytest.mark.parametrize("gone", [OSError(5, "Input/output error"), SystemExit(1)])
def test_a_terminal_that_is_gone_ends_the_view_and_not_the_run(monkeypatch, run, gone):
    """After a hang-up or `| head` the run goes on unseen, and a stop still drains."""

    def view(_):
        raise gone

    assert supervisor(monkeypatch, run, on_tick=view).run().code == 0
    assert told(run)[-2:] == ["start engine", "stop server"]


def test_a_run_has_one_supervisor(monkeypatch, run):
    """The second is refused, and says what to do."""
    with run.locked(), pytest.raises(RunError, match="another synth-engine is running it"):
        supervisor(monkeypatch, run).run()


def test_orphans_of_an_earlier_run_are_ended(run):
    """What pid, start time and command line identify is ended; a stranger with a recorded pid is not."""
    argv = (sys.executable, "-S", "-c", "import time; time.sleep(60)")
    orphan = Child(Command(name="engine", argv=argv, log=run.path / "x.log", environment=child_environment()))
    orphan.start(0)
    record(run, [orphan])
    with child(*argv) as stranger:
        rows = read_json(run.processes)["processes"]
        rows.append({**rows[0], "name": "server-0", "pid": stranger.pid, "started": 1.0})
        write_json(run.processes, {"processes": rows})
        assert end_orphans(run) == ["engine"]
        assert orphan.wait(10)
        assert stranger.poll() is None


def test_back_off_doubles_and_ends(run):
    """1, 2, 4 seconds, then no more within ten minutes."""
    fails = Child(Command(name="engine", argv=("true",), log=run.path / "x.log", environment={}))
    for wait_s in (1, 2, 4):
        before_s = time.monotonic()
        assert fails.restart_later(3)
        assert before_s + wait_s <= fails.due <= time.monotonic() + wait_s
    assert not fails.restart_later(3)


def test_likely_causes(monkeypatch, run):
    """What a person would look for first is said."""
    assert "memory" in likely_cause(-signal.SIGKILL, [], run.path)
    assert "port" in likely_cause(1, ["OSError: [Errno 98] Address already in use"], run.path)
    assert "port" in likely_cause(1, ["ERROR: [Errno 98] error while binding: address already in use"], run.path)
    assert "install-sglang" in likely_cause(1, ["ModuleNotFoundError: No module named 'sglang'"], run.path)
    assert "GPU's memory" in likely_cause(1, ["torch.OutOfMemoryError: CUDA out of memory."], run.path)
    assert "disk" in likely_cause(1, ["OSError: [Errno 28] No space left on device"], run.path)
    assert likely_cause(1, ["KeyError: 'x'"], run.path) == ""
    monkeypatch.setattr(processes.shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    assert "disk" in likely_cause(1, [], run.path)


def test_commands_carry_thread_and_allocator_settings(run):
    """Children that compute with torch get one thread and the allocator's settings, the engine gets neither."""
    config = load("tiny", ["run.seed=5", "policy.servers=2"]).config
    servers, learner, engine = supervise.commands(run, config, addresses(config, [1234, 1235]))
    for command in (*servers, learner):
        assert command.environment["OMP_NUM_THREADS"] == "1"
        assert command.environment["MALLOC_MMAP_MAX_"] == "0"
    assert "MALLOC_MMAP_MAX_" not in engine.environment
    assert servers[0].argv[servers[0].argv.index("--max-loras") :][:2] == ("--max-loras", "6")
    assert [command.log.name for command in servers] == ["server-0.log", "server-1.log"]
    for option, values in (("--port", ["1234", "1235"]), ("--seed", ["5", "6"])):
        assert [command.argv[command.argv.index(option) + 1] for command in servers] == values
    assert all(str(os.getpid()) == command.argv[-1] for command in (*servers, learner, engine))


def test_several_ranks_are_started_by_torchrun(run):
    """One rank on each GPU, counted as nvidia-smi does; the kernel ends torchrun with its supervisor."""
    cpu = load("tiny", ["learner.ranks=3", "learner.threads=2"]).config
    gpu = load("tiny", ["learner.gpus=[5, 2]"]).config
    for config, count in ((cpu, "3"), (gpu, "2")):
        learner = supervise.commands(run, config, [])[1]
        assert learner.argv[1:4] == ("-P", "-m", "torch.distributed.run")
        assert learner.argv[learner.argv.index("--nproc-per-node") + 1] == count
        assert learner.argv[-3:] == ("-m", "learner", str(run.path))
        assert learner.leashed
    assert supervise.commands(run, cpu, [])[1].environment["OMP_NUM_THREADS"] == "2"
    assert learner.environment["CUDA_VISIBLE_DEVICES"] == "5,2"
    one = supervise.commands(run, load("tiny", ["learner.gpus=[5]"]).config, [])[1]
    assert one.argv[1:4] == ("-P", "-m", "learner")
    assert one.environment["CUDA_VISIBLE_DEVICES"] == "5"
