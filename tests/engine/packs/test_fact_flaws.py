"""engine.packs.fact_flaws: what the agent reads unasked, and what no question asks for alone."""

from typing import Any

import pytest

from engine.types import Json
from tests.parts.flawed_shop import (
    Edit,
    flaws,
    item,
    one_flaw,
    state,
)


def told(value: Json, instruction: str = "", rules: str = "") -> Edit:
    """The quantity, which the rubric wants asked for, has another value; the agent reads these texts."""

    def edit(task: dict[str, Any]) -> None:
        task["user"]["facts"]["quantity"]["value"] = value
        task["user"]["context"] = f"Knows {value}."
        task["instruction"] += instruction
        task["rules"] += rules

    return edit


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("HM-2207", "It is HM-2207."),
        ("HM-2207", "It is hm 2207!"),
        ("15:00", "At 15:00, please."),
        ("Cafe\u0301 Rosa", "For the CAFÉ ROSA."),
        (2207, "Number 2207."),
        (["Oslo", "Bergen"], "From Bergen to Oslo."),
    ],
)
def test_a_value_that_the_agent_reads_unasked(value: Json, said: str):
    """In the instruction and in the rules, in any case and whatever stands between its words."""
    reason = f"says {value!r}, the user's fact 'quantity' that the agent has to ask for"
    one_flaw("instruction", reason, told(value, instruction=f" {said}"))
    one_flaw("rules", reason, told(value, rules=f" {said}"))


@pytest.mark.parametrize(
    ("value", "instruction", "rules"),
    [
        (5, " For 5 people.", " At most 5."),
        ("HM-2207", " It is HM-22071.", " Not XHM-2207."),
        ("standard", "", " The standard fare has no refund."),
        ("apple", " An apple, or a pear?", " Sell apple or pear."),
        ("Oslo", "", " There are shops in Oslo and Bergen."),
        (True, " True.", " true"),
        (["Oslo", "Rome"], " From Oslo.", ""),
    ],
)
def test_a_value_that_stands_there_by_chance(value: Json, instruction: str, rules: str):
    """Small numbers, parts of longer words, everyday words of rules, one choice among others, one place of two."""
    assert flaws(told(value, instruction, rules), state(shops={"Oslo": 1, "Bergen": 2})) == []


def test_a_value_that_need_not_be_asked_for():
    """The instruction may say what no item wants revealed."""
    unasked = item({"all": [{"called": {"tool": "list_orders"}}, {"not": {"revealed": "due_date"}}]})
    assert flaws(lambda task: task.update(instruction="Please by Friday."), unasked) == []
    one_flaw(
        "instruction",
        "'Friday'",
        lambda task: task.update(instruction="Please by Friday."),
        item({"all": [{"called": {"tool": "list_orders"}}, {"revealed": "due_date"}]}),
    )


@pytest.mark.parametrize("value", ["HM-2207", "K4107", ["K4107", "A-11"]])
def test_a_code_that_the_context_does_not_have(value: Json):
    """Whoever is told the context alone does not know it."""
    code = value if isinstance(value, str) else "A-11"
    context = {"context": "Has the K4107."} if isinstance(value, list) else {"context": "Likes tea."}
    one_flaw(
        "user.facts.quantity.value",
        f"the user is to say {code!r}, which stands nowhere in user.context",
        told(value),
        lambda task: task["user"].update(context),
    )


@pytest.mark.parametrize("value", ["HM-2207", "three in the afternoon", "2027-05-14", 38, "second", "May-14", "3pm"])
def test_a_value_that_the_context_may_have_in_other_words(value: Json):
    """A code in another spelling; dates, numbers and words as people say them."""
    assert flaws(told(value), lambda task: task["user"].update(context="Has hm 2207 on 14 May, for 38 at three.")) == []


@pytest.mark.parametrize(
    ("keywords", "others"),
    [(["fruit"], "'item'"), (["item", "which fruit"], "'item'"), (["when", "fruit"], "'due_date', 'item'")],
)
def test_a_fact_that_no_question_asks_for_alone(keywords: list[str], others: str):
    """Each of its keywords is, or has in it, a keyword of another one."""
    one_flaw(
        "user.facts.quantity.keywords",
        f"whoever asks for 'quantity' asks for {others} too: no keyword is its own",
        lambda task: task["user"]["facts"]["quantity"].update(keywords=keywords),
    )


def test_a_fact_with_a_keyword_of_its_own():
    """Others may be shared."""
    assert flaws(lambda task: task["user"]["facts"]["quantity"].update(keywords=["fruit", "number"])) == []


def test_a_fact_behind_two_others_is_never_told():
    """Two facts go into a reply, the first ones."""
    one_flaw(
        "user.facts.colour.keywords",
        "whoever asks for 'colour' asks for 'item', 'due_date' too",
        lambda task: task["user"]["facts"].update(colour={"value": "red", "keywords": ["fruit when"]}),
    )
