"""A real, unmodified SGLang that a run starts for an endpoint, beside the embedded policy server, on the CPU."""

import subprocess
import sys
from http.client import HTTPConnection
from urllib.parse import urlsplit

import orjson
import psutil
import pytest

from engine.config.load import load
from engine.rundir.layout import RunDir, read_json, read_lines
from engine.serving.addresses import endpoint_urls
from engine.serving.models import find_models
from engine.serving.served import served
from tests.parts.places import ROOT
from tests.parts.sglang_environment import needs_sglang

SIM = {
    "scorer.judge": "sim",
    "endpoints.sim.launch": "sglang",
    "endpoints.sim.model": "tiny",
    "endpoints.sim.device": "cpu",
    "endpoints.sim.context_tokens": 1024,
    "endpoints.sim.start_s": 180,
}
SCHEMA = {"type": "object", "properties": {"met": {"type": "boolean"}}, "required": ["met"]}


def answer_of(url, path, body):
    """What a server answers to a POST."""
    connection = HTTPConnection(urlsplit(url).netloc, timeout=60)
    try:
        connection.request("POST", path, orjson.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        content = response.read()
        assert response.status == 200, content
        return orjson.loads(content)
    finally:
        connection.close()


@pytest.mark.slow
@needs_sglang
def test_both_routes_of_an_endpoint_answer_by_schema(tmp_path):
    """The tiny model knows no JSON: what it says is JSON because the server holds it to the schema."""
    config = load("tiny", [f"{key}={value}" for key, value in SIM.items()]).config
    config, run = find_models(config).into(config), RunDir(tmp_path)
    before = set(psutil.Process().children())
    with served(run, config) as [policy]:
        url = endpoint_urls(run, config)["sim"]
        assert url != policy
        asked = {"messages": [{"role": "user", "content": "was it met?"}], "max_tokens": 64, "temperature": 0}
        form = {"type": "json_schema", "json_schema": {"name": "reply", "schema": SCHEMA, "strict": True}}
        body = {**asked, "model": config.endpoints["sim"].model, "response_format": form}
        [choice] = answer_of(url, "/v1/chat/completions", body)["choices"]
        assert isinstance(orjson.loads(choice["message"]["content"])["met"], bool)
        sampling = {"max_new_tokens": 64, "temperature": 0, "json_schema": orjson.dumps(SCHEMA).decode()}
        replies = answer_of(url, "/generate", {"text": ["was it met?"] * 3, "sampling_params": [sampling] * 3})
        assert [isinstance(orjson.loads(reply["text"])["met"], bool) for reply in replies] == [True] * 3
    assert set(psutil.Process().children()) <= before


@pytest.mark.slow
@needs_sglang
def test_a_run_starts_and_ends_the_server_of_its_judge(tmp_path):
    """The embedded policy trains meanwhile; rubrics of checks leave the judge nothing to decide."""
    settings = {**SIM, "run.steps": 1, "run.dir": tmp_path, "eval.every": 0, "eval.heldout_tasks": 0}
    sets = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    argv = [sys.executable, "-m", "engine.cli", "run", "--config", "tiny", "--plain", "--set", "stream.low_water_mb=0"]
    done = subprocess.run([*argv, *sets], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
    assert "SGLang server for endpoint sim" in done.stdout
    run = RunDir(tmp_path / "tiny")
    assert read_json(run.summary)["steps"] == 1
    assert list(read_lines(run.learner / "metrics.jsonl"))
    assert list(read_json(run.path / "servers.json")["endpoints"]) == ["sim"]
    assert read_json(run.manifest)["endpoints"]["sim"]["model_path"].endswith("tiny-model")
    assert (run.path / "endpoint-sim.log").stat().st_size
    assert read_json(run.processes)["processes"] == []
