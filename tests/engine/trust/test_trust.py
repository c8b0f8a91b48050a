"""engine.trust: what a run directory from elsewhere names is used only once its user accepted it."""

import os
import pty
import shutil
import subprocess
import sys

import orjson
import pytest

from engine.config.load import load
from engine.config.plugins import module_file
from engine.errors import ConfigError
from engine.preflight.manifest import create, reopen
from engine.rundir.layout import RunDir, read_json, write_json
from engine.trust.accepted import accepted, list_path, remember
from engine.trust.demands import demands
from engine.trust.opening import PLAYED, RESUMED, SCORED, open_run
from tests.parts.foreign_runs import EVIL, PROGRAM, SECRET, VARIABLE, Received, edit, sent, sink
from tests.parts.places import ROOT

NOWHERE = "http://127.0.0.1:1"
SCORER = {"scorer.kind": "evil:Scorer", "scorer.judge": None}
WORLD = {"world.kind": "evil:World", "world.mode": None, "world.mapping": None, "world.faults": None}
SCRIPT = {"policy.script": "evil:Policy"}
GRPO = {"learner.kind": "grpo", "learner.pace_s": None, "learner.advantage": "evil:advantage", "run.steps": 9}
EMBEDDED = {"policy.launch": "embedded", "policy.script": None}
FORK, EVAL = ("fork", "run", "g000000.00@0"), ("eval", "--run", "run", "--tasks", "2")
RESUME = ("run", "--resume", "run", "--plain")


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A recorded run that names nothing but what is shipped."""
    return sent(tmp_path_factory.mktemp("sent")).path


@pytest.fixture
def received(tmp_path, original):
    """It was sent to somebody who has nothing accepted yet."""
    return Received(tmp_path, original)


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The working directory and the state directory of somebody who makes runs."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "evil.py").write_text(EVIL)
    return tmp_path


def served_by(url, variable=VARIABLE):
    """Changes that name a policy server, and a variable for it."""
    server = {"policy.launch": "none", "policy.urls": [url], "policy.api_key_env": variable, "policy.script": None}
    return {**server, "run.steps": 9}


def judged_by(url, variable=VARIABLE):
    """Changes that name a judge, and a variable for it."""
    judge = {"url": url, "model": "x", "api_key_env": variable, "retries": 0}
    return {"scorer.judge": "sim", **{f"endpoints.sim.{name}": value for name, value in judge.items()}}


def refused(received, *arguments, names):
    """The command ends at once, says all of `names` and the remedy; nothing ran."""
    code, said = received.program(*arguments)
    assert code == 2, said
    for name in (*names, "Pass --trust", "SECURITY.md"):
        assert name in said
    assert not received.executed
    assert not received.accepted.exists()


# --- code -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "changes"),
    [
        (
            ("verify", "run"),
            WORLD,
        ),
        (("verify", "run"), {"user.kind": "evil:User"}),
        (("rescore", "run"), SCORER),
        (FORK, SCORER),
        (FORK, SCRIPT),
        (EVAL, SCRIPT),
        (RESUME, SCORER),
        (RESUME, {**EMBEDDED, **GRPO}),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_code_is_not_imported(received, command, changes):
    """World, user, scorer, script and advantage, by each command that would: named with the file that it lies in."""
    edit(received.run, changes)
    [name] = [value for value in changes.values() if isinstance(value, str) and value.startswith("evil:")]
    refused(received, *command, names=[f"'{name}', loaded from '{received.place}/evil.py'"])


def test_looking_for_a_module_imports_nothing(mine):
    """Neither the package that it lies in, nor the module; what is built in has no file, and is named all the same."""
    (mine / "pack" / "inner").mkdir(parents=True)
    for place in (mine / "pack", mine / "pack" / "inner"):
        (place / "__init__.py").write_text("raise RuntimeError('imported')")
    (mine / "pack" / "inner" / "world.py").write_text("raise RuntimeError('imported')")
    (mine / "bare").mkdir()
    assert module_file("pack.inner.world:World") == mine / "pack" / "inner" / "world.py"
    # Importing it would run the packages before it fails.
    assert module_file("pack.nothing.world:World") == mine / "pack" / "__init__.py"
    assert module_file("bare.nothing:World") == mine / "bare"
    assert module_file("nowhere.to.be:World") is None
    assert str(module_file("os:abort")) == "frozen"
    assert str(module_file("sys:exit")) == "built-in"
    assert "pack" not in sys.modules


@pytest.mark.parametrize("name", ["os:abort", "engine.cli:main", "shutil:rmtree"])
def test_any_object_is_code(received, name):
    """Of the standard library, or of ours: a name alone decides what is called."""
    edit(received.run, {**SCORER, "scorer.kind": name})
    refused(received, "rescore", "run", names=[f"scorer.kind = {name!r}, loaded from "])


def poisoned(received):
    """Put what would hide modules of ours, and some that ours import, into the working directory."""
    for name in ("tui", "textual", "engine", "learner", "orjson", "anyio", "click", "json", "html"):
        shutil.copyfile(received.place / "evil.py", received.place / f"{name}.py")


@pytest.mark.parametrize(
    "command",
    [
        "show run",
        "show run g000000.00",
        "audit run",
        "runs list --dir .",
        "export run --chat made",
        "export run --parquet made",
        "world audit run",
        "world export run --out made",
        "metrics export run --to tensorboard --out made",
        "attach run --shot made.svg",
        "runs gc run",
    ],
)
def test_reading_commands_neither_ask_nor_import(received, command):
    """Not even modules of the working directory that are named like ours, or like what ours import."""
    edit(received.run, {**SCORER, **SCRIPT, "user.kind": "evil:User"})
    poisoned(received)
    code, said = received.program(*command.split())
    assert code == (1 if command.startswith("audit") else 0), said
    assert "--trust" not in said
    assert any(path.name.startswith("made") for path in received.place.iterdir()) == ("made" in command)
    assert not received.executed
    assert not received.accepted.exists()


@pytest.mark.slow
def test_the_processes_of_a_run_find_ours(received):
    """In a working directory with modules that are named like ours, or like what ours import."""
    poisoned(received)
    sets = [
        "run.steps=1",
        "schedule.groups_per_step=2",
        "schedule.group_size=2",
        "eval.every=0",
        "eval.heldout_tasks=0",
    ]
    words = [word for override in sets for word in ("--set", override)]
    code, said = received.program("run", "--config", "dry", "--plain", *words)
    assert code == 0, said
    assert not received.executed


def test_a_run_that_names_nothing_is_not_asked_about(received):
    """Nor is a list made for it."""
    code, said = received.program("verify", "run")
    assert code == 0, said
    code, said = received.program(*EVAL)
    assert code == 0, said
    assert not received.accepted.exists()


# --- secrets and addresses ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "changes"),
    [
        (EVAL, served_by),
        (FORK, served_by),
        (RESUME, served_by),
        (("judge", "audit", "run"), judged_by),
        (("rescore", "run", "--judge"), judged_by),
        (RESUME, judged_by),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else value.__name__,
)
def test_no_secret_is_sent(received, command, changes):
    """Of a policy server and of an endpoint, by each command that would: variable and URL are named."""
    with sink() as (url, heard):
        edit(received.run, changes(url))
        refused(received, *command, names=[f"the environment variable '{VARIABLE}', sent to '{url}'", f": '{url}'"])
        assert heard == []


def test_an_accepted_secret_is_sent_where_it_was_accepted_for(received, original):
    """Once; another server, another variable, and another run with the same address, are asked about again."""
    with sink() as (url, heard), sink() as (other, overheard):
        edit(received.run, judged_by(url))
        code, said = received.program("judge", "audit", "run", "--trust", "--episodes", "1", "--repeats", "1")
        assert "Pass --trust" not in said
        assert SECRET in heard[0]
        heard.clear()
        received.program("judge", "audit", "run", "--episodes", "1", "--repeats", "1")
        assert SECRET in heard[0]
        heard.clear()
        for changes in (judged_by(other), judged_by(url, "OTHER_KEY")):
            edit(received.run, changes)
            code, said = received.program("judge", "audit", "run")
            assert (code, "Pass --trust" in said) == (2, True)
        another = RunDir(shutil.copytree(original, received.place / "another", symlinks=True))
        write_json(another.manifest, {**(read_json(another.manifest) or {}), "run_id": "another-01234567"})
        edit(another, judged_by(url))
        code, said = received.program("judge", "audit", "another")
        assert (code, "Pass --trust" in said) == (2, True)
        assert heard == overheard == []


def test_what_the_command_line_names_is_the_users_own(received):
    """A URL of theirs is not asked about; a variable that the run names for it is."""
    with sink() as (url, heard):
        named = [f"endpoints.sim.url={url}", "endpoints.sim.model=x", "scorer.judge=sim", "endpoints.sim.retries=0"]
        words = [word for override in named for word in ("--set", override)]
        _, said = received.program("judge", "audit", "run", "--episodes", "1", "--repeats", "1", *words)
        assert "--trust" not in said
        assert heard
        heard.clear()
        edit(received.run, judged_by(NOWHERE))
        code, said = received.program("judge", "audit", "run", *words)
        assert code == 2
        assert f"the environment variable '{VARIABLE}', sent to '{url}'" in said
        assert NOWHERE not in said
        assert heard == []


def test_trust_without_a_run_has_no_effect(received):
    """A configuration that the user names is their own."""
    for words in (("run", "--trust"), ("eval", "--trust")):
        code, said = received.program(*words)
        assert code == 2
        assert "--trust has no effect without" in said


# --- commands, services, links --------------------------------------------------------------------------------------


def planted(received):
    """A command in the run directory that leaves a trace; the path of its environment."""
    program = received.run.path / "env" / "bin" / "python"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\ntouch {received.place}/EXECUTED\n")
    program.chmod(0o755)
    return program


@pytest.mark.parametrize("form", ["environment", "command", "endpoint", "flags"])
def test_no_command_is_started(received, form):
    """An environment in the run directory, a command by name, one of an endpoint, flags for what is installed."""
    program = planted(received)
    policy = {"policy.launch": "sglang", "policy.script": None, "policy.device": "cpu", "run.steps": 9}
    endpoint = {"scorer.judge": "sim", "endpoints.sim.launch": "sglang", "endpoints.sim.model": str(ROOT)}
    changes, command, told = {
        "environment": ({**policy, "policy.sglang": str(program.parent.parent)}, RESUME, str(program)),
        "command": ({**policy, "policy.sglang": "sh -c 'touch EXECUTED'"}, EVAL, shutil.which("sh")),
        "endpoint": ({**endpoint, "endpoints.sim.sglang": str(program)}, ("judge", "audit", "run"), str(program)),
        "flags": ({**policy, "policy.flags": "--trust-remote-code"}, FORK, "the flags '--trust-remote-code'"),
    }[form]
    edit(received.run, changes)
    refused(received, *command, names=["starts", ".sglang = ", told])


def test_metrics_do_not_go_to_an_account_unasked(received):
    """W&B and trackio replace what they have of a run of that id; the files of TensorBoard lie in the run."""
    edit(received.run, {"metrics.writers": ["tensorboard", "wandb"], "run.steps": 9})
    refused(received, *RESUME, names=["metrics.writers: 'wandb'"])


def test_a_run_does_not_write_behind_links_unasked(received):
    """Whoever goes on with it appends and deletes in there; whoever only executes it again does not."""
    elsewhere = received.place.parent / "precious"
    elsewhere.write_text("precious")
    (received.run.path / "log.jsonl").unlink(missing_ok=True)
    (received.run.path / "log.jsonl").symlink_to(elsewhere)
    (received.run.path / "inside").symlink_to("pack.jsonl.zst")
    edit(received.run, {"run.steps": 9})
    refused(received, *RESUME, names=[f"'log.jsonl' leads out of the run, to '{elsewhere}'"])
    assert elsewhere.read_text() == "precious"
    code, said = received.program("verify", "run")
    assert code == 0, said


# --- what was accepted ----------------------------------------------------------------------------------------------


def test_accepted_code_runs_until_it_changes(received):
    """It is remembered for the user alone; another file, or other content, is asked about again."""
    edit(received.run, SCORER)
    code, said = received.program("rescore", "run", "--trust")
    assert code == 0, said
    assert received.executed
    assert received.accepted.stat().st_mode & 0o777 == 0o600
    assert received.accepted.parent.stat().st_mode & 0o777 == 0o700
    assert orjson.loads(received.accepted.read_bytes())["format"] == 1
    code, said = received.program("rescore", "run")
    assert code == 0, said
    moved = received.run.path.rename(received.place / "moved")
    assert received.program("rescore", "moved")[0] == 0
    (received.place / "evil.py").write_text(EVIL + "# other\n")
    code, said = received.program("rescore", moved)
    assert code == 2
    assert "scorer.kind = 'evil:Scorer'" in said


def test_a_run_made_here_is_ones_own(mine):
    """Also when its plug-in is edited or its directory moved; not when run.toml names something else."""
    sets = ["scorer.kind=evil:Scorer", "policy.launch=scripted", "learner.kind=simulated", f"run.dir={mine}/runs"]
    run = create(load("dry", sets).config)
    open_run(run, (), RESUMED, trust=False)
    (mine / "evil.py").write_text(EVIL + "# other\n")
    run = RunDir(run.path.rename(mine / "elsewhere"))
    open_run(run, (), RESUMED, trust=False)
    edit(run, {"policy.script": "evil:Policy"})
    open_run(run, (), SCORED, trust=False)
    with pytest.raises(ConfigError, match=r"imports and runs +policy.script = 'evil:Policy'"):
        open_run(run, (), RESUMED, trust=False)


def test_what_resume_was_given_is_ones_own_from_then_on(mine):
    """The command line named it; what the run named beside it is not accepted by that."""
    sets = ["policy.launch=none", f"policy.urls=['{NOWHERE}']", f"run.dir={mine}/runs", "learner.kind=simulated"]
    run = create(load("tiny", sets).config)
    edit(run, {"policy.api_key_env": VARIABLE})
    given = (f"policy.urls=['{NOWHERE}:1']",)
    reopen(run, given)
    with pytest.raises(ConfigError, match="was changed since") as error:
        open_run(run, (), PLAYED, trust=False)
    assert f"sent to '{NOWHERE}:1'" in str(error.value)
    assert "policy.urls" not in str(error.value)


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("n", 2), ("", 2)])
def test_on_a_terminal_it_is_one_question(received, answer, code):
    """No is the default; a yes is remembered. Output may go elsewhere."""
    edit(received.run, SCORER)
    leader, follower = pty.openpty()
    argv = [PROGRAM, "rescore", "run"]
    with subprocess.Popen(
        argv, cwd=received.place, env=received.environment, stdin=follower, stderr=follower, stdout=subprocess.PIPE
    ) as process:
        os.close(follower)
        said = b""
        while b"[y/N]" not in said:
            said += os.read(leader, 4096)
        os.write(leader, f"{answer}\n".encode())
        printed = process.stdout.read().decode()
        assert process.wait() == code
    os.close(leader)
    assert said.decode().count("scorer.kind = 'evil:Scorer'") == 1
    assert ("rescored with" in printed) == received.executed == received.accepted.exists() == (code == 0)


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[]", b'{"format": 1}', b'{"format": 1, "runs": {"a-1": [2]}}', b"\xff"]
)
def test_a_damaged_list_is_set_aside(mine, capsys, damage):
    """With a notice; nothing is lost, and nothing is known."""
    list_path().parent.mkdir(parents=True)
    list_path().write_bytes(damage)
    assert accepted("run-1") == frozenset()
    assert "is damaged: it is set aside as trusted-runs.json.damaged-" in capsys.readouterr().err
    [aside] = list_path().parent.glob("*.damaged-*")
    assert aside.read_bytes() == damage
    remember("run-1", ["one"])
    remember("run-1", ["two"])
    assert accepted("run-1") == {"one", "two"}


def test_a_list_of_another_version_is_refused(mine):
    """It is neither believed nor replaced."""
    list_path().parent.mkdir(parents=True)
    list_path().write_bytes(b'{"format": 2, "runs": []}')
    for use in (lambda: accepted("run-1"), lambda: remember("run-1", ["one"])):
        with pytest.raises(ConfigError, match="format 2 is not 1: another version of synth-engine wrote it"):
            use()


def test_a_list_that_cannot_be_written_stops_no_run(mine, capsys):
    """It is a notice: the run is asked about again."""
    (mine / "state").write_text("a file")
    remember("run-1", ["one"])
    assert "is not remembered, and asked again next time" in capsys.readouterr().err
    assert accepted("run-1") == frozenset()


def test_many_processes_add_to_the_list(mine):
    """None loses what another has written."""
    script = (
        "import sys; from engine.trust.accepted import remember\nfor n in range(20): remember(sys.argv[1], [str(n)])"
    )
    several = [subprocess.Popen([sys.executable, "-c", script, f"run-{number}"]) for number in range(4)]
    assert [process.wait() for process in several] == [0] * 4
    assert [len(accepted(f"run-{number}")) for number in range(4)] == [20] * 4
    assert sorted(path.name for path in list_path().parent.iterdir()) == ["trusted-runs.json", "trusted-runs.lock"]


def test_a_relative_state_directory_is_none(mine, monkeypatch):
    """It would be the sender's: XDG's rules ignore it too."""
    monkeypatch.setenv("XDG_STATE_HOME", "state")
    monkeypatch.setenv("HOME", str(mine / "home"))
    assert list_path() == mine / "home" / ".local" / "state" / "synth-engine" / "trusted-runs.json"


# --- what is asked for ----------------------------------------------------------------------------------------------


def test_every_mode_is_asked_for_what_it_uses():
    """Each key that names code, a command, an address, a secret or a service is a demand, in its mode alone."""
    endpoint = ["world.kind=llm", "world.endpoint=a", "endpoints.a.url=http://a", "endpoints.a.model=m"]
    both = [*endpoint, "user.kind=llm", "user.endpoint=b", "endpoints.b.launch=sglang", "endpoints.b.model=/m"]
    none = ["policy.launch=none", "policy.urls=['http://p', 'http://q']", "policy.api_key_env=K"]
    cases = {
        (): [],
        ("world.kind=engine.scripted:ConstantWorld",): [],
        ("learner.advantage=json:loads",): ["learner.advantage"],
        ("policy.launch=scripted", "learner.kind=simulated"): [],
        ("policy.launch=scripted", "learner.kind=simulated", "policy.script=json:loads"): ["policy.script"],
        ("policy.launch=sglang",): ["policy.sglang"],
        tuple(none): ["policy.urls", "policy.api_key_env", "policy.urls", "policy.api_key_env"],
        tuple(both): ["endpoints.a.url", "endpoints.b.sglang"],
        (*endpoint, "endpoints.a.api_key_env=K"): ["endpoints.a.url", "endpoints.a.api_key_env"],
        ("metrics.writers=['tensorboard', 'trackio']", "metrics.port=1"): ["metrics.writers"],
    }
    for sets, keys in cases.items():
        found = demands(load("tiny", sets).config, module_file)
        assert [demand.keys[0] for demand in found] == keys, sets


def test_text_of_a_run_cannot_dress_up_the_question(received):
    """Control characters and reversed writing are shown as what they are."""
    edit(received.run, served_by("http://a\x1b[2J\u202e/", "K\r\nfine"))
    code, said = received.program(*EVAL)
    assert code == 2
    assert r"'http://a\x1b[2J\u202e/'" in said
    assert r"'K\r\nfine'" in said
    assert "\x1b[2J" not in said


@pytest.mark.slow
def test_no_model_brings_code_of_its_own(received):
    """A base model with Python beside its weights: nothing asks whether to run it, so nobody can say yes."""
    model = received.place / "model"
    model.mkdir()
    named = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    (model / "config.json").write_bytes(orjson.dumps({"model_type": "unheard-of", "auto_map": named}))
    (model / "evil.py").write_text(f"open({str(received.place / 'EXECUTED')!r}, 'w')\n")
    adapter = received.place / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    argv = [sys.executable, "-m", "learner.merge", str(model), str(adapter), str(received.place / "out")]
    environment = {**received.environment, "HF_HOME": str(received.state)}
    done = subprocess.run(argv, env=environment, input="y\n" * 9, capture_output=True, text=True, check=False)
    assert done.returncode
    assert not received.executed
    assert "y/N" not in done.stdout
