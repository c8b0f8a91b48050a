"""bench: the benches that there are, and how `python -m bench` ends."""

import json
import re

import pytest
import torch

import bench.__main__ as entry
from bench import endpoints, report
from bench._endpoint_arms import Arm, measure
from engine.scripted.endpoint import ScriptedEndpoint as Scripted
from tests.parts.llm_parts import TINY, listening
from tests.parts.places import ROOT

MAKEFILE = ROOT / "Makefile"


def test_make_bench_runs_every_bench():
    """The list in the Makefile is that of the folder."""
    [listed] = re.findall(r"for name in ([\w ]+);", MAKEFILE.read_text(encoding="utf-8"))
    assert sorted(listed.split()) == entry.names()


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (1, 1)])
def test_the_exit_code_of_a_bench_is_kept(monkeypatch, returned, code):
    """A bench that returns nothing succeeded."""

    class Bench:
        main = staticmethod(lambda _arguments: returned)

    monkeypatch.setattr(entry.importlib, "import_module", lambda _name: Bench)
    monkeypatch.setattr(entry.sys, "argv", ["bench", "core"])
    assert entry.main() == code


def test_the_bench_of_the_learner_on_a_gpu_runs(tmp_path, monkeypatch, capsys):
    """Every line of it, on the CPU with a tiny shape: bfloat16 near float32, packed rows equal to whole ones."""
    from bench import learner_gpu  # noqa: PLC0415 - loads torch

    monkeypatch.setattr(report, "RESULTS", tmp_path)
    assert learner_gpu.main(["--device", "cpu", "--shape", "smoke", "--steps", "1"]) == 0
    measured = json.loads((tmp_path / "learner_gpu-smoke.json").read_text())["measured"]
    assert 0 < measured["k3_bf16_f32"] < 1e-3
    assert measured["packed_alone_abs_max_f32"] < 1e-5
    assert measured["tokens_per_s"] > 0
    assert "k3_bf16_f32" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which the bench would use")
def test_without_a_gpu_it_measures_nothing(capsys):
    """And says so."""
    from bench import learner_gpu  # noqa: PLC0415 - loads torch

    assert learner_gpu.main([]) == 0
    assert "no GPU here" in capsys.readouterr().out


@pytest.mark.parametrize("client", ["none", "batcher", "user"])
async def test_an_arm_of_the_bench_of_endpoints_runs(client):
    """Against the scripted endpoint; every call is answered."""
    async with listening(Scripted().application()) as url:
        endpoint = {"url": url, "api": "sglang", "model": TINY, "batch": 4}
        cost = await measure(Arm(client=client, url=url, live=8, calls=16, think_s=0.01, endpoint=endpoint))
    assert cost["failed"] == 0
    assert cost["cpu_ms"] > 0
    assert cost["calls_per_s"] > 0


def test_without_the_vendors_client_its_part_is_left_out(monkeypatch, capsys):
    """And it is said how to install it."""
    monkeypatch.setattr(endpoints.importlib.util, "find_spec", lambda _name: None)
    endpoints.openai(None, "")
    assert 'pip install -e ".[bench]"' in capsys.readouterr().out


@pytest.mark.slow
def test_the_bench_of_endpoints_runs(tmp_path, monkeypatch, capsys):
    """All but the real SGLang's part, with processes; the figures of so few calls mean nothing."""
    pytest.importorskip("openai", reason='pip install -e ".[bench]"')
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    endpoints.main(
        ["--live", "16", "--calls", "16", "--think-s", "0.02", "--rounds", "1", "--parts", "batched", "openai"]
    )
    measured = json.loads((tmp_path / "endpoints-batched-openai.json").read_text())["measured"]
    assert measured["batched_cpu_against_single"] > 0
    assert "user, 32" in capsys.readouterr().out
