"""engine.report and engine.preflight.manifest: summary, charts, page, progress line, run directories."""

import io
import re
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
from rich.console import Console

from engine.config.load import load
from engine.errors import ConfigError
from engine.preflight.manifest import create, reopen
from engine.report.gauges import read_gauges
from engine.report.progress import ProgressView, progress_line
from engine.report.summary import bottleneck, summarize
from engine.report.words import conclude
from engine.rundir.layout import read_json, write_json
from engine.serving.models import model_revision, sha256
from engine.supervise.supervisor import SupervisorPhase, SupervisorStatus
from engine.telemetry import engine_metrics as keys
from tests.parts.recorded_runs import STEPS, RecordedRun, small_pack

REQUIRED = {
    *("heldout_before", "heldout_after", "heldout_gain", "steps", "swaps", "staleness", "episodes", "episodes_lost"),
    *("episodes_mixed_versions", "requests_aborted_by_swap", "requests_paused_by_swap", "groups_dropped"),
    *("episodes_trained_twice", "wall_s", "train_wall_s", "seed"),
}


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    """Eight tasks of the tiny family."""
    return small_pack(tmp_path_factory.mktemp("pack") / "small.jsonl")


@pytest.fixture
def run(tmp_path, pack):
    """A recorded run of three steps."""
    return RecordedRun.make(tmp_path, pack).write()


def console():
    """A console that is no terminal, and what it was told."""
    told = io.StringIO()
    return Console(file=told, width=120, highlight=False), told


def test_the_summary_has_every_promised_number(run):
    """With the values that were recorded."""
    values = summarize(run).values
    assert values.keys() >= REQUIRED
    assert read_json(run.summary) == {"format": 1, **orjson.loads(orjson.dumps(values))}
    assert values["heldout_before"] | {"mean": 0.0, "ci95": 0.1, "low": -0.1, "high": 0.1} == values["heldout_before"]
    assert values["heldout_gain"] == {"mean": 0.5, "ci95": 0.0, "low": 0.5, "high": 0.5, "tasks": 2}
    assert (values["steps"], values["swaps"], values["episodes"], values["episodes_masked"]) == (STEPS, STEPS, 24, 0)
    assert values["staleness"] == {"0": 1.0}
    assert values["train_wall_s"] == 2.5
    assert values["broken_promises"] == {}


def test_an_unfinished_run_has_a_summary_too(tmp_path, pack):
    """What was not measured is null, not a crash."""
    made = RecordedRun.make(tmp_path, pack)
    made.evaluations.clear()
    run = made.write()
    (run.eval / "evaluations.jsonl").unlink()
    values = summarize(run).values
    assert values["heldout_before"] is None
    assert values["heldout_gain"] is None


def test_the_last_words_hold_what_a_newcomer_needs(run):
    """Both rewards, the gain, one improved episode before and after, where things lie, what to do next."""
    out, told = console()
    conclude(out, run)
    text = told.getvalue()
    for part in ("before (adapter v0)", f"after (adapter v{STEPS})", "gain, paired by task", "+0.500", "bottleneck:"):
        assert part in text
    assert text.index("before training") < text.index("after training")
    assert re.search(r"agent asks +What is it\?", text)
    assert "(reveals " in text
    assert "synth-engine audit" in text
    assert "audit: every promise was kept" in text


def with_simulators(made):
    """The same run with users and tools played by a language model; its engine was restarted once."""
    made.run.config.write_bytes(
        made.run.config.read_bytes().replace(b'kind = "offline"', b'kind = "llm"\nendpoint = "sim"')
        + b'\n[endpoints.sim]\nurl = "http://127.0.0.1:1"\nmodel = "m"\n'
    )
    counted = {
        "endpoint.sim/requests_count": 40,
        "endpoint.sim/calls_count": 28,
        "endpoint.sim/abandoned_count": 1,
        "endpoint.sim/failed_count": 2,
        "endpoint.sim/fault_timeout_count": 11,
        "endpoint.sim/cost_money": 0.5,
        "user/asked_count": 26,
        "user/replies_count": 28,
        "user/given_up_count": 2,
        "user/prompt_tokens_count": 2_000,
        "user/completion_tokens_count": 80,
        "user/refused_leak_count": 7,
        "user/cost_money": 0.5,
        "mapping/exact_count": 9,
        "mapping/simulated_count": 3,
    }
    made.rows[1] |= counted
    made.rows[3] |= {key: count / 2 for key, count in counted.items() if key != "user/refused_leak_count"}
    made.rows[2] |= dict.fromkeys(counted, 0)
    return made.write()


def test_the_last_words_show_what_simulators_took(tmp_path, pack):
    """Per recorded episode, over restarts; refused replies as shares; what the endpoint went through."""
    run = with_simulators(RecordedRun.make(tmp_path, pack))
    values = summarize(run).values["simulators"]
    assert values["episodes"] == 28
    assert values["parts"]["user"] | {"replies": 42, "refused": {"leak": 7}, "cost": 0.75} == values["parts"]["user"]
    assert values["mapping"] == {"exact": 13, "simulated": 4}
    out, told = console()
    conclude(out, run)
    text = told.getvalue()
    assert re.search(r"user +│ +1.50 │ +111 │ leak 16.7% +│ +3 of 39 │ 0.7500", text)
    assert "endpoint sim: 60 requests: 42 calls answered, 16 timeout, 1 abandoned; 3 calls failed; cost 0.7500" in text
    assert "tool calls answered: 13 exact, 4 simulated" in text
    assert "leak 16.7%" in (run.path / "report.html").read_text()


