"""`synth-engine run --plan`: what would be started, and whether it fits; nothing is started or written."""

import orjson
import pytest
from click.testing import CliRunner

from engine.cli import cli

QWEN3_4B = {
    "architectures": ["Qwen3ForCausalLM"],
    "hidden_size": 2560,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 9728,
    "vocab_size": 151_936,
    "tie_word_embeddings": True,
    "max_position_embeddings": 40_960,
}


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """Plans a run on GPUs of a kind, with SGLang in an environment that looks like one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_bytes(orjson.dumps(QWEN3_4B))
    python = tmp_path / "environment" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()

    def run(gpus, *sets, config="tiny"):
        driver = tmp_path / "bin" / "nvidia-smi"
        driver.parent.mkdir(exist_ok=True)
        rows = "".join(f"echo '{index}, H100, 81559, 81000'\n" for index in range(gpus))
        driver.write_text(f"#!/bin/sh\n{rows}")
        driver.chmod(0o755)
        monkeypatch.setenv("PATH", f"{driver.parent}:/usr/bin:/bin")
        fixed = ("model.path=model", "policy.launch=sglang", "policy.sglang=environment", "tasks.pack=showcase")
        words = [word for setting in (*fixed, *sets) for word in ("--set", setting)]
        before = sorted(tmp_path.rglob("*"))
        result = CliRunner().invoke(cli, ["run", "--plan", "--config", config, *words])
        assert sorted(tmp_path.rglob("*")) == before
        return result

    return run


def row(output, *words):
    """The cells of the table's line that has all these words."""
    table = [line for line in output.splitlines() if line.startswith("│")]
    [line] = [line for line in table if all(f" {word} " in line for word in words)]
    return [cell.strip() for cell in line.split("│")[1:-1]]


def test_a_plan_names_every_process(plan):
    """Its GPU, its memory and its command."""
    result = plan(3, "policy.servers=2", "learner.gpus=[2]", "limits.tokens=4000")
    assert result.exit_code == 0, result.output
    assert row(result.output, "learner")[:3] == ["2", "learner", "7.5"]
    assert row(result.output, "server-1")[0] == "1"
    assert "server-1: " in result.output
    assert "CUDA_VISIBLE_DEVICES=1" in result.output
    assert "-m engine.run runs/tiny" in result.output
    assert "Staleness at most 1" in result.output


def test_a_shared_gpu_is_added_up(plan):
    """And the server is told how much of it is left."""
    result = plan(1, "learner.gpus=[0]", "limits.tokens=4000")
    assert result.exit_code == 0, result.output
    assert float(row(result.output, "together")[-2]) <= float(row(result.output, "together")[-1])
    assert "--mem-fraction-static 0." in result.output


@pytest.mark.parametrize(("config", "gpus"), [("qwen3-8b-8gpu", 8), ("qwen3-4b-1gpu", 1)])
def test_the_shipped_recipes_fit(plan, config, gpus):
    """On as many GPUs of 80 GB as their names say; the model is a stand-in of 4B."""
    result = plan(gpus, config=config)
    assert result.exit_code == 0, result.output
    assert "episodes of limits.tokens" in result.output
    assert ("torch.distributed.run" in result.output) == (gpus == 8)


def test_what_does_not_fit_is_refused(plan):
    """With the numbers, before anything is there."""
    result = plan(1, "learner.gpus=[0]", "limits.tokens=16000", "learner.micro_batch_tokens=16000")
    assert "activations" in str(result.exception)
    assert "this would need more" in str(result.exception)


def test_without_a_gpu_everything_is_on_the_cpu(plan):
    """The plan says so."""
    result = plan(0)
    assert result.exit_code == 0, result.output
    assert "computes on the CPU" in result.output
    assert "SGLANG_USE_CPU_ENGINE=1" in result.output


SIM = [
    *("world.kind=llm", "world.endpoint=sim", "user.kind=llm", "user.endpoint=sim", "endpoints.sim.launch=sglang"),
    *("endpoints.sim.model=model", "endpoints.sim.sglang=environment"),
]


def test_the_models_of_simulators_are_planned_too(plan):
    """Where each computes, what it needs and its command."""
    result = plan(3, "learner.gpus=[2]", "limits.tokens=4000", *SIM)
    assert result.exit_code == 0, result.output
    assert "endpoint sim (world.endpoint, user.endpoint): model, an SGLang of its own on GPU 0" in result.output
    assert row(result.output, "endpoint-sim")[:3] == ["0", "endpoint-sim", "7.5"]
    assert row(result.output, "server-0")[0] == "1"
    assert "calls of its context_tokens" in result.output
    [command] = [line for line in result.output.splitlines() if line.startswith("  endpoint-sim: ")]
    assert "--port 30001" in command
    assert "--enable-lora" not in command
    assert "on the CPU" in plan(0, *SIM).output


def test_the_model_behind_a_url_is_named(plan):
    """It costs no GPU here."""
    remote = ["scorer.judge=j", "endpoints.j.url=https://host/api", "endpoints.j.model=large"]
    assert "endpoint j (scorer.judge): large at https://host/api" in plan(1, *remote).output


def test_rollouts_without_overlap_are_told(plan):
    """Staleness 0 means that one half waits for the other."""
    assert "take turns" in plan(0, "schedule.max_staleness=0").output


def test_a_plan_is_for_a_new_run(plan, tmp_path):
    """Of one that exists everything is known."""
    result = CliRunner().invoke(cli, ["run", "--plan", "--resume"])
    assert "--plan has no effect on a run that exists" in str(result.exception)
