"""Where a base model is found: shipped, in a directory, or on a hub; every refusal names its remedy."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from engine.chat.chat_format import ChatFormat
from engine.config.load import ASSETS, load
from engine.errors import ConfigError
from engine.serving.models import Model, download, find_model, find_models, model_revision
from tests.parts.hub import COMMIT, Hub, serving_hub

TINY = {path.name: path.read_bytes() for path in (ASSETS / "tiny-model").iterdir()}
NEVER = ("README.md", "pytorch_model.bin", "consolidated.safetensors", "onnx/config.json", "v2/model.safetensors")
"""What repositories hold beside what a policy needs."""


@dataclass
class Served:
    """A hub that runs, and a cache of its own."""

    hub: Hub
    url: str
    cache: Path

    def download(self, hub_id: str = "acme/tiny", revision: str | None = None) -> Model:
        """A model of it."""
        return download(hub_id, revision, endpoint=self.url, cache=self.cache)

    def refused(self, hub_id: str = "acme/tiny", revision: str | None = None) -> str:
        """The sentence with which a model is refused."""
        with pytest.raises(ConfigError) as caught:
            self.download(hub_id, revision)
        return str(caught.value)

    @property
    def given(self) -> set[str]:
        """The files that were downloaded."""
        return {asked.removeprefix("GET ") for asked in self.hub.asked if asked.startswith("GET ")}


@pytest.fixture
def served(tmp_path):
    """A hub with the tiny model and much else."""
    hub = Hub(files={**TINY, **dict.fromkeys(NEVER, b"of no use")})
    with serving_hub(hub) as url:
        yield Served(hub, url, tmp_path / "cache")


def test_tiny_is_shipped_and_a_directory_is_itself(tmp_path, monkeypatch):
    """A directory wins over the id that its path looks like."""
    assert find_model("tiny").path.name == "tiny-model"
    here = tmp_path / "acme" / "tiny"
    here.mkdir(parents=True)
    (here / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert find_model("acme/tiny") == Model(path=here)
    (here / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"acme/tiny is no model directory \(it has no config\.json\)"):
        find_model("acme/tiny")


@pytest.mark.parametrize("name", ["nowhere", "/no/where", "./acme/tiny", "a/b/c", "../a", "a/b@", "a/b@c d", ""])
def test_what_is_neither_a_directory_nor_an_id_is_refused(name):
    """Without asking any hub."""
    with pytest.raises(ConfigError, match=r"such as Qwen/Qwen3-4B$"):
        find_model(name)


def test_a_model_of_the_hub_is_pinned_and_only_what_is_needed_is_downloaded(served):
    """The branch becomes its commit; the directory is a whole model with the weights' own revision."""
    model = served.download()
    assert (model.hub_id, model.hub_commit) == ("acme/tiny", COMMIT)
    assert served.given == set(TINY) == {path.name for path in model.path.iterdir()}
    assert ChatFormat.load(model.path).system == "{rules}"
    assert model_revision(model.path) == model_revision(ASSETS / "tiny-model")


def test_a_second_use_downloads_nothing_and_an_offline_one_is_served_from_the_cache(served):
    """Online only the branch is looked up again, and a commit not even that."""
    first = served.download()
    served.hub.asked.clear()
    assert served.download() == first
    assert served.hub.asked == ["revision main"]
    assert served.download(revision=COMMIT) == first
    assert served.hub.asked == ["revision main"]
    assert download("acme/tiny", None, endpoint="http://127.0.0.1:9", cache=served.cache) == first


def test_each_refusal_names_its_remedy(served):
    """Unknown, gated, without such a revision, impossible as an id."""
    assert "acme/other is neither a directory here nor a model that the hub shows you" in served.refused("acme/other")
    assert "hf auth login" in served.refused("acme/other")
    assert "acme/gated is gated: accept its terms" in served.refused("acme/gated")
    assert "acme/tiny@v9: the model has no such revision; name a branch" in served.refused(revision="v9")
    assert "check the spelling" in served.refused("acme/..tiny")
    assert served.given == set()


def test_without_a_network_and_a_copy_the_remedies_are_both_named(tmp_path):
    """Nothing listens there."""
    with pytest.raises(ConfigError, match=r"the hub cannot be reached for it.*`hf download acme/tiny`.*a directory$"):
        download("acme/tiny", None, endpoint="http://127.0.0.1:9", cache=tmp_path)


def test_a_download_that_broke_off_goes_on(served, monkeypatch):
    """A connection that is lost again and again fails it in one line; the next try asks only for what is missing."""
    monkeypatch.setattr("time.sleep", lambda _: None)  # between the hub library's own retries
    served.hub.broken = "model.safetensors"
    message = served.refused()
    assert "the download broke off (" in message
    assert "\n" not in message
    served.hub.broken = ""
    whole = set(TINY) - {"model.safetensors"}
    served.hub.asked.clear()
    served.download()
    assert "model.safetensors" in served.given
    assert len(served.given & whole) < len(whole)


