"""engine.preflight.manifest: a run whose model was moved goes on with it, and with no other one."""

import shutil
from pathlib import Path

import pytest

from engine.config.load import ASSETS, load
from engine.errors import ConfigError
from engine.preflight.manifest import create, reopen
from engine.rundir.layout import RunDir, read_json
from tests.parts.recorded_runs import small_pack


@pytest.fixture
def moved(tmp_path: Path) -> tuple[RunDir, Path]:
    """A run whose model directory is gone, and where it lies now."""
    model = shutil.copytree(ASSETS / "tiny-model", tmp_path / "model")
    pack = small_pack(tmp_path / "small.jsonl")
    run = create(load("tiny", [f"run.dir={tmp_path}", f"tasks.pack={pack}", f"model.path={model}"]).config)
    return run, model.rename(tmp_path / "moved")


def test_a_run_goes_on_with_its_moved_model(moved: tuple[RunDir, Path]) -> None:
    """The new path becomes the run's; manifest.json keeps the one that it began with."""
    run, model = moved
    with pytest.raises(ConfigError, match=r"^model\.path: .+/model is no model directory .+; give the path of one"):
        reopen(run, ())
    assert reopen(run, (f"model.path={model}",)).model.path == str(model)
    assert reopen(run, ()).model.path == load(run.config).config.model.path == str(model)
    assert (read_json(run.manifest) or {})["model_path"] == str(model.with_name("model"))


@pytest.mark.parametrize(
    ("file", "before", "after", "named"),
    [
        ("model.safetensors", b"", b"", r"the model .+/moved \(config\.json and weights\)"),
        ("config.json", b"{", b"{ ", r"the model .+/moved \(config\.json and weights\)"),
        ("tokenizer.json", b"{", b"{ ", "the tokenizer of .+/moved"),
        ("tokenizer_config.json", b"{%- macro", b"{# another #}{%- macro", "the chat template of .+/moved"),
    ],
)
def test_another_model_is_refused_by_name(
    moved: tuple[RunDir, Path], file: str, before: bytes, after: bytes, named: str
) -> None:
    """Whatever of it differs, at a new place or at the old one; the run keeps its configuration."""
    run, model = moved
    content = (model / file).read_bytes()
    assert before in content
    (model / file).write_bytes(content.replace(before, after, 1) if before else content[:-1] + bytes([content[-1] ^ 1]))
    written = run.config.read_bytes()
    error = rf"^model\.path: {named} is not what the run began with: sha256 .+; give the model that the run began with"
    with pytest.raises(ConfigError, match=error):
        reopen(run, (f"model.path={model}",))
    assert run.config.read_bytes() == written
    model.rename(model.with_name("model"))
    with pytest.raises(ConfigError, match=error.replace("/moved", "/model")):
        reopen(run, ())
