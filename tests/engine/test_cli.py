"""engine.cli and the light commands: instant, readable, and errors of one sentence."""

import json
import signal
import subprocess
import sys
import tomllib
import urllib.request

import anyio
import psutil
import pytest
from click.testing import CliRunner

from engine import cli as entry
from engine.chat.chat_format import ChatFormat
from engine.cli import COMMANDS, cli
from engine.commands import eval as eval_command
from engine.commands import run as run_command
from engine.config.load import fields
from engine.errors import ConfigError, RunError
from engine.rundir.layout import RunDir, read_json, read_lines
from engine.scripted.server import MockServer
from engine.scripted.zero_adapter import zero_adapter
from engine.serving.models import find_model
from engine.supervise.supervisor import Ending
from tests.parts.children import child
from tests.parts.load_runs import mock_server
from tests.parts.policy_parts import adapter_directory, serving
from tests.parts.recorded_runs import small_pack
from tests.parts.waiting import LONG_S, wait_until

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
    """None of the heavy packages, nor pydantic or numpy."""
    script = f"""
import sys
import engine.cli
loaded = [name for name in {(*HEAVY, "pydantic", "numpy", "matplotlib", "aiohttp")!r} if name in sys.modules]
print(loaded)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_command_of_the_engine_loads_a_heavy_package():
    """Not even when its module is imported: what needs torch is a child process."""
    script = f"""
import importlib, sys
from engine.cli import COMMANDS, module_of
for name in COMMANDS:
    importlib.import_module(module_of(name))
