"""The offline user: asked facts only, two at a time."""

import pytest

from engine.errors import UserError
from engine.types import Reply
from engine.world.offline import OfflineUser, OfflineWorld
from engine.world.offline_user import UNSURE, offline_reply
from tests.parts.worlds import shop


@pytest.mark.parametrize(
    ("message", "revealed"),
    [
        ("Which ITEM do you want?", ("item",)),
        ("how   many?", ("quantity",)),
        ("When, how many, and which fruit?", ("item", "quantity")),
        ("what is the due_date?", ()),
        ("the items, the fruity ones", ()),
        ("any details?", ()),
        ("", ()),
        ("(date)", ("due_date",)),
    ],
)
def test_a_keyword_as_a_whole_word_reveals_its_fact(message: str, revealed: tuple[str, ...]) -> None:
    """Whole words, case ignored, at most two, in the order of the facts; anything else earns nothing."""
    user = shop().user
    assert user is not None
    answer = offline_reply(user, message)
    assert answer.revealed == revealed
    assert not answer.done
    assert (answer.text == UNSURE) == (not revealed)


async def test_the_reply_says_the_values() -> None:
    """One sentence a fact, `_` read as a space."""
    task = shop()
    session = await OfflineWorld().open(task, 0)
    user = await OfflineUser().open(task, 0, session)
    said = await user.reply("quantity and date?")
    assert said == Reply(text="The quantity is 5. The due date is Friday.", revealed=("quantity", "due_date"))
    await session.close()


async def test_a_task_without_user_has_none_to_open() -> None:
    """Opening one is a fault of the user's side, not of the agent."""
    task = shop(user=None, rubric={"subgoals": [{"id": "s", "text": ""}]})
    session = await OfflineWorld().open(task, 0)
    with pytest.raises(UserError, match="shop-1 has no user"):
        await OfflineUser().open(task, 0, session)
    await session.close()
