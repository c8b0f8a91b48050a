"""engine.serving and engine.preflight.doctor: SGLang's command and environment, GPUs, and what a machine lacks."""

import signal
import stat
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner

from engine.commands.doctor import command as doctor
from engine.commands.install_sglang import command as install_sglang
from engine.config.load import validate
from engine.errors import ConfigError, RunError
from engine.rundir.layout import RunDir
from engine.serving import install as install_module
from engine.serving import sglang
from engine.serving.addresses import addresses
from engine.serving.commands import server_commands
from engine.serving.gpus import Gpu, gpus, parse_gpus
from engine.serving.install import inspect_environment, installed
from engine.serving.models import find_model
from engine.serving.placement import without_gpu
from tests.parts.children import python
from tests.parts.places import ROOT
from tests.parts.waiting import wait_until

SMALL = "tasks.pack=showcase"
"""A pack that is read at once."""


def config_of(**policy):
    """A configuration whose policy is served by SGLang on the CPU."""
    model = {"path": str(find_model("tiny").path)}
    return validate({"policy": {"launch": "sglang", "device": "cpu", **policy}, "model": model}, {})


def commands_of(config, path, ports):
    """The commands of all servers on these ports."""
    return server_commands(RunDir(path), config, addresses(config, ports))


@pytest.fixture
def fake_environment(tmp_path) -> Path:
    """A directory that looks like a virtual environment; its Python is this one, so SGLang is missing there."""
    python = tmp_path / "environment" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    return tmp_path / "environment"


def value_after(argv, flag):
    """The value of the last `flag`: the one that counts."""
    return argv[len(argv) - 1 - argv[::-1].index(flag) + 1]


def test_the_server_is_given_what_the_run_needs(fake_environment, tmp_path):
    """Rank, slots for every version that can be loaded and the base, room for an episode, and a seed of its own."""
    config = validate(
        {
            "model": {"path": str(find_model("tiny").path)},
            "run": {"seed": 5},
            "policy": {"launch": "sglang", "device": "cpu", "sglang": str(fake_environment), "servers": 2},
            "limits": {"tokens": 2000},
            "schedule": {"max_staleness": 2},
            "learner": {"rank": 8},
        },
        {},
    )
    command = commands_of(config, tmp_path, [30_000, 31_000])[1]
    assert command.argv[:3] == (str(fake_environment / "bin/python"), "-m", "sglang.launch_server")
    assert command.name == "server-1"
    assert value_after(command.argv, "--port") == "31000"
    assert value_after(command.argv, "--random-seed") == "6"
    assert value_after(command.argv, "--max-lora-rank") == "8"
    assert value_after(command.argv, "--max-loaded-loras") == value_after(command.argv, "--max-loras-per-batch") == "7"
    assert int(value_after(command.argv, "--context-length")) > 2000
    assert value_after(command.argv, "--device") == "cpu"
    assert command.environment["PYTHONPATH"] == str(sglang.STAND_INS)
    assert command.environment["OMP_NUM_THREADS"] == "1"


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """A program called nvidia-smi that prints a table, or fails; no other program is found."""

    def install(body: str) -> None:
        program = tmp_path / "bin" / "nvidia-smi"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{body}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", str(program.parent))

    return install


TWO_GPUS = "echo '0, NVIDIA H100, 81559, 80000'; echo '1, NVIDIA H100, 81559, 80000'"


def test_on_gpus_sglang_chooses_its_own_backends(driver, fake_environment, tmp_path):
    """No flag of the CPU path, no stand-in, no KV size unless one is set, and each server sees its GPU alone."""
    driver(TWO_GPUS)
    config = config_of(device="auto", sglang=str(fake_environment), servers=2)
    first, second = commands_of(config, tmp_path, [1, 2])
    assert [command.environment["CUDA_VISIBLE_DEVICES"] for command in (first, second)] == ["0", "1"]
    assert value_after(first.argv, "--dtype") == "bfloat16"
    assert not {"--device", "--attention-backend", "--lora-backend", "--max-total-tokens"} & set(first.argv)
    assert first.environment.get("PYTHONPATH") != str(sglang.STAND_INS)
    sized = config_of(device="cuda", sglang=str(fake_environment), kv_tokens=50_000, tensor_parallel=2)
    [wide] = commands_of(sized, tmp_path, [1])
    assert value_after(wide.argv, "--max-total-tokens") == "50000"
    assert value_after(wide.argv, "--tensor-parallel-size") == "2"
    assert wide.environment["CUDA_VISIBLE_DEVICES"] == "0,1"