def test_outcomes_and_injected_faults_are_counted(tmp_path, pack):
    """A run without language models says nothing of them."""
    made = RecordedRun.make(tmp_path, pack)
    made.run.faults.write_bytes(b'{"fault":"flaky"}\n{"fault":"error"}\n{"fault":"flaky"}\n')
    run = made.write()
    values = summarize(run).values
    assert (values["tool_faults"], values["simulators"]) == ({"flaky": 2, "error": 1}, None)
    out, told = console()
    conclude(out, run)
    assert "training episodes by outcome: 24 agent_fail\n" in told.getvalue()
    assert "faults injected into tool calls: 2 flaky, 1 error" in told.getvalue()
    assert "calls per episode" not in told.getvalue()


def test_the_report_contains_everything_it_shows(run):
    """One page without a link to anything outside, and a picture."""
    conclude(console()[0], run)
    page = (run.path / "report.html").read_text()
    assert page.count("<svg") == 1
    assert not re.search(r"<(script|link|img)", page)
    assert not re.search(r"(src|href)=['\"]http", page)
    assert "Held-out reward" in page
    assert (run.path / "report.png").read_bytes().startswith(b"\x89PNG")


def test_text_from_tasks_cannot_become_markup(tmp_path, pack):
    """Whatever a transcript holds is escaped in the page."""
    made = RecordedRun.make(tmp_path, pack)
    late = made.evaluations[-1].episodes[0]
    for message in late.messages:
        message["content"] = message["content"] + "<script>alert(1)</script>[bold]"
    run = made.write()
    out, told = console()
    conclude(out, run)
    assert "<script>" not in (run.path / "report.html").read_text()
    assert "<script>alert(1)</script>[bold]" in told.getvalue()


@pytest.mark.parametrize(
    ("learner_s", "admission_s", "word"),
    [(2, 90, "learner; raise learner.threads"), (90, 2, "rollouts; raise policy.threads"), (2, 2, "none;")],
)
def test_the_bottleneck_is_said_in_words(learner_s, admission_s, word):
    """The larger of two opposite waits names it."""
    assert bottleneck(learner_s, admission_s, 100.0).startswith(f"bottleneck: {word}")


def test_gauges_show_rates_and_eta(run):
    """Rates over the recorded rows; the ETA from the steps done so far."""
    rows = [
        {keys.RUN_S: float(s), keys.EPISODES_FINISHED: 10 * s, keys.TOKENS_SAMPLED: 100 * s, keys.REWARD_MEAN: 0.5}
        for s in range(21)
    ]
    run.metrics.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows) + b'{"torn')
    write_json(run.progress, {"step": 2})
    write_json(run.path / "phase.json", {"phase": "training", "history": [{"phase": "training", "start_s": 10.0}]})
    gauges = read_gauges(run, load("tiny", ["run.steps=6"]).config)
    assert gauges.episodes_per_s == pytest.approx(10)
    assert gauges.tokens_per_s == pytest.approx(100)
    assert gauges.eta_s == pytest.approx(20)
    assert progress_line(gauges).startswith("training  step 2/6  reward 0.50")
    assert progress_line(gauges).endswith("ETA 0:20")
    assert "down" not in progress_line(gauges)
    assert "1 policy server down" in progress_line(replace(gauges, servers_down=1))


def test_progress_is_one_line_per_ten_seconds(run):
    """And a note, or another stage, at once."""
    out, told = console()
    config = load(run.config).config
    progress = ProgressView(run, config, out)
    for _ in range(3):
        progress(SupervisorStatus(phase=SupervisorPhase.STARTING, waiting_for=("server-0",), notes=()))
    progress(SupervisorStatus(phase=SupervisorPhase.STARTING, waiting_for=(), notes=("learner ended",)))
    lines = told.getvalue().splitlines()
    assert lines == [
        "0:00  starting: waiting for server-0",
        "  ! learner ended",
        "0:00  starting: waiting for the engine",
    ]


def test_a_taken_name_gets_a_number(tmp_path, pack):
    """Nothing is overwritten, and `latest` points at the newest."""
    sets = [f"run.dir={tmp_path}", "run.name=again", f"tasks.pack={pack}"]
    first, second = create(load("tiny", sets).config), create(load("tiny", sets).config)
    assert (first.path.name, second.path.name) == ("again", "again-2")
    assert (tmp_path / "latest").resolve() == second.path
    assert first.run_id != second.run_id


def test_the_manifest_pins_what_the_run_rests_on(tmp_path, pack):
    """Hashes of pack and model, versions, a socket path, and never a key."""
    run = create(load("tiny", [f"run.dir={tmp_path}", f"tasks.pack={pack}"]).config)
    manifest = read_json(run.manifest)
    assert manifest["pack_sha256"] == sha256(run.pack)
    assert manifest["model_revision"] == model_revision(Path(manifest["model_path"]))
    assert manifest["versions"]["torch"]
    assert manifest["socket"] == str(run.socket)
    assert load(run.config).config.model.path == manifest["model_path"]


def test_a_reopened_run_keeps_its_configuration(tmp_path, pack):
    """What a resume may change is written back; anything else is refused."""
    run = create(load("tiny", [f"run.dir={tmp_path}", f"tasks.pack={pack}"]).config)
    assert reopen(run, ("run.steps=90",)).run.steps == 90
    assert reopen(run, ()).run.steps == 90
    with pytest.raises(ConfigError, match=r"cannot change learner\.lr"):
        reopen(run, ("learner.lr=1.0",))


def test_a_model_that_is_none_is_refused(tmp_path, pack):
    """Before anything is made."""
    with pytest.raises(ConfigError, match=r"it has no config\.json"):
        create(load("tiny", [f"run.dir={tmp_path / 'runs'}", f"model.path={tmp_path}"]).config)
    assert not (tmp_path / "runs").exists()
