"""engine.telemetry.names: the table has every key, says what one in a row means, and the documentation has it."""

import re

import pytest
from click.testing import CliRunner

from engine.commands.metrics import command
from engine.errors import RunError
from engine.llm.asking import ROLE_ERRORS
from engine.rundir.layout import read_lines
from engine.telemetry import METRICS, MetricsFile, declare, learner_metrics, simulator_metrics
from engine.telemetry.metrics import meant
from engine.telemetry.names import prometheus_name
from tests.parts.places import ROOT

MARK = "<!-- synth-engine metrics names -->\n"


def printed():
    """What `synth-engine metrics names` prints."""
    return CliRunner().invoke(command, ["names"], catch_exceptions=False).output


def test_the_documentation_has_the_table_as_it_is():
    """What follows the mark is generated from the declarations."""
    assert (ROOT / "docs" / "metrics.md").read_text().partition(MARK)[2] == printed(), "run `make pages`, and commit it"


def test_no_two_keys_share_a_name_in_prometheus():
    """And every name is one that Prometheus takes."""
    table = printed()
    names = re.findall(r"`(synth_engine_\w+)(?:{[\w,]+})?` \|\n", table)
    assert len(names) == table.count("\n| `") > 100
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("key", "name", "parts"),
    [
        ("time/run_s", "synth_engine_time_run_s", {}),
        ("tokens/total_count", "synth_engine_tokens_total", {}),
        ("process/cpu_s", "synth_engine_process_cpu_s_total", {}),
        ("learner/reward_N_mean", "synth_engine_learner_reward_N_mean", {}),
        ("endpoint.a-b/requests_count", "synth_engine_endpoint_requests_total", {"endpoint": "a-b"}),
        ("judge/refused_no_json_count", "synth_engine_judge_refused_total", {"kind": "no_json"}),
        ("learner/ratio_staleness_12_max", "synth_engine_learner_ratio_staleness_max", {"versions": "12"}),
        ("learner/staleness_0_tokens", "synth_engine_learner_staleness_tokens", {"versions": "0"}),
    ],
)
def test_a_key_of_a_row_is_found(key, name, parts):
    """Whether it stands in the table as it is, or with placeholders."""
    metric, found = meant(key)
    assert (prometheus_name(metric), found) == (name, parts)


def test_a_key_of_another_version_is_unknown():
    """And so is one that only looks alike."""
    assert meant("nothing/like_it_count") is None
    assert meant("endpoint.a/b/requests_count") is None


@pytest.mark.parametrize("key", ["nothing/like_it_count", learner_metrics.STALENESS_TOKENS, "endpoint.a/b/calls_count"])
def test_a_row_with_an_undeclared_key_is_not_written(tmp_path, key):
    """Nor is one whose placeholder nobody filled in; what was written before stays."""
    with MetricsFile(tmp_path / "metrics.jsonl") as file:
        file.append({learner_metrics.STEP: 1})
        with pytest.raises(RunError, match=rf"undeclared metric {re.escape(repr(key))}"):
            file.append({learner_metrics.STEP: 2, key: 1})
    assert list(read_lines(tmp_path / "metrics.jsonl")) == [{learner_metrics.STEP: 1}]


def test_a_key_is_declared_once():
    """Two meanings of one key would be one column."""
    with pytest.raises(ValueError, match="metric learner/step_count is declared twice"):
        declare(learner_metrics.STEP, "1", "Another meaning")


def test_what_is_repeated_here_is_what_its_owners_have():
    """The data seam cannot import the engine's parts."""
    assert set(simulator_metrics.PARTS) == set(ROLE_ERRORS)
    assert all(metric.unit for metric in METRICS.values())