def test_a_context_is_never_longer_than_the_models(fake_environment, tmp_path):
    """SGLang would not start."""
    model = {"path": str(find_model("tiny").path)}
    policy = {"launch": "sglang", "device": "cpu", "sglang": str(fake_environment)}
    limits, learner = {"tokens": 32_768}, {"micro_batch_tokens": 32_768}
    config = validate({"model": model, "policy": policy, "limits": limits, "learner": learner}, {})
    [command] = commands_of(config, tmp_path, [1])
    assert value_after(command.argv, "--context-length") == "32768"


def judged(endpoint, **sections):
    """A configuration with the embedded policy, whose judge's server the run starts."""
    started = {"launch": "sglang", "model": str(find_model("tiny").path), **endpoint}
    model = {"path": str(find_model("tiny").path)}
    return validate({"model": model, "scorer": {"judge": "sim"}, "endpoints": {"sim": started}, **sections}, {})


def test_an_endpoints_server_is_given_what_its_calls_need(fake_environment, tmp_path):
    """A name, a log and threads of its own, room for its calls, its flags last; nothing of adapters."""
    endpoint = {
        "device": "cpu",
        "sglang": str(fake_environment),
        "threads": 3,
        "flags": "--dtype bfloat16",
        "context_tokens": 4000,
        "concurrency": 8,
    }
    policy, command = commands_of(judged(endpoint), tmp_path, [30_000, 31_000])
    assert policy.argv[1:4] == ("-P", "-m", "engine.embedded")
    assert (command.name, command.log) == ("endpoint-sim", tmp_path / "endpoint-sim.log")
    assert command.argv[:3] == (str(fake_environment / "bin/python"), "-m", "sglang.launch_server")
    flags = ("--model-path", "--port", "--context-length", "--max-running-requests", "--max-total-tokens", "--dtype")
    assert [value_after(command.argv, flag) for flag in flags] == [
        *(str(find_model("tiny").path), "31000", "4016", "8", str(8 * 4016), "bfloat16")
    ]
    assert not [word for word in command.argv if "lora" in word]
    assert "--constrained-json-disable-any-whitespace" in command.argv
    assert command.environment["PYTHONPATH"] == str(sglang.STAND_INS)
    assert command.environment["OMP_NUM_THREADS"] == "3"
    assert command.leashed


def test_an_endpoints_cache_on_the_cpu_is_no_larger_than_a_policys(fake_environment, tmp_path):
    """Unless one call needs more."""
    for tokens, most in ((16_000, 200_000), (32_752, 200_000)):
        config = judged({"device": "cpu", "sglang": str(fake_environment), "context_tokens": tokens})
        [_, command] = commands_of(config, tmp_path, [1, 2])
        assert int(value_after(command.argv, "--max-total-tokens")) == most


def test_on_gpus_an_endpoint_sees_its_own(driver, fake_environment, tmp_path):
    """It serves the checkpoint's type, whatever the policy's server does."""
    driver(TWO_GPUS)
    policy = {"launch": "sglang", "device": "cuda", "gpus": [0], "sglang": str(fake_environment)}
    wide = {"sglang": str(fake_environment), "memory_fraction": 0.7}
    server, endpoint = commands_of(judged(wide, policy=policy), tmp_path, [1, 2])
    assert [one.environment["CUDA_VISIBLE_DEVICES"] for one in (server, endpoint)] == ["0", "1"]
    assert value_after(endpoint.argv, "--mem-fraction-static") == "0.7"
    assert not {"--device", "--dtype", "--max-total-tokens", "--attention-backend"} & set(endpoint.argv)
    alone = judged({"sglang": str(fake_environment), "tensor_parallel": 2})
    [_, endpoint] = commands_of(alone, tmp_path, [1, 2])
    assert value_after(endpoint.argv, "--tensor-parallel-size") == "2"
    assert endpoint.environment["CUDA_VISIBLE_DEVICES"] == "0,1"


def test_servers_without_gpus_ask_nothing_of_a_learners(driver, fake_environment, tmp_path):
    """An evaluation of a run is not held up by the GPUs that it trained on."""
    driver("exit 9")
    config = judged({"sglang": str(fake_environment)}, learner={"gpus": [7]})
    assert [command.name for command in commands_of(config, tmp_path, [1, 2])] == ["server-0", "endpoint-sim"]


