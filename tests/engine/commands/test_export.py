"""engine.commands.export, rescore, runs, show: what a run produced, through the commands."""

import os
import subprocess
import sys

import orjson
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from engine.cli import cli
from engine.config.load import ASSETS
from engine.errors import ConfigError, RunError
from engine.packs.pack import load_pack
from engine.processes.child import torch_environment
from engine.rundir.layout import RunDir, find_run
from engine.stream.reader import iter_groups
from tests.parts.recorded_runs import RecordedRun, small_pack

ENVIRONMENT = {**torch_environment(1), "PYTHONPATH": "."}


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    """Eight tasks of the tiny family."""
    return small_pack(tmp_path_factory.mktemp("pack") / "small.jsonl")


@pytest.fixture
def run(tmp_path, pack):
    """A recorded run of three steps."""
    return RecordedRun.make(tmp_path, pack).write()


def invoke(*arguments):
    """A command's output; errors are raised."""
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_chat_lines_are_what_sft_reads(run, tmp_path):
    """Messages and tools of the episodes that are good enough."""
    file = tmp_path / "chat.jsonl"
    assert "12 episodes" in invoke("export", run.path, "--chat", file, "--min-reward", "0.5")
    rows = [orjson.loads(line) for line in file.read_bytes().splitlines()]
    assert [message["role"] for message in rows[0]["messages"]] == ["system", "user", "assistant", "user", "assistant"]
    assert {tool["function"]["name"] for tool in rows[0]["tools"]}
    assert {row["reward"] for row in rows} == {0.5}


