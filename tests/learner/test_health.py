"""Warning and stop levels, metrics of planted distributions, schedule, and the memory of the head."""

import os
import subprocess
import sys

import numpy as np
import pytest

from engine.telemetry import learner_metrics as m
from engine.telemetry.metrics import key_with
from learner import health
from learner.health import stop_reason, warnings
from learner.metrics import token_metrics
from learner.probe import k3
from learner.schedule import Schedule
from learner.step import PolicyTokens
from tests.parts.places import ROOT

GOOD = {
    m.STEP: 1,
    m.MISMATCH_K3: 1e-9,
    m.MISMATCH_ABS: 1e-5,
    m.BASE_K3: 0.2,
    m.RATIO_MEAN: 1.0,
    m.RATIO_STD: 0.1,
    m.ESS: 0.98,
    m.CLIP_LOW: 0.01,
    m.CLIP_HIGH: 0.01,
    m.CAP: 0.0,
    m.ENTROPY: 1.0,
    m.GRAD_NORM: 0.2,
    m.UPDATE_NORM: 0.1,
    m.ZERO_LOW: 0.1,
    m.ZERO_HIGH: 0.1,
    m.ADVANTAGE_MEAN: 0.0,
    m.LR: 1e-3,
}


def rows(n, **changes):
    """`n` good rows, the last three with `changes`."""
    return [dict(GOOD) for _ in range(n - 3)] + [{**GOOD, **changes} for _ in range(3)]


def test_a_healthy_run_neither_warns_nor_stops():
    """No rule fires on ordinary rows."""
    assert warnings(GOOD, rows(30)) == []
    assert stop_reason(rows(30)) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({m.MISMATCH_K3: 0.19}, "adapter is not applied"),
        ({m.MISMATCH_K3: 0.11, m.BASE_K3: 5.0}, "same model, adapter or temperature"),
        ({m.MISMATCH_ABS: 0.4}, "same model, adapter or temperature"),
        ({m.RATIO_MEAN: 2.5}, "lower learner.lr"),
        ({m.RATIO_MEAN: 0.4}, "lower learner.lr"),
        ({m.ESS: 0.2}, "lower learner.lr"),
        ({m.CLIP_LOW: 0.3, m.CLIP_HIGH: 0.25}, "lower learner.lr"),
        ({m.ENTROPY: 0.05}, "entropy collapsed"),
        ({m.UPDATE_NORM: 0.0}, "nothing is learned"),
    ],
)
def test_a_stop_level_on_three_rows_stops_with_a_remedy(changes, words):
    """Three rows running stop; the first two of them do not."""
    key = next(iter(changes))
    assert words in stop_reason(rows(30, **changes))
    assert key in stop_reason(rows(30, **changes))
    assert stop_reason(rows(30, **changes)[:-1]) is None
    assert stop_reason([*rows(30, **changes)[:-1], GOOD]) is None


@pytest.mark.parametrize(
    "changes",
    [
        {m.MISMATCH_K3: 2e-6},
        {m.MISMATCH_ABS: 0.06},
        {m.MISMATCH_K3: 0.03},
        {m.RATIO_MEAN: 1.02},
        {m.RATIO_STD: 1.5},
        {m.ESS: 0.4},
        {m.CLIP_HIGH: 0.25},
        {m.ENTROPY: 0.2},
        {m.GRAD_NORM: 3.0},
        {m.UPDATE_NORM: 2.0},
        {m.ZERO_LOW: 0.4, m.ZERO_HIGH: 0.4},
        {m.ADVANTAGE_MEAN: 1e-3},
    ],
)
def test_a_warning_level_warns_and_does_not_stop(changes):
    """Each level gives a sentence with the value."""
    assert warnings({**GOOD, **changes}, rows(30))
    assert stop_reason(rows(30, **changes)) is None


