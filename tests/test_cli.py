"""engine.cli and the light commands: instant, readable, and errors of one sentence."""

import json
import signal
import subprocess
import sys
import time
import tomllib

import psutil
import pytest
from click.testing import CliRunner

from engine.cli import COMMANDS, cli
from engine.config import fields
from engine.rundir import RunDir, read_json

HEAVY = ("torch", "transformers", "peft", "sglang", "textual")


def invoke(*arguments):
    """A command's exit code and output."""
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments], catch_exceptions=False)
    return result.exit_code, result.output


def process(*arguments, **options):
    """`synth-engine` as a process, finished."""
    argv = [sys.executable, "-m", "engine.cli", *map(str, arguments)]
    return subprocess.run(argv, capture_output=True, text=True, check=False, **options)


def test_importing_the_command_line_is_cheap():
    """None of the heavy packages, nor pydantic or numpy, and under 0.3 s of CPU."""
    script = f"""
import sys, time, json
import engine.cli
loaded = [name for name in {(*HEAVY, "pydantic", "numpy", "matplotlib", "aiohttp")!r} if name in sys.modules]
print(json.dumps([loaded, time.process_time()]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded, cpu_s = json.loads(done.stdout)
    assert loaded == []
    assert cpu_s < 0.3


def test_no_command_of_the_engine_loads_a_heavy_package():
    """Not even when its module is imported: what needs torch is a child process."""
    script = f"""
import importlib, sys
from engine.cli import COMMANDS
for name in COMMANDS:
    importlib.import_module("engine.commands." + name)
print([name for name in {HEAVY!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_overview_lists_every_command():
    """With its line of help, by section."""
    code, output = invoke("--help")
    assert code == 0
    for name, entry in COMMANDS.items():
        assert name in output
        assert entry.section in output


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name):
    """`--help` of each command, with the same name as in the overview."""
    code, output = invoke(name, "--help")
    assert code == 0
    assert output.startswith(f"Usage: cli {name}")


def test_an_error_is_one_sentence_and_an_exit_code(tmp_path):
    """No traceback; 2 for what is the caller's to change."""
    done = process("run", "--set", "run.step=3", "--dir", tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip() == "error: --set run.step=3: there is no key 'run.step'; did you mean 'run.steps'?"
    assert list(tmp_path.iterdir()) == []


def test_a_shown_configuration_is_a_configuration():
    """What is printed is TOML with every key that has an effect."""
    code, output = invoke("config", "show", "--config", "tiny", "--set", "run.steps=7")
    assert code == 0
    assert tomllib.loads(output)["run"]["steps"] == 7


def test_an_explained_configuration_has_every_key():
    """With its meaning, and the source where it is not the default."""
    _, output = invoke("config", "show", "--explain", "--config", "tiny", "--set", "run.steps=7")
    for name, info in fields():
        assert f"  {name.partition('.')[2]} = " in output
        assert info.description.split(";")[0] in output
    assert "steps = 7   (--set run.steps=7; default 60)" in output
    assert "lr = 0.003   (tiny.toml; default 1e-05)" in output


def test_a_sound_pack_is_said_to_be_sound():
    """With its counts."""
    code, output = invoke("pack", "check", "showcase")
    assert code == 0
    assert "sound" in output
    assert "executable checks" in output


def test_a_bad_pack_is_listed_whole(tmp_path):
    """Every problem, and exit code 1."""
    file = tmp_path / "bad.jsonl"
    file.write_text('{"format": 1, "pack": "bad"}\n{"id": "a"}\n{"id": "b", "instruction": 3}\n')
    code, output = invoke("pack", "check", file)
    assert code == 1
    assert "bad.jsonl:2: task a" in output
    assert "bad.jsonl:3: task b" in output
    assert "problems" in output


def test_resume_needs_a_run(tmp_path):
    """And takes no second configuration."""
    done = process("run", "--resume", "--dir", tmp_path)
    assert done.returncode == 2
    assert "no run yet" in done.stderr
    done = process("run", "--resume", "x", "--config", "tiny")
    assert "--resume takes name and configuration from the run" in done.stderr


DRY = ("run", "--config", "dry", "--plain", "--set", "eval.heldout_tasks=8", "--set", "eval.every=0")


@pytest.mark.timeout(120)
def test_a_dry_run_tells_its_story(tmp_path):
    """What it will do, progress, both rewards, where things lie; and it leaves a run that passes its audit."""
    done = process(*DRY, "--set", "run.steps=2", "--set", "learner.pace_s=0.2", "--dir", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    story = ["training   2 steps x 8 groups x 8 episodes", "starting", "Held-out reward", "Everything lies in"]
    assert [part for part in story if part not in done.stdout] == []
    run = RunDir(tmp_path / "dry")
    assert read_json(run.summary)["steps"] == 2
    assert (run.path / "report.html").exists()
    assert (run.path / "report.png").exists()
    assert process("audit", run.path).returncode == 0
    assert read_json(run.processes)["processes"] == []


@pytest.mark.slow
def test_a_stopped_run_goes_on(tmp_path):
    """SIGTERM drains and says how to go on; --resume finishes it; nothing is lost or trained twice."""
    argv = [sys.executable, "-m", "engine.cli", *DRY, "--set", "run.steps=8", "--dir", str(tmp_path)]
    run = RunDir(tmp_path / "dry")
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as first:
        _until_step(run, 2)
        first.send_signal(signal.SIGTERM)
        output, _ = first.communicate(timeout=60)
    assert first.returncode == 143
    assert "synth-engine run --resume" in output
    assert read_json(run.progress)["step"] < 8
    done = process("run", "--resume", run.path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert read_json(run.summary)["steps"] == 8
    assert process("audit", run.path).returncode == 0


@pytest.mark.slow
def test_children_notice_a_killed_supervisor(tmp_path):
    """They drain and exit by themselves; --resume goes on."""
    argv = [sys.executable, "-m", "engine.cli", *DRY, "--set", "run.steps=6", "--dir", str(tmp_path)]
    run = RunDir(tmp_path / "dry")
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL) as first:
        _until_step(run, 1)
        children = [psutil.Process(row["pid"]) for row in read_json(run.processes)["processes"]]
        first.kill()
    assert psutil.wait_procs(children, timeout=60)[1] == []
    assert process("run", "--resume", run.path).returncode == 0
    assert read_json(run.summary)["steps"] == 6


def _until_step(run, step):
    while (read_json(run.progress) or {"step": 0})["step"] < step:
        time.sleep(0.05)
