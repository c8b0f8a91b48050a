"""engine.config: one tree, overrides, sources, and refusals that name key, place and remedy."""

import tomllib

import pytest

from engine.config.environment import api_key
from engine.config.load import ASSETS, dump, fields, load, marks, refuse_changes, text_override, value_of
from engine.config.tree import Config
from engine.errors import ConfigError


def refused(file=None, *overrides):
    """The message with which a configuration is refused."""
    with pytest.raises(ConfigError) as caught:
        load(file, overrides)
    return str(caught.value)


@pytest.mark.parametrize("name", sorted(path.stem for path in (ASSETS / "configs").glob("*.toml")))
def test_shipped_configurations_load(name):
    """By their bare name, and what dump writes of them loads to the same tree."""
    config = load(name).config
    assert Config.model_validate(tomllib.loads(dump(config))) == config


def test_every_key_is_described():
    """No key without a meaning, and every mark is one that load knows."""
    for name, info in fields():
        assert info.description, name
        assert set(marks(info)) == {"only_if", "unless", "resumable"}, name


def test_an_unknown_key_names_the_nearest(tmp_path):
    """In a file (by path) and on the command line."""
    file = tmp_path / "mine.toml"
    file.write_text("[learner]\nlearning_rat = 1e-3\n")
    assert f"{file}: there is no key 'learner.learning_rat'; did you mean " in refused(file)
    assert "did you mean 'run.steps'?" in refused(None, "run.step=3")


def test_a_value_of_the_wrong_type_names_key_and_source():
    """And repeats what was given."""
    message = refused(None, "run.steps=many")
    assert message.startswith("--set run.steps=many: run.steps: ")
    assert message.endswith('(given: "many")')


def test_a_value_out_of_bounds_is_refused():
    """Bounds are part of the tree."""
    assert "greater than or equal to 1" in refused(None, "schedule.group_size=0")


def test_a_key_without_effect_is_refused():
    """With the mode it needs."""
    message = refused(None, "learner.pace_s=2")
    assert "learner.pace_s has no effect with learner.kind = 'grpo'" in message
    assert "set learner.kind = 'simulated'" in message


@pytest.mark.parametrize(
    ("file", "off", "key", "on"),
    [
        ("tiny", ["eval.every=0"], "eval.validation_tasks=9", "eval.every=5"),
        ("tiny", ["eval.every=0", "eval.heldout_tasks=0"], "eval.live_slots=9", "eval.heldout_tasks=5"),
        ("dry", ["policy.launch=scripted"], "policy.temperature=0.5", "policy.launch=embedded"),
    ],
)
def test_a_key_of_something_that_is_off_is_refused(file, off, key, on):
    """All that is off is named; one of them on, the key has its effect."""
    name, _, _ = key.partition("=")
    message = refused(file, *off, key)
    assert message.startswith(f"--set {key}: {name} has no effect with ")
    for mode, _, _ in (text.partition("=") for text in off):
        assert f"{mode} = " in message
        assert f"change {mode}" in message
    load(file, [*off, key, on])


def test_a_mode_on_the_command_line_makes_keys_of_a_file_moot(tmp_path):
    """Nobody has to edit a shipped file, or a run's, to turn something off; in one file, both are a mistake."""
    config = load("dry", ["eval.every=0"]).config
    assert "validation_tasks" not in tomllib.loads(dump(config))["eval"]
    file = tmp_path / "mine.toml"
    file.write_text("[eval]\nevery = 0\nvalidation_tasks = 3\n")
    assert refused(file).startswith(f"{file}: eval.validation_tasks has no effect")


def test_a_text_override_is_a_string():
    """Whatever TOML would make of it."""
    for text in ("2024", "true", 'a "quoted" name', "grün 🌱", "C:\\runs"):
        assert load(None, [text_override("run.dir", text)]).config.run.dir == text


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["policy.launch=none"], "needs policy.urls"),
        (["policy.launch=scripted"], "no weights to train"),
        (["schedule.group_size=1"], "a group of one has no advantage"),
        (["limits.tokens=9000"], "cannot hold an episode of limits.tokens = 9000"),
        (["policy.system=be nice"], "must contain {rules}"),
        (["learner.gpus=[0, 1]", "learner.ranks=2"], "one rank on each of learner.gpus"),
    ],
)
def test_contradictions_are_refused(overrides, words):
    """Keys that exclude each other say so."""
    assert words in refused(None, *overrides)


def test_the_system_message_is_the_models_own_matter_unless_it_is_given():
    """`auto` needs no {rules}; one of the user's own does."""
    assert load(None).config.policy.system == "auto"
    assert load(None, ["policy.system=Obey: {rules}"]).config.policy.system == "Obey: {rules}"


def test_overrides_win_and_are_remembered():
    """--set beats the file; the source of every key that was set is known."""
    loaded = load("tiny", ["run.steps=7", "policy.temperature=0.5"])
    assert value_of(loaded.config, "run.steps") == 7
    assert loaded.sources["run.steps"] == "--set run.steps=7"
    assert loaded.sources["learner.lr"].endswith("tiny.toml")
    assert "run.seed" not in loaded.sources


