"""Drafts with a branch, with consent to a price, and with a read of what was written."""

import copy

import orjson
import pytest

from engine.synthesis.drafts.plan import DraftError
from engine.synthesis.planted import planted
from tests.parts.agenticqwen_plays import rewarded
from tests.parts.drafts import compiled, flips
from tests.parts.places import TESTS

pytestmark = pytest.mark.anyio

HALL = orjson.loads((TESTS / "data/draft_hall.json").read_bytes())


async def test_a_plan_with_a_branch_becomes_a_task():
    """Every item can be broken by itself, also the write whose row is read afterwards."""
    task = await compiled(HALL)
    assert (await rewarded(task, task.meta["gold"])).value == 1
    assert task.meta["shape"] == "ask ask read ask write read"
    for one in planted(task):
        assert await flips(task, one.completions) == one.flips, one.name


async def test_who_is_not_asked_books_nothing():
    """The mistaken plan goes the other way at the branch, and earns less."""
    task = await compiled(HALL)
    reward = await rewarded(task, task.meta["mistaken"]["agreed"])
    lost = {item.id for item in reward.items if not item.met and item.part != "forbidden"}
    assert lost == {"book", "back", "told_1", "told_2", "ask_agreed"}


async def test_the_price_is_said_before_it_is_agreed_to():
    """A question without it does not earn the item."""
    task = await compiled(HALL)
    script = [line.replace("The price is 450. ", "") for line in task.meta["gold"]]
    assert script != task.meta["gold"]
    assert await flips(task, script) == {"ask_agreed"}


async def test_what_is_told_together_stands_together():
    """The hall that was booked, not one of those that were compared."""
    task = await compiled(HALL)
    far = " and many others that are too small, too dear, too dark or simply too far away for sixty people, "
    script = [*task.meta["gold"][:-1], f"<answer>Garden Room{far} K-72. The door code is 8814.</answer>"]
    assert await flips(task, script) == {"told_1"}
    script[-1] = "<answer>K-72 is the Garden Room; the door code is 8814.</answer>"
    assert not await flips(task, script)


async def test_the_same_call_twice_is_no_two_items():
    """A check looks at the first of them."""
    value = copy.deepcopy(HALL)
    again = {"id": "again", "call": "find_halls", "arguments": {"day": "${day}"}}
    value["world"]["plan"][4]["then"].insert(1, again)
    with pytest.raises(DraftError, match="step again: calls find_halls as step halls does"):
        await compiled(value)
