"""Scripted episodes: what a script earns, and what is known of the answers in it."""

import pytest

from engine.errors import ConfigError
from engine.packs.pack import parse_task
from engine.synthesis.admission.play import ScriptPlayer, WithholdingUser, earned, item_verdicts
from engine.types import EventKind, StopReason, ToolCall
from tests.parts.admission_tasks import ASKS_DAY, ASKS_GUESTS, LISTS, breakfast
from tests.parts.worlds import shop


def player() -> ScriptPlayer:
    """Of the breakfast."""
    return ScriptPlayer(parse_task(breakfast()))


async def test_a_script_is_played_by_the_engine():
    """Messages, events, reward; nothing was sampled, so there is nothing to train on."""
    playing = player()
    episode = await playing.play(playing.task.meta["gold"])
    assert earned(episode).value == 1
    assert episode.tokens is None
    assert [event.kind for event in episode.events] == [
        *(EventKind.SAID,) * 2, *(EventKind.CALLED,) * 3, EventKind.ANSWERED,
    ]  # fmt: skip


async def test_the_same_script_makes_the_same_episode():
    """In the same world as in another."""
    playing = player()
    gold = playing.task.meta["gold"]
    first, again, other = await playing.play(gold), await playing.play(gold), await player().play(gold)
    assert first == again == other


async def test_a_script_without_an_answer_ends_with_done():
    """So that it ends at all."""
    episode = await player().play([LISTS])
    assert episode.stop is StopReason.ANSWER
    assert episode.events[-1].text == "Done."


async def test_a_withholding_user_keeps_some_facts():
    """The others are told."""
    episode = await player().play([ASKS_DAY, ASKS_GUESTS], WithholdingUser(frozenset({"day"})))
    assert [event.revealed for event in episode.events[:2]] == [(), ("guests",)]
    assert item_verdicts(earned(episode))["ask_guests"]


async def test_a_user_who_is_not_there_withholds_nothing():
    """The task is named."""
    value = {**breakfast(), "user": None}
    value["rubric"]["interactions"] = []
    task = parse_task(value)
    with pytest.raises(ConfigError, match="breakfast-1"):
        await WithholdingUser(frozenset()).open(task, 0, None)  # type: ignore[arg-type]


async def test_what_is_drawn_is_remembered():
    """What the state says, and what a tool does not declare, is not."""
    playing = ScriptPlayer(shop())
    settled, drawn = (
        ToolCall(name="list_orders", arguments={}),
        ToolCall(name="shop_hours", arguments={"day": "Monday"}),
    )
    await playing.answer(settled)
    assert playing.drawn == {}
    await playing.answer(drawn)
    assert playing.drawn == {"shop_hours": ("opens", "open", "label")}


async def test_an_episode_that_only_a_judge_scores_is_an_error_of_the_task():
    """Which says so."""
    value = breakfast()
    del value["rubric"]["subgoals"][0]["check"]
    with pytest.raises(ConfigError, match=r"breakfast-1 cannot be played offline: .*looked"):
        await ScriptPlayer(parse_task(value)).reward(["<answer>Done.</answer>"])