def test_the_users_flags_come_last(fake_environment, tmp_path):
    """So that they win."""
    config = config_of(sglang=str(fake_environment), flags="--dtype bfloat16 --max-lora-rank 64")
    [command] = commands_of(config, tmp_path, [1])
    assert value_after(command.argv, "--dtype") == "bfloat16"
    assert value_after(command.argv, "--max-lora-rank") == "64"


def test_a_command_can_start_sglang(tmp_path):
    """For containers: our flags are appended."""
    [command] = commands_of(config_of(sglang="env A=1 true"), tmp_path, [1])
    assert command.argv[:4] == ("env", "A=1", "true", "--model-path")


@pytest.mark.parametrize(
    ("named", "sentence"),
    [
        ("auto", "run `synth-engine install-sglang --cpu`"),
        ("/nowhere/at/all", "is neither a virtual environment"),
        ("", "is neither a virtual environment"),
        ("docker 'run", "is no command"),
    ],
)
def test_an_sglang_that_cannot_be_started_is_named(named, sentence, monkeypatch, tmp_path):
    """With the key and the remedy."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    for table in ("policy", "endpoints.sim"):
        with pytest.raises(ConfigError, match=sentence) as refused:
            sglang.launcher(config_of(sglang=named).policy, table, cpu=True)
        assert f"{table}.sglang" in str(refused.value)


def test_gpus_are_what_the_driver_shows(driver):
    """By index, with their memory; a row of a card that fell off the bus is left out."""
    driver("echo '0, NVIDIA H100, 81559, 80000'; echo '1, NVIDIA H100, [Unknown Error], [Unknown Error]'")
    assert gpus() == [Gpu(index=0, name="NVIDIA H100", total_mib=81559, free_mib=80000)]
    assert without_gpu(config_of(device="auto").policy, gpus()) is False
    driver("exit 9")
    assert gpus() == []
    assert without_gpu(config_of(device="auto").policy, gpus()) is True


def test_a_machine_without_a_driver_has_no_gpus(monkeypatch, tmp_path):
    """Nor is that an error."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpus() == []
    assert parse_gpus("\nnonsense\n,,,\n") == []


def test_an_environment_without_sglang_is_told(fake_environment):
    """With the last line of what its Python said."""
    with pytest.raises(RunError, match="cannot import SGLang's server: ModuleNotFoundError"):
        inspect_environment(fake_environment, cpu=True)
    with pytest.raises(RunError, match="`synth-engine install-sglang` makes one"):
        inspect_environment(fake_environment / "other", cpu=True)


def test_an_installation_that_fails_is_not_taken_for_one(fake_environment, monkeypatch):
    """Pip's exit code and the step are told, and the next call begins again."""
    monkeypatch.setattr(install_module, "_steps", lambda **_: [("nothing useful", ["--no-such-option"])])
    result = CliRunner().invoke(install_sglang, [str(fake_environment), "--cpu"])
    assert isinstance(result.exception, RunError)
    assert "pip's exit code 2 (nothing useful)" in str(result.exception)
    assert not installed(fake_environment, cpu=True)


def test_what_is_installed_is_not_installed_again(fake_environment, monkeypatch):
    """The marker names release, packages and Python: another list of packages is another environment."""
    monkeypatch.setattr(install_module, "_steps", lambda **_: [])
    facts = install_module.EnvironmentFacts(python="3", sglang="0", torch="2", cuda=False)
    monkeypatch.setattr(install_module, "inspect_environment", lambda *_, **__: facts)
    assert CliRunner().invoke(install_sglang, [str(fake_environment), "--cpu"]).exit_code == 0
    assert installed(fake_environment, cpu=True)
    assert not installed(fake_environment, cpu=False)
    again = CliRunner().invoke(install_sglang, [str(fake_environment), "--cpu"])
    assert "is installed in" in again.output
    assert f"--set policy.sglang={fake_environment}" in again.output


def test_the_doctor_finds_nothing_missing_for_a_dry_run(tmp_path):
    """One line for each question; exit code 0."""
    result = CliRunner().invoke(doctor, ["--config", "dry", "--set", f"run.dir={tmp_path}", "--set", SMALL])
    assert result.exit_code == 0, result.output
    assert {line.split()[1] for line in result.output.splitlines()[:-1] if line.startswith(("ok", "note"))} >= {
        *("python", "packages", "memory", "disk", "ports", "GPUs", "model", "tasks")
    }