def test_rows_without_a_probe_are_judged_by_the_rest():
    """A step without a probe (its version's directory is gone) has no mismatch keys; nothing breaks."""
    bare = {key: value for key, value in GOOD.items() if key not in (m.MISMATCH_K3, m.MISMATCH_ABS, m.BASE_K3)}
    assert warnings(bare, [bare] * 30) == []
    assert stop_reason([bare] * 30) is None
    assert health.PATIENCE == 3


def test_k3_is_zero_only_where_the_policies_agree():
    """k3 sees what a mean ratio hides: an adapter that is not applied keeps the ratio's mean near 1."""
    rng = np.random.default_rng(0)
    x = rng.normal(-0.02, 0.2, 20_000)
    assert k3(np.zeros(5)) == 0.0
    assert abs(np.exp(x).mean() - 1.0) < 0.01
    assert k3(x) == pytest.approx(np.mean(np.exp(x) - 1 - x), rel=1e-9)
    assert k3(x) > 0.01


def test_token_metrics_split_by_staleness_and_skip_what_is_not_finite():
    """Counts per staleness add up to N; moments come from finite tokens."""
    tokens = PolicyTokens(
        log_ratio_P=np.array([0.0, np.log(2.0), 0.0, 0.1]),
        entropy_P=np.full(4, 0.5),
        version_P=np.array([5, 5, 4, 4]),
        finite_P=np.array([True, True, False, True]),
        low_P=np.zeros(4, bool),
        high_P=np.array([False, True, False, False]),
        cap_P=np.zeros(4, bool),
        mean_log_ratio_B=np.array([np.log(2.0) / 2, 0.05]),
    )
    row = token_metrics(tokens, version=5)
    assert (
        row[key_with(m.STALENESS_TOKENS, versions=0)],
        row[key_with(m.STALENESS_TOKENS, versions=1)],
        row[m.POLICY_TOKENS],
    ) == (2, 2, 4)
    assert row[m.NOT_FINITE] == 1
    assert row[m.CLIP_HIGH] == 0.25
    ratios = np.array([1.0, 2.0, np.exp(0.1)])
    assert row[m.RATIO_MEAN] == pytest.approx(ratios.mean())
    assert row[m.ESS] == pytest.approx(ratios.sum() ** 2 / (3 * (ratios**2).sum()))
    assert row[key_with(m.AT_STALENESS[m.DRIFT_K3], versions=1)] == pytest.approx(np.exp(0.1) - 1.1)
    assert [row[key_with(m.AT_STALENESS[m.CLIP_HIGH], versions=versions)] for versions in (0, 1)] == [0.5, 0.0]
    assert (row[m.SEQUENCE_LOW], row[m.SEQUENCE_HIGH]) == pytest.approx((np.exp(0.05), np.sqrt(2.0)))


def test_schedules():
    """Warm-up reaches the rate; constant stays; linear ends at 30 %."""
    linear = Schedule(lr=1.0, shape="linear", warmup_steps=3, steps=61)
    assert [linear.at(step) for step in (1, 61, 100)] == pytest.approx([1 / 3, 0.3, 0.3])
    assert linear.at(31) == pytest.approx(0.65)
    constant = Schedule(lr=1.0, shape="constant", warmup_steps=2, steps=10)
    assert [constant.at(step) for step in (1, 2, 3, 10)] == [0.5, 1.0, 1.0, 1.0]
    assert Schedule(lr=1.0, shape="constant", warmup_steps=0, steps=1).at(1) == 1.0


MEASURE = """
import resource, torch
from learner.head import token_logprobs
torch.set_num_threads(1)
hidden = torch.randn(4096, 32, requires_grad=True)
weight, target = torch.randn(151_936, 32), torch.randint(0, 151_936, (4096,))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
logprob, _ = token_logprobs(hidden, weight, target)
logprob.sum().backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_peak_memory_of_the_head_stays_under_two_gib():
    """T = 4,096, V = 151,936, both passes in a process of its own: [T, V] alone would be 2.3 GiB, this is 1 (8)."""
    # Without the allocator variables of a run, which keep freed memory.
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    argv = [sys.executable, "-c", MEASURE]
    done = subprocess.run(argv, cwd=ROOT, env=plain, capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 < 2**30