def test_a_model_without_safetensors_is_refused(served):
    """Its weights could be read by nobody here."""
    del served.hub.files["model.safetensors"]
    assert "no weights in safetensors format" in served.refused()


def test_a_run_records_id_commit_and_the_path_that_they_became(served, tmp_path):
    """manifest.json pins, run.toml has the directory, which a resumed run finds again even if the cache was cleared.

    In a process whose hub is set as users set it."""
    script = """
import json, shutil, sys
from engine.config.load import load
from engine.preflight.manifest import create, reopen
from engine.rundir.layout import read_json
run = create(load("dry", [f"run.dir={sys.argv[1]}", "model.path=acme/tiny@main"]).config)
shutil.rmtree(load(run.config).config.model.path)
print(json.dumps([read_json(run.manifest), reopen(run, ()).model_dump()]))
"""
    environment = {**os.environ, "HF_ENDPOINT": served.url, "HF_HOME": str(tmp_path / "home")}
    argv = [sys.executable, "-c", script, str(tmp_path / "runs")]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=True)
    manifest, config = json.loads(done.stdout)
    assert (manifest["hub_id"], manifest["hub_commit"]) == ("acme/tiny", COMMIT)
    assert manifest["model_revision"] == model_revision(ASSETS / "tiny-model")
    assert config["model"]["path"] == manifest["model_path"]
    assert Path(manifest["model_path"]).parent.parent.parent == tmp_path / "home" / "hub"
    assert {path.name for path in Path(manifest["model_path"]).iterdir()} == set(TINY)
    assert config["policy"]["system"] == "{rules}"


def test_what_runs_elsewhere_needs_no_weights(served):
    """Its template and tokenizer are enough; the rest is downloaded when it is needed."""
    light = download("acme/tiny", None, weights=False, endpoint=served.url, cache=served.cache)
    assert served.given == set(TINY) - {"model.safetensors"}
    assert ChatFormat.load(light.path).system == "{rules}"
    assert served.download() == light
    assert served.given == set(TINY)


@pytest.mark.parametrize("launch", ["sglang", "none"])
def test_a_run_pins_the_models_of_its_endpoints(served, tmp_path, launch):
    """As it does its own, once; a cache that was cleared, and a server that is started only later, are made up for."""
    script = """
import json, shutil, sys
from engine.config.load import load
from engine.preflight.manifest import create, reopen
from engine.rundir.layout import read_json
sets = ["scorer.judge=sim", "endpoints.sim.model=acme/tiny", "endpoints.sim.api=sglang", "endpoints.sim.device=cpu"]
launch = ["endpoints.sim.launch=" + sys.argv[2], *(["endpoints.sim.url=http://a"] if sys.argv[2] == "none" else [])]
if sys.argv[2] == "none":
    sets.remove("endpoints.sim.device=cpu")
run = create(load("dry", [f"run.dir={sys.argv[1]}", *sets, *launch]).config)
if sys.argv[2] == "sglang":
    shutil.rmtree(load(run.config).config.endpoints["sim"].model)
again = reopen(run, ("endpoints.sim.launch=sglang",))
print(json.dumps([read_json(run.manifest), again.model_dump(), load(run.config).config.model_dump()]))
"""
    environment = {**os.environ, "HF_ENDPOINT": served.url, "HF_HOME": str(tmp_path / "home")}
    argv = [sys.executable, "-c", script, str(tmp_path / "runs"), launch]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=True)
    manifest, config, written = json.loads(done.stdout)
    pinned, path = manifest["endpoints"]["sim"], Path(config["endpoints"]["sim"]["model"])
    assert pinned == {"model_path": str(path), "hub_id": "acme/tiny", "hub_commit": COMMIT}
    assert config["endpoints"]["sim"]["model"] == written["endpoints"]["sim"]["model"]
    assert path.parent.parent.parent == tmp_path / "home" / "hub"
    assert {file.name for file in path.iterdir()} == set(TINY)


def test_the_key_of_an_endpoints_model_is_named():
    """And a name that only its server knows is not looked for."""
    config = load(None, ["scorer.judge=a", "endpoints.a.url=http://a", "endpoints.a.model=large"]).config
    assert find_models(config).endpoints == {}
    assert find_models(config).into(config).endpoints == config.endpoints
    native = load(None, ["scorer.judge=a", "endpoints.a.url=http://a", "endpoints.a.model=x", "endpoints.a.api=sglang"])
    with pytest.raises(ConfigError, match=r"^endpoints\.a\.model: x is no model directory"):
        find_models(native.config)
    with pytest.raises(ConfigError, match=r"^endpoints\.a\.model: acme/tiny is no directory here"):
        download("acme/tiny", None, key="endpoints.a.model", endpoint="http://127.0.0.1:9", cache=Path("/nowhere"))