def test_the_doctor_names_what_would_stop_a_run(tmp_path, monkeypatch):
    """Each with its remedy; exit code 1."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    overrides = {
        "tasks.pack": "showcase",
        "model.path": tmp_path / "no-model",
        "stream.low_water_mb": 1e12,
        "policy.launch": "sglang",
        "policy.device": "cpu",
    }
    result = CliRunner().invoke(doctor, [word for k, v in overrides.items() for word in ("--set", f"{k}={v}")])
    assert result.exit_code == 1
    assert "is no model directory" in result.output
    assert "free some, or set run.dir" in result.output
    assert "run `synth-engine install-sglang --cpu`" in result.output
    assert result.output.endswith("3 of these would stop the run\n")


def test_the_doctor_asks_the_servers_that_are_named():
    """A server that does not answer would stop a run."""
    url = "http://127.0.0.1:9"
    result = CliRunner().invoke(
        doctor, ["--set", SMALL, "--set", "policy.launch=none", "--set", f'policy.urls=["{url}"]']
    )
    assert result.exit_code == 1
    assert "it does not answer GET /ready with 200" in result.output


def look_at(endpoint, *overrides):
    """What the doctor says of a dry run whose judge is at an endpoint with these keys."""
    sets = [SMALL, "scorer.judge=sim", *(f"endpoints.sim.{key}={value}" for key, value in endpoint.items()), *overrides]
    return CliRunner().invoke(doctor, ["--config", "dry", *(word for one in sets for word in ("--set", one))]).output


def test_the_doctor_asks_an_endpoint(monkeypatch, fake_environment):
    """Whether it answers, with its key; a key that is not set, and one that is refused, each have a remedy."""
    keys = []

    class Guarded(BaseHTTPRequestHandler):
        def do_GET(self):
            keys.append((self.path, self.headers["Authorization"]))
            open_ = self.path == "/base/health" or keys[-1] == ("/base/v1/models", "Bearer secret")
            self.send_response(200 if open_ else 404 if self.path.startswith("/other") else 401)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Guarded) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url, key = f"http://127.0.0.1:{server.server_port}", {"model": "m", "api_key_env": "SIM_KEY"}
        try:
            unset = look_at({"url": f"{url}/base/", **key})
            monkeypatch.setenv("SIM_KEY", "secret")
            assert f"m: {url}/base/ answers GET /v1/models" in look_at({"url": f"{url}/base/", **key})
            monkeypatch.setenv("SIM_KEY", "wrong")
            assert f"{url}/base refuses this API key (401)" in look_at({"url": f"{url}/base", **key})
            assert "GET /v1/models with 404 and GET /health with 404" in look_at({"url": f"{url}/other"})
        finally:
            server.shutdown()
            thread.join()
    assert "endpoints.sim.api_key_env: the environment variable SIM_KEY is not set" in unset
    assert "does not answer" in look_at({"url": "http://127.0.0.1:9"})
    assert "endpoints.sim.model: /nowhere is no model" in look_at(
        {"url": "http://127.0.0.1:9", "api": "sglang", "model": "/nowhere"}
    )


def test_the_doctor_looks_once_into_an_environment(monkeypatch, fake_environment):
    """Which policy and endpoint share."""
    shared = ["policy.launch=sglang", "policy.device=cpu", f"policy.sglang={fake_environment}"]
    endpoint = {"launch": "sglang", "model": "tiny", "device": "cpu", "sglang": fake_environment}
    output = look_at(endpoint, *shared)
    assert "tiny-model, served by an SGLang of its own" in output
    assert output.count("cannot import SGLang's server") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent died")
def test_a_leashed_process_ends_with_its_parent(tmp_path):
    """Also when that is killed, and can tell nobody."""
    told = tmp_path / "pid"
    sleeps = "import os, pathlib, sys, time; pathlib.Path(sys.argv[1]).write_text(str(os.getpid())); time.sleep(60)"
    parent = (
        "import sys, time; from pathlib import Path; from engine.config.environment import child_environment\n"
        "from engine.processes.child import Child, Command\n"
        "argv = (sys.executable, '-c', sys.argv[2], sys.argv[1])\n"
        "log = Path(sys.argv[1]).with_name('log')\n"
        "Child(Command(name='x', argv=argv, log=log, environment=child_environment(), leashed=True)).start(0)\n"
        "time.sleep(60)"
    )
    with python("-c", parent, told, sleeps, cwd=ROOT) as process:
        wait_until(lambda: told.exists() and told.read_text(), while_runs=process)
        child = psutil.Process(int(told.read_text()))
    assert child.wait(timeout=10) in (None, -signal.SIGTERM)
    assert not psutil.pid_exists(child.pid)