@pytest.mark.parametrize("text", ["run.steps", "steps=3", "=3"])
def test_an_override_without_key_or_value_is_refused(text):
    """With an example of the form."""
    assert "for example --set run.steps=20" in refused(None, text)


def test_broken_toml_names_the_file(tmp_path):
    """Not a traceback."""
    file = tmp_path / "broken.toml"
    file.write_text("[run\n")
    assert refused(file).startswith(f"{file}: not valid TOML")


def test_a_missing_file_names_what_is_shipped():
    """So that a typo of a shipped name is seen."""
    assert "shipped: dry, qwen0.5b-cpu, qwen3-4b-1gpu, qwen3-8b-8gpu, tiny" in refused("tinny")


def test_a_resume_may_change_only_what_is_marked():
    """Any other key is refused by name, with both values."""
    before = load("tiny").config
    refuse_changes(before, load("tiny", ["run.steps=90", "schedule.live_slots=64"]).config)
    with pytest.raises(ConfigError, match=r"--resume cannot change schedule.group_size \(here it is 12, not 6\)"):
        refuse_changes(before, load("tiny", ["schedule.group_size=6"]).config)


def test_the_live_bound_is_the_product():
    """(max_staleness + 1) x groups_per_step x group_size."""
    sets = ["schedule.max_staleness=7", "schedule.groups_per_step=16", "schedule.group_size=16"]
    config = load(None, sets).config
    assert config.max_live == 2048


def test_an_api_key_is_read_from_the_variable_that_is_named(monkeypatch):
    """And is in no configuration; a variable that is not set is an error."""
    servers = ("policy.launch=none", 'policy.urls=["http://127.0.0.1:1"]')
    config = load(None, [*servers, "policy.api_key_env=POLICY_KEY"]).config
    monkeypatch.setenv("POLICY_KEY", "sesame")
    assert api_key(config.policy.api_key_env, "policy.api_key_env") == "sesame"
    assert "sesame" not in dump(config)
    monkeypatch.delenv("POLICY_KEY")
    with pytest.raises(ConfigError, match="the environment variable POLICY_KEY is not set"):
        api_key(config.policy.api_key_env, "policy.api_key_env")
    assert api_key(load(None, servers).config.policy.api_key_env, "policy.api_key_env") is None


LLM_WORLD = ["world.kind=llm", "world.endpoint=sim"]


def test_endpoints_are_tables_by_name():
    """Three parts to a key: the table, the endpoint, the setting."""
    overrides = [*LLM_WORLD, "endpoints.sim.url=http://a:1", "endpoints.sim.timeout_s=5"]
    config = load(None, overrides).config
    assert config.endpoints["sim"].timeout_s == 5
    assert config.endpoint_of == {"world.endpoint": "sim"}
    assert value_of(config, "endpoints.sim.url") == "http://a:1"
    assert value_of(config, "endpoints.other.url") is None


def test_a_configuration_with_endpoints_survives_being_written(tmp_path):
    """What a run writes down is what it was given."""
    config = load(None, [*LLM_WORLD, "endpoints.sim.url=http://a:1"]).config
    (tmp_path / "c.toml").write_text(dump(config))
    assert load(tmp_path / "c.toml").config == config


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["endpoints.sim.url=http://a"], r"\[endpoints.sim\] has no effect: nobody names it"),
        (["user.kind=llm", "user.endpoint=b"], r"user.endpoint = 'b': there is no \[endpoints.b\] \(there: none\)"),
        (["endpoints.sim.ulr=http://a"], "did you mean 'endpoints.sim.url'"),
        (["endpoints.sim=3"], "there is no key 'endpoints.sim'"),
        ([*LLM_WORLD, "endpoints.sim.model=x"], "endpoints.sim: it has no url"),
        ([*LLM_WORLD, "endpoints.sim.launch=sglang"], "endpoints.sim: it has no model"),
        (
            [*LLM_WORLD, "endpoints.sim.url=http://a", "endpoints.sim.batch=3"],
            "endpoints.sim.batch has no effect with endpoints.sim.api = 'openai'",
        ),
    ],
)
def test_an_endpoint_that_cannot_work_is_refused(overrides, said):
    """With the key and the remedy."""
    with pytest.raises(ConfigError, match=said):
        load(None, overrides)


def test_a_resumed_run_may_move_an_endpoint_but_not_change_its_model():
    """Another address is the same world; another model is another one."""
    before = load(None, [*LLM_WORLD, "endpoints.sim.url=http://a"]).config
    refuse_changes(before, load(None, [*LLM_WORLD, "endpoints.sim.url=http://b"]).config)
    with pytest.raises(ConfigError, match=r"cannot change endpoints\.sim\.model"):
        refuse_changes(before, load(None, [*LLM_WORLD, "endpoints.sim.url=http://b", "endpoints.sim.model=m"]).config)
