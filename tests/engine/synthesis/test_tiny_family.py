"""The procedural family of the tiny world: splits, semantics, and the rewards of scripted actors in the real world."""

from collections import Counter
from itertools import pairwise
from pathlib import Path

import orjson
import pytest
import zstandard

import engine
from engine.packs.pack import load_pack, task_json, write_pack
from engine.synthesis.tiny_actor import GOLD, ActorPlan, actor_script
from engine.synthesis.tiny_family import COUNTS, HEADER, TINY_SEED, make_tiny_task
from engine.synthesis.tiny_words import HELDOUT_NOUNS, KEYS, goals, values
from engine.task import Split
from tests.parts.worlds import reward_of

PACK = Path(engine.__file__).parent / "assets/packs/tiny.jsonl.zst"
TASKS = [make_tiny_task(TINY_SEED, split, index) for split in Split for index in range(20)]


async def mean_reward(plan: ActorPlan) -> float:
    """The mean reward of one plan over the sampled tasks."""
    rewards = [await reward_of(task, actor_script(task, plan)) for task in TASKS]
    return sum(reward.value for reward in rewards) / len(rewards)


def test_goals_of_the_splits_are_disjoint() -> None:
    """No goal of one split is a goal of another, and held-out nouns are in no other split."""
    parts = [set(goals(split)) for split in Split]
    assert all(not (a & b) for a in parts for b in parts if a is not b)
    assert len(goals(Split.HELDOUT)) == len(set(goals(Split.HELDOUT))) >= 48
    assert not {noun for split in (Split.TRAIN, Split.VALIDATION) for _, noun in goals(split)} & set(HELDOUT_NOUNS)


def test_values_tell_their_key_and_a_fifth_is_held_out() -> None:
    """Value pools are disjoint; training never uses the last fifth of a pool."""
    pool = Counter(value for key in KEYS for value in KEYS[key])
    assert set(pool.values()) == {1}
    assert all(len(values(key, Split.TRAIN)) == 0.8 * len(values(key, Split.HELDOUT)) for key in KEYS)


def test_shipped_pack_holds_the_generated_tasks() -> None:
    """The shipped pack has the promised sizes, and its tasks are what the generator makes."""
    with zstandard.open(PACK, "rb") as file:
        header, *lines = file.read().splitlines()
    assert orjson.loads(header)["pack"] == "tiny"
    assert len(lines) == sum(COUNTS.values())
    assert COUNTS[Split.TRAIN] >= 4000
    assert COUNTS[Split.VALIDATION] >= 200
    assert COUNTS[Split.HELDOUT] >= 400
    first = 0
    for split, count in COUNTS.items():
        for index in (0, 1, count - 1):
            assert orjson.loads(lines[first + index]) == orjson.loads(
                orjson.dumps(task_json(make_tiny_task(TINY_SEED, split, index)))
            )
        first += count


def test_generated_tasks_are_a_valid_pack(tmp_path) -> None:
    """What the generator makes passes the validation of packs and survives the round trip."""
    path = tmp_path / "some.jsonl"
    write_pack(path, HEADER, TASKS)
    assert load_pack(path).tasks == tuple(TASKS)


async def test_gold_earns_one_on_every_task() -> None:
    """Asking, looking up, writing with the allowed tool and reporting the code is reward 1, in either order."""
    for plan in (
        GOLD,
        ActorPlan(ask_each=True),
        ActorPlan(look_up_before_asking=False),
        ActorPlan(look_up_again=True, distract=True),
    ):
        for task in TASKS:
            assert (await reward_of(task, actor_script(task, plan))).value == 1.0


async def test_guesser_loses_subgoals_and_interactions() -> None:
    """Never asking earns no interaction and, but for lucky guesses, no write."""
    plan = ActorPlan(ask=False, recover=False)
    rewards = [await reward_of(task, actor_script(task, plan)) for task in TASKS]
    assert all(reward.I == 0 for reward in rewards)
    assert sum(reward.value for reward in rewards) / len(rewards) < 0.25


async def test_doing_nothing_earns_nothing() -> None:
    """An empty answer at once is reward 0."""
    assert await mean_reward(ActorPlan(stop_after=0)) == 0.0


async def test_forbidden_sibling_earns_nothing() -> None:
    """The same right values written with the forbidden tool violate the rule, code or no code."""
    assert await mean_reward(ActorPlan(allowed=False)) == 0.0


async def test_asking_and_looking_up_alone_earns_two_thirds() -> None:
    """A policy that never writes stays below 0.7."""
    assert await mean_reward(ActorPlan(write=False)) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("plan", "missing"), [(ActorPlan(look_up=False), "look_up_first"), (ActorPlan(report=False), "report_code")]
)
async def test_each_omission_flips_its_own_item(plan, missing) -> None:
    """Leaving out one act of gold fails exactly its subgoal."""
    for task in TASKS:
        reward = await reward_of(task, actor_script(task, plan))
        failed = [verdict.id for verdict in reward.items if verdict.met == (verdict.part == "forbidden")]
        assert failed == [missing]


async def test_looking_up_after_the_write_does_not_count() -> None:
    """The look-up counts only before the first write."""
    for task in TASKS:
        gold = actor_script(task, GOLD)
        late = [*gold[1:-1], gold[0], gold[-1]]
        reward = await reward_of(task, late)
        assert [v.id for v in reward.items if v.part == "subgoal" and not v.met] == ["look_up_first"]


async def test_code_is_not_reported_by_guessing() -> None:
    """The right code without the write that returns it earns nothing for the report."""
    for task in TASKS:
        reward = await reward_of(task, [f"<answer>The code is {task.meta['code']}.</answer>"])
        assert reward.value == 0.0


def test_instruction_states_one_fact_and_rules_none() -> None:
    """Private values are nowhere in what the agent sees first."""
    for task in TASKS:
        assert task.user is not None
        shown = f"{task.instruction} {task.rules} {[tool.function for tool in task.tools]}"
        assert task.meta["code"] not in shown
        assert task.user.facts.keys() == task.world.state["wanted"].keys() - {task.meta["given"]}
        assert not any(fact.value in shown.replace(".", " ").split() for fact in task.user.facts.values())


def test_siblings_differ_in_name_only() -> None:
    """Allowed and forbidden tool have one signature and description, in random order."""
    orders = Counter()
    for task in TASKS:
        names = task.meta["tools"]
        allowed, forbidden = task.tool(names["allowed"]), task.tool(names["forbidden"])
        assert allowed is not None
        assert forbidden is not None
        assert (allowed.parameters, allowed.description) == (forbidden.parameters, forbidden.description)
        orders[task.tools.index(allowed) < task.tools.index(forbidden)] += 1
    assert min(orders.values()) > len(TASKS) / 4


def test_generator_is_deterministic_and_its_tasks_differ() -> None:
    """The same index gives the same task; neighbours differ."""
    again = [make_tiny_task(TINY_SEED, Split.TRAIN, index) for index in range(20)]
    assert again == [make_tiny_task(TINY_SEED, Split.TRAIN, index) for index in range(20)]
    assert all(a.instruction != b.instruction or a.rules != b.rules for a, b in pairwise(again))