print([name for name in {HEAVY!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_overview_lists_every_command():
    """With its line of help, by section."""
    code, output = invoke("--help")
    assert code == 0
    for name, shown in COMMANDS.items():
        assert name in output
        assert shown.section in output


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


def test_a_file_that_cannot_be_used_is_one_sentence(tmp_path):
    """The path and the system's reason, or what is there instead; no traceback."""
    done = process("run", "--dir", "/proc/x")
    assert (done.returncode, done.stderr) == (1, "error: /proc/x: No such file or directory\n")
    done = process("run", "--config", tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: configs: there is no file '{tmp_path}'")


def test_the_errors_of_a_group_of_tasks_are_sentences_too(monkeypatch, capsys):
    """Each once, however nested; 2 if one of them is the caller's to change."""

    def failing():
        raise ExceptionGroup("tasks", [RunError("no server"), ExceptionGroup("more", [ConfigError("no pack")])])

    monkeypatch.setattr(entry, "cli", failing)
    with pytest.raises(SystemExit, match="2"):
        entry.main()
    assert capsys.readouterr().err == "error: no server\nerror: no pack\n"


def test_a_shown_configuration_is_a_configuration():
    """What is printed is TOML with every key that has an effect."""
    code, output = invoke("config", "show", "--config", "tiny", "--set", "run.steps=7")
    assert code == 0
    assert tomllib.loads(output)["run"]["steps"] == 7


def test_an_explained_configuration_has_every_key():
    """With its meaning, and the source where it is not the default."""
    _, output = invoke("config", "show", "--explain", "--config", "tiny", "--set", "run.steps=7")
    for name, info in fields():
        assert f"  {name.rpartition('.')[2]} = " in output
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


@pytest.fixture
def unsupervised(monkeypatch):
    """`run` ends where its processes would start."""

    class Nobody:
        def __init__(self, run, config, on_tick):
            pass

        def run(self):
            return Ending(code=1, message="nobody is here")

    monkeypatch.setattr(run_command, "Supervisor", Nobody)


def test_a_name_is_a_string_and_the_measured_time_is_that_of_the_shipped_run(tmp_path, monkeypatch, unsupervised):
    """2024 is a name; five minutes are told of a fresh `run` without overrides, and of no other."""
    monkeypatch.chdir(tmp_path)
    assert "about 5 minutes" in invoke("run", "--plain", "--name", "2024", "--dir", "12")[1]
    assert read_json(tmp_path / "12" / "2024" / "manifest.json")["name"] == "2024"
    pack = small_pack(tmp_path / "small.jsonl")
    for arguments in (["--resume", "--dir", "12"], ["--set", f"tasks.pack={pack}"]):
        output = invoke("run", "--plain", *arguments)[1]
        assert "about 5 minutes" not in output
        assert "unknown until the first steps" in output


def test_an_evaluation_with_a_script(tmp_path):
    """Any split, by its name as packs write it; the script is named, and an adapter has no place."""
    code, output = invoke("eval", "--config", "dry", "--split", "validation", "--tasks", "3")
    assert code == 0
    assert output.startswith("script engine.scripted:GoldPolicy: 3 validation tasks of tiny\n")
    assert "3 episodes, 0 masked" in output
    with pytest.raises(ConfigError, match=r"--adapter has no effect with policy.launch = .scripted."):
        invoke("eval", "--config", "dry", "--adapter", tmp_path)
    with pytest.raises(ConfigError, match="--dir has no effect without --run"):
        invoke("eval", "--config", "dry", "--dir", tmp_path)
    code, output = invoke("eval", "--split", "HELDOUT")
    assert code == 2
    assert "'train', 'validation', 'heldout'" in output


@pytest.fixture
def mock():
    """A server that plays the tiny model."""
    return MockServer(chat=ChatFormat.load(find_model("tiny").path), latency_s=0.0)


@pytest.fixture
def adapter(tmp_path):
    """An adapter of rank 4, for a server that does not look at weights."""
    path = adapter_directory(tmp_path)
    (path / "adapter_config.json").write_text('{"r": 4}')
    return path


async def test_an_evaluation_leaves_nothing_on_a_server(mock, adapter):
    """Its adapter is loaded for as long as it measures."""
    async with serving(mock) as url:
        arguments = ("eval", "--config", "dry", "--url", url, "--adapter", adapter, "--tasks", "3")
        code, output = await anyio.to_thread.run_sync(invoke, *arguments)
    assert code == 0
    assert f"with adapter {adapter}: 3 heldout tasks" in output
    assert f"waiting for {url}, at most 30 s" in output
    assert mock.requests >= 3
    assert mock.adapters == {}


def test_an_evaluation_says_what_it_waits_for(monkeypatch):
    """At once; and gives up with the address."""
    monkeypatch.setattr(eval_command, "READY_S", 0.2)
    runner = CliRunner()
    result = runner.invoke(cli, ["eval", "--url", "http://127.0.0.1:1", "--tasks", "2"])
    assert "waiting for http://127.0.0.1:1, at most 0.2 s" in result.output
    assert "policy server http://127.0.0.1:1 was not ready in 0.2 s" in str(result.exception)


def test_a_directory_without_a_rank_is_no_adapter(tmp_path):
    """It is named, before anything starts."""
    with pytest.raises(ConfigError, match=r"is no adapter directory: adapter_config.json gives no rank"):
        invoke("eval", "--adapter", tmp_path)


@pytest.mark.slow
def test_an_adapter_of_any_rank_is_measured(tmp_path):
    """The embedded server makes room for what the adapter's own file says, not for learner.rank."""
    adapter = tmp_path / "wide"
    adapter.mkdir()
    for name, content in zero_adapter(find_model("tiny").path, 24, 48).items():
        (adapter / name).write_bytes(content)
    done = process("eval", "--adapter", adapter, "--tasks", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 episodes, 0 masked" in done.stdout


DRY = ("run", "--config", "dry", "--plain", "--set", "eval.heldout_tasks=8", "--set", "eval.every=0")


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
def test_a_finished_run_leaves_nothing_on_a_server(tmp_path):
    """A server of one's own has its adapter slots back, and the audit has nothing to say about that."""
    with mock_server(find_model("tiny").path) as url:
        sets = (f'policy.urls=["{url}"]', "policy.launch=none", "run.steps=2", "learner.pace_s=0.2")
        done = process(*DRY, *(word for text in sets for word in ("--set", text)), "--dir", tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        with urllib.request.urlopen(f"{url}/v1/models") as answer:
            assert [card["id"] for card in json.load(answer)["data"]] == ["mock"]
    events = [(row["event"], row["version"]) for row in read_lines(RunDir(tmp_path / "dry").swaps) if row["ok"]]
    assert sorted(version for event, version in events if event == "unload") == [0, 1, 2]
    assert process("audit", tmp_path / "dry").returncode == 0


@pytest.mark.slow
def test_a_stopped_run_goes_on(tmp_path):
    """SIGTERM drains and says how to go on; --resume finishes it; nothing is lost or trained twice."""
    argv = [sys.executable, "-m", "engine.cli", *DRY, "--set", "run.steps=8", "--dir", str(tmp_path)]
    run = RunDir(tmp_path / "dry")
    with child(*argv, stdout=subprocess.PIPE, text=True) as first:
        _until_step(run, 2)
        first.send_signal(signal.SIGTERM)
        output, _ = first.communicate(timeout=LONG_S)
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
    with child(*argv, stdout=subprocess.DEVNULL) as first:
        _until_step(run, 1)
        children = [psutil.Process(row["pid"]) for row in read_json(run.processes)["processes"]]
        first.kill()
    assert psutil.wait_procs(children, timeout=LONG_S)[1] == []
    assert process("run", "--resume", run.path).returncode == 0
    assert read_json(run.summary)["steps"] == 6


def _until_step(run, step):
    wait_until(lambda: (read_json(run.progress) or {"step": 0})["step"] >= step, LONG_S)
