"""Advantages over scored episodes only; drops by precedence; refusals of what is not the policy's own sampling."""

from dataclasses import replace

import pytest

from engine.errors import ConfigError, RunError
from engine.learnerdir.counters import DropReason
from engine.stream.frame import decode, encode
from engine.types import Outcome, Sampling, Source
from learner.advantage import find_advantage, group_mean, group_std
from learner.forming import FormingRules, OpenStep, usable_group
from tests.parts.float64_reference import advantages_std
from tests.parts.learner_runs import make_group

RULES = FormingRules(max_staleness=1, min_group_size=2)


def take(group, rules=RULES, version=0):
    """What a fresh step decides about the group."""
    return OpenStep(version=version).take(group, rules, group_std)


def faulty(group, outcome):
    """The group with its masked episodes ended by `outcome`."""
    episodes = [each if each.scored else replace(each, outcome=outcome) for each in group.episodes]
    return replace(group, episodes=tuple(episodes))


def test_a_fault_is_outside_mean_and_deviation():
    """Rewards [1, 3, 2, fault] give the advantages of [1, 3, 2] and none for the fault (acceptance 3)."""
    usable = usable_group(make_group(0, rewards=[1.0, 3.0, 2.0, None]), group_std, version=0)
    assert usable.advantages[:3] == pytest.approx(advantages_std([1.0, 3.0, 2.0]), rel=1e-12)
    assert usable.advantages[3] is None
    assert [episode.id for episode in usable.episodes] == ["g000000.00", "g000000.01", "g000000.02"]


def test_group_mean_does_not_divide():
    """Dr.GRPO's form centres only."""
    assert group_mean([1.0, 3.0, 2.0], "g") == [-1.0, 1.0, 0.0]


def test_advantages_of_a_group_add_up_to_zero():
    """A group moves probability between its episodes, never up or down as a whole."""
    assert sum(group_std([0.0, 0.1, 0.7, 1.0], "g")) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(
    ("group", "version", "reason"),
    [
        (make_group(0), 0, None),
        (make_group(0), 2, DropReason.STALE),
        (make_group(0, rewards=[1.0, None, None, None]), 0, DropReason.FAILED),
        (faulty(make_group(0, rewards=[1.0, None, None, None]), Outcome.JUDGE_FAULT), 0, DropReason.UNSCORED),
        (faulty(make_group(0, rewards=[1.0, None, None, None]), Outcome.JUDGE_FAULT), 2, DropReason.STALE),
        (make_group(0, rewards=[0.5, 0.5, 0.5 + 1e-7, None]), 0, DropReason.ZERO_VARIANCE),
        (make_group(0, rewards=[0.5, None, None, None]), 0, DropReason.FAILED),
        (make_group(0, rewards=[0.5, 0.6, None, None]), 0, None),
    ],
)
def test_drop_reasons_by_precedence(group, version, reason):
    """Stale before unscored before failed before zero variance (acceptance 3, 16)."""
    assert take(group, version=version) is reason


def test_a_masked_episode_makes_a_group_stale_too():
    """Staleness is of the oldest episode, masked or not."""
    group = make_group(0, version=5, rewards=[0.0, 1.0, None])
    old = replace(group, episodes=(*group.episodes[:2], replace(group.episodes[2], version=3)))
    assert take(group, version=5) is None
    assert take(old, version=5) is DropReason.STALE


def test_zero_variance_is_counted_apart_for_low_and_high():
    """All-wrong and all-right groups say different things about the tasks."""
    opened = OpenStep(version=0)
    for position, value in enumerate([0.0, 0.25, 1.0]):
        opened.take(make_group(position, rewards=[value] * 4), RULES, group_std)
    assert (opened.all_low, opened.all_high, opened.read) == (2, 1, 3)
    assert opened.dropped == {DropReason.ZERO_VARIANCE: ["g000000", "g000001", "g000002"]}


@pytest.mark.parametrize(
    "change",
    [
        {"source": Source.TEACHER},
        {"sampling": Sampling(top_p=0.9)},
        {"sampling": Sampling(top_k=20)},
        {"sampling": Sampling(min_p=0.1)},
        {"sampling": Sampling(temperature=0.0)},
    ],
)
def test_groups_whose_log_probabilities_are_not_the_policys_are_refused(change):
    """A truncated or foreign distribution is no mu: the run stops with the group's name."""
    with pytest.raises(RunError, match="g000007"):
        take(replace(make_group(7), **change))


def test_a_contradicting_ledger_is_refused():
    """Spans and log-probabilities must agree."""
    group = make_group(3)
    first = group.episodes[0]
    short = replace(first, tokens=replace(first.tokens, logprobs=first.tokens.logprobs[:-1]))
    with pytest.raises(RunError, match=r"g000003\.00: .* log-probabilities"):
        take(replace(group, episodes=(short, *group.episodes[1:])))


def test_the_first_token_of_an_episode_cannot_be_trained():
    """The stream holds such a ledger; here nothing comes before the token that would predict it."""
    episode_group = make_group(3)
    (span, *rest), first = episode_group.episodes[0].tokens.spans, episode_group.episodes[0]
    spans = (replace(span, start=0), *rest)
    early = replace(first, tokens=replace(first.tokens, spans=spans))
    group = replace(episode_group, episodes=(early, *episode_group.episodes[1:]))
    assert decode(encode(group)).episodes[0].tokens.spans == spans
    with pytest.raises(RunError, match=r"g000003\.00: spans .* start before token 1"):
        take(group)


def test_an_advantage_is_found_by_name_or_refused_by_name():
    """Registered names, `package:Object` (a function or a class without arguments), and a clear error."""
    assert find_advantage("group_std") is group_std
    assert find_advantage("learner.advantage:group_mean") is group_mean
    for name in ("learner.advantage:nothing", "no_such_package:thing", "learner.advantage:EPSILON"):
        with pytest.raises(ConfigError, match=r"learner\.advantage = "):
            find_advantage(name)


def test_a_wrong_number_of_advantages_is_refused():
    """Somebody's own advantage is held to its contract."""
    with pytest.raises(RunError, match="returned 1 values for 4 rewards"):
        usable_group(make_group(0), lambda rewards, _: rewards[:1], version=0)