def test_parquet_holds_the_ledgers_exactly(run, tmp_path):
    """Ids, log-probabilities and spans of every episode, bit by bit."""
    file = tmp_path / "episodes.parquet"
    invoke("export", run.path, "--parquet", file)
    rows = pq.read_table(file).to_pylist()
    episodes = [episode for group in iter_groups(run.trajectories) for episode in group.episodes]
    assert [row["episode_id"] for row in rows] == [episode.id for episode in episodes]
    for row, episode in zip(rows, episodes, strict=True):
        assert row["ids"] == episode.tokens.ids.tolist()
        assert row["logprobs"] == episode.tokens.logprobs.tolist()
        assert row["spans"] == [{"start": 3, "length": 4, "version": episode.version}]
        assert orjson.loads(row["messages"]) == list(episode.messages)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "nothing to export"),
        (["--merged", "m", "--min-reward", "1"], "--min-reward has no effect"),
        (["--chat", "c", "--adapter", "3"], "--adapter has no effect"),
        (["--merged", "m", "--adapter", "77"], "it has no adapter '77'; there are 0, 1, 2, 3"),
    ],
)
def test_options_without_effect_are_refused(run, tmp_path, monkeypatch, arguments, words):
    """And so is an adapter that is not there."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=words.replace("'", ".")):
        invoke("export", run.path, *arguments)


def test_nothing_is_overwritten(run, tmp_path):
    """A file that exists is left alone."""
    file = tmp_path / "mine.jsonl"
    file.write_text("precious")
    with pytest.raises(ConfigError, match="exists; remove it"):
        invoke("export", run.path, "--chat", file)
    assert file.read_text() == "precious"


@pytest.mark.parametrize("arguments", [("export", "--chat"), ("export", "--parquet"), ("rescore", "--out")])
def test_a_missing_directory_is_named(run, tmp_path, arguments):
    """Before any work."""
    command, option = arguments
    with pytest.raises(ConfigError, match=r"there is no directory .*/nowhere; make it"):
        invoke(command, run.path, option, tmp_path / "nowhere" / "file")


def test_rescoring_with_the_same_rubric_changes_nothing(run):
    """All 24 training and 4 evaluation episodes keep their rewards."""
    lines = [line.split("│") for line in invoke("rescore", run.path).splitlines() if "│" in line]
    assert [[cell.strip() for cell in line[1:-1]] for line in lines] == [
        ["training", "24", "0.250 ± 0.102", "0.250 ± 0.102", "0", "0", "0"],
        ["evaluations", "4", "0.250 ± 0.283", "0.250 ± 0.283", "0", "0", "0"],
    ]


def test_rescoring_with_a_changed_rubric_says_what_changed(run, pack, tmp_path):
    """Without interactions, asking earns nothing; a removed task is counted apart."""
    header, *lines = pack.read_bytes().splitlines()
    tasks = [orjson.loads(line) for line in lines]
    for task in tasks:
        task["rubric"]["interactions"] = []
    changed = tmp_path / "changed.jsonl"
    changed.write_bytes(b"\n".join([header, *(orjson.dumps(task) for task in tasks[1:])]) + b"\n")
    out = tmp_path / "rows.jsonl"
    output = invoke("rescore", run.path, "--pack", changed, "--out", out)
    training = next(line for line in output.splitlines() if "training" in line)
    assert [cell.strip() for cell in training.split("│")[1:-1]] == [
        *("training", "20", "0.250 ± 0.112", "0.000 ± 0.000", "10", "4", "0")
    ]
    rows = [orjson.loads(line) for line in out.read_bytes().splitlines()]
    assert {(row["before"], row["after"]) for row in rows} == {(0.0, 0.0), (0.5, 0.0)}


def test_runs_are_listed_collected_and_removed(run):
    """Gc keeps the first, last and every tenth adapter; remove takes everything, `latest` included."""
    base = run.path.parent
    assert "recorded" in invoke("runs", "--dir", base)
    assert invoke("runs", "list", "--dir", base) == invoke("runs", "--dir", base)
    (run.adapters / ".v00009.tmp-1").mkdir()
    invoke("runs", "--dir", base, "gc")
    assert RunDir(run.path).versions() == [0, 3]
    assert not (run.adapters / ".v00009.tmp-1").exists()
    invoke("runs", "remove", "recorded", "--yes", "--dir", base)
    assert list(base.iterdir()) == []
    assert "no runs" in invoke("runs", "--dir", base)


def test_one_bad_run_does_not_hide_the_others(run, pack, tmp_path):
    """It is listed with the reason; `gc` of all skips it, and one that is being worked on, and says so."""
    broken, busy, empty = (RecordedRun.make(tmp_path, pack).write() for _ in range(3))
    broken.config.write_text("[run\n")
    empty.manifest.write_text('{"format": 1}')
    listed = invoke("runs", "list", "--dir", tmp_path)
    assert "unreadable:" in listed
    assert "not valid TOML" in listed
    assert "unreadable: its files do not say 'created_at'" in listed
    assert listed.count("3/3") == 2
    with busy.locked():
        output = invoke("runs", "gc", "--dir", tmp_path)
        with pytest.raises(RunError, match="another synth-engine is running it"):
            invoke("runs", "gc", busy.path)
    assert f"skipped {broken.path.name}: " in output
    assert f"skipped {busy.path.name}: {busy.path}: another synth-engine is running it" in output
    assert f"{run.path}: 0.0 MB freed" in output
    assert RunDir(busy.path).versions() == [0, 1, 2, 3]


def test_latest_turns_to_the_newest_that_is_left(run, pack, tmp_path):
    """When the newest run is removed; removing another does not touch it."""
    second, third = RecordedRun.make(tmp_path, pack).write(), RecordedRun.make(tmp_path, pack).write()
    for age, made in enumerate((third, second, run)):
        os.utime(made.manifest, (1_000 - age, 1_000 - age))
    invoke("runs", "remove", third.path, "--yes", "--dir", tmp_path)
    assert find_run(None, tmp_path).path == second.path
    invoke("runs", "remove", run.path, "--yes", "--dir", tmp_path)
    assert find_run(None, tmp_path).path == second.path


def test_an_evaluation_of_a_run_uses_the_runs_own_tasks(run, tmp_path):
    """The pack that it was made from may have changed, or be gone."""
    path = small_pack(tmp_path / "gone.jsonl")
    made = RecordedRun.make(tmp_path / "other", path).write()
    path.unlink()
    scripted = ("--set", "policy.launch=scripted", "--set", "learner.kind=simulated")
    output = invoke("eval", "--run", made.path.name, "--dir", made.path.parent, *scripted)
    assert f"2 heldout tasks of {made.pack}" in output
    assert "2 episodes, 0 masked" in output


def test_show_reads_a_run_a_group_an_episode_and_a_task(run, pack):
    """Each by its id; the latest run where none is named."""
    base = run.path.parent
    assert "heldout_after" in invoke("show", "--dir", base)
    assert "g000002.03" in invoke("show", "--dir", base, "g000002")
    episode = invoke("show", run.path, "g000002.03")
    assert "agent asks" in episode
    assert "reveals" in episode
    task = load_pack(pack).tasks[0]
    shown = invoke("show", run.path, task.id)
    assert task.instruction in shown
    assert "g000000.00" in shown


def test_show_of_a_run_without_groups_invents_none(tmp_path, pack):
    """It says that there are none yet."""
    made = RecordedRun.make(tmp_path, pack)
    made.groups.clear()
    made.steps.clear()
    output = invoke("show", made.write().path)
    assert "No group of the training has been recorded yet" in output
    assert "g000000" not in output


@pytest.mark.parametrize("what", ["g000099", "g000001.77", "no-such-task"])
def test_show_says_what_is_not_there(run, what):
    """With a hint where to look."""
    with pytest.raises(ConfigError, match=r"it has|has no"):
        invoke("show", run.path, what)


@pytest.mark.slow
def test_a_merged_directory_equals_base_plus_adapter(tmp_path):
    """Same logits as peft's, from files alone, with tokenizer; and merging never overwrites."""
    script = """
import sys, warnings
from pathlib import Path
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM
from engine.config.load import ASSETS
warnings.simplefilter("ignore")
torch.set_num_threads(1)
out, base = Path(sys.argv[1]), ASSETS / "tiny-model"
if not (out / "adapter").exists():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"]))
    for name, tensor in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(tensor, std=0.05)
    adapted.save_pretrained(out / "adapter")
else:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(model, out / "adapter")
    merged = AutoModelForCausalLM.from_pretrained(out / "merged")
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        a, b = adapted(ids).logits, merged(ids).logits
        with adapted.disable_adapter():
            plain = adapted(ids).logits
    assert (a - b).abs().max() < 1e-4, (a - b).abs().max()
    assert (a - plain).abs().max() > 0.1
"""
    file = tmp_path / "script.py"
    file.write_text(script)
    python = [sys.executable, str(file), str(tmp_path)]
    subprocess.run(python, check=True, env=ENVIRONMENT)
    merge = [
        sys.executable,
        "-m",
        "learner.merge",
        str(ASSETS / "tiny-model"),
        str(tmp_path / "adapter"),
        str(tmp_path / "merged"),
    ]
    subprocess.run(merge, check=True, env=ENVIRONMENT)
    subprocess.run(python, check=True, env=ENVIRONMENT)
    assert (tmp_path / "merged" / "tokenizer.json").exists()
    again = subprocess.run(merge, check=False, capture_output=True, text=True, env=ENVIRONMENT)
    assert again.returncode == 2
    assert "exists; remove it" in again.stderr
