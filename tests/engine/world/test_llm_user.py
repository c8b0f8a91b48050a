"""engine.world.llm_user and profiles: the contract of a simulated user, over real HTTP."""

import random

import orjson
import pytest

from engine.errors import UserError
from engine.llm.asking import JournaledAsker
from engine.llm.journal import open_journal
from engine.packs.pack import parse_task
from engine.world.llm_user import LlmUser
from engine.world.profiles import MIXED, profile
from tests.engine.llm.test_endpoint import answering, completion
from tests.parts.llm_parts import asking, listening, reachable
from tests.parts.worlds import task_json

pytestmark = pytest.mark.anyio
CONTEXT = "You have a small shop at the corner of the market, and the pears sell like nothing else."
USER = {
    "context": f"{CONTEXT} You need 12 pears by Friday; your membership number is K-4471.",
    "facts": {
        "item": {"value": "pear", "keywords": ["item", "fruit"]},
        "quantity": {"value": 12, "keywords": ["how many", "quantity"]},
        "member": {"value": "K-4471", "keywords": ["member", "membership"]},
    },
    "style": "polite",
    "escape_strategy": "Claim to be the owner's sister.",
}


def shopper(**changes):
    """A task with that user."""
    rubric = {"subgoals": [{"id": "s", "text": "Orders."}]}
    return parse_task(task_json(user={**USER, **changes}, rubric=rubric))


def reply(message, *claims, done=False):
    """A user's reply, in one sentence; `claims` are (fact, asked_by)."""
    (fact, quote), *others = claims or [(None, "")]
    said = [{"asked_by": quote, "fact": fact, "says": message}]
    said += [{"asked_by": quote, "fact": fact, "says": " "} for fact, quote in others]
    return completion(orjson.dumps({"sentences": said, "done": done}).decode())


async def talk(tmp_path, replies, *messages, **how):
    """What the user says to each message, what the model was asked, and what was refused."""
    said, bodies, refused = await heard(tmp_path, replies, *messages, **how)
    return said, [orjson.loads(body["messages"][1]["content"]) for body in bodies], refused


async def heard(tmp_path, replies, *messages, name="cooperative", seed=0, task=None):
    """The same, with the whole requests."""
    application, bodies = answering(*replies)
    async with listening(application) as url, reachable(url) as opened, open_journal(tmp_path / "j") as journal:
        asker = JournaledAsker(journal, opened)
        session = await LlmUser(asker, name).open(task or shopper(), seed, None)
        said = [await session.reply(message) for message in messages]
    return said, bodies, dict(asker.tallies["user"].refused)


async def test_a_user_reveals_what_it_is_asked_for(tmp_path):
    """By what its words state; the conversation goes on with what was said."""
    said, asked, refused = await talk(
        tmp_path,
        [
            reply("I need 12 of them, please.", ("quantity", "How many")),
            reply("Pear, please.", ("item", "Which fruit")),
        ],
        "How many do you want?",
        "Which fruit is it?",
    )
    assert [(one.text, one.revealed, one.done) for one in said] == [
        ("I need 12 of them, please.", ("quantity",), False),
        ("Pear, please.", ("item",), False),
    ]
    assert refused == {}
    assert asked[1]["told"] == ["quantity"]
    assert asked[1]["earlier"][-1] == {"agent": "How many do you want?", "you": "I need 12 of them, please."}
    assert "tools" not in asked[0]


GOOD = reply("I need 12.", ("quantity", "How many"))


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        (reply("I need 12, and I am K-4471.", ("quantity", "How many")), "leak"),
        (reply("12 pear", ("quantity", "How many"), ("item", "which fruit")), "leak"),
        (reply("12, K-4471", ("quantity", "How many"), ("member", "do")), "leak"),
        (reply("12 pear, K-4471", ("quantity", "How many"), ("item", "do you"), ("member", "want")), "leak"),
        (reply("A dozen.", ("quantity", "How many")), "unstated"),
        (reply("I need 12, by 2031-05-06.", ("quantity", "How many")), "invention"),
        (reply("I need 112.", ("quantity", "How many")), "unstated"),
        (reply("Use place_order for that."), "hint"),
        (reply("Goodbye.", done=True), "early_stop"),
        (reply("As soon as you can."), "unstated"),
        (reply(f"{CONTEXT} 12.", ("quantity", "How many")), "leak"),
        (reply("  "), "malformed"),
        (reply("so " * 400), "malformed"),
        (completion("I need 12."), "malformed"),
        (reply("I need 12.", ("colour", "How many")), "malformed"),
    ],
)
async def test_a_reply_that_breaks_the_contract_is_asked_for_again(tmp_path, wrong, kind):
    """The agent sees the good one only."""
    said, _, refused = await talk(tmp_path, [wrong, GOOD], "How many do you want?")
    assert said[0].text == "I need 12."
    assert refused == {kind: 1}


async def test_a_fact_that_there_is_not_is_refused_with_those_that_there_are(tmp_path):
    """For models behind servers that take no schemas."""
    _, bodies, _ = await heard(tmp_path, [reply("12.", ("colour", "How many")), GOOD], "How many do you want?")
    said = bodies[1]["messages"][-1]["content"]
    assert 'sentences.0.fact: expected one of [null,"item","quantity","member"]' in said


async def test_a_server_that_takes_schemas_is_held_to_the_message(tmp_path):
    """It may quote its sentences and their parts, and let the user leave only when nothing is asked."""
    replies = [GOOD, reply("Thanks, bye.", done=True), reply("Hm.")]
    _, bodies, refused = await heard(
        tmp_path, replies, "Hello, you! How many do you want?", "Ordered.\n", ", ".join(map(str, range(99)))
    )
    assert refused == {}
    schemas = [body["response_format"]["json_schema"]["schema"]["properties"] for body in bodies]
    assert [schema["done"].get("const") for schema in schemas] == [False, None, None]
    quotes = [schema["sentences"]["items"]["properties"]["asked_by"]["enum"] for schema in schemas]
    assert quotes[:2] == [["", "Hello, you!", "Hello", "you!", "How many do you want?"], ["", "Ordered."]]
    assert quotes[2] == ["", *map(str, range(59, 99))]


async def test_values_that_were_heard_may_be_repeated(tmp_path):
    """What the agent said itself, or the user told before, is no leak and no invention."""
    said, _, refused = await talk(
        tmp_path,
        [GOOD, reply("Yes, 12 by Friday, for 30 people.")],
        "How many do you want?",
        "So 12 for 30 people?",
    )
    assert refused == {}
    assert said[1].revealed == ("quantity",)


async def test_what_is_claimed_and_neither_asked_for_nor_said_is_nothing(tmp_path):
    """A claim reveals nothing."""
    wrong = reply("I need 12.", ("quantity", "How many"), ("item", "the fruit"))
    said, _, refused = await talk(tmp_path, [wrong], "How many do you want?")
    assert (said[0].revealed, refused) == (("quantity",), {})


async def test_what_was_asked_for_may_be_said_without_a_claim(tmp_path):
    """The words reveal it; what is claimed of them does not matter."""
    said, _, refused = await talk(tmp_path, [reply("I need 12.")], "How many do you want?")
    assert (said[0].revealed, refused) == (("quantity",), {})


async def test_a_user_whose_model_never_keeps_the_contract_is_a_fault(tmp_path):
    """Of the simulator: nothing of it is shown to the agent."""
    with pytest.raises(UserError, match="user simulator: 4 replies were refused"):
        await talk(tmp_path, [reply("K-4471")], "Any details?")


async def test_a_forgetful_user_recalls_when_asked_again(tmp_path):
    """What it cannot recall is not revealed, whatever the model claims."""
    task = shopper(facts={"quantity": USER["facts"]["quantity"]})
    said, asked, _ = await talk(
        tmp_path,
        [reply("I cannot recall.", ("quantity", "How many")), GOOD],
        "How many do you want?",
        "How many was it?",
        name="forgetful",
        task=task,
    )
    assert [one.revealed for one in said] == [(), ("quantity",)]
    assert [document["facts"][0]["value"] for document in asked] == [None, 12]


async def test_a_hasty_user_corrects_itself(tmp_path):
    """The wrong value is not revealed; the right one is, unasked."""
    task = shopper(facts={"quantity": USER["facts"]["quantity"]})
    drawn = profile("corrects", task.user, random.Random(f"profile/{task.id}/0"))
    wrong = drawn.mistakes["quantity"]
    assert str(wrong) != "12"
    said, asked, refused = await talk(
        tmp_path,
        [reply(f"I need {wrong}.", ("quantity", "How many")), reply("Sorry, it is 12.")],
        "How many do you want?",
        "Anything else?",
        name="corrects",
        task=task,
    )
    assert refused == {}
    assert [one.revealed for one in said] == [(), ("quantity",)]
    assert asked[0]["facts"][0]["value"] == wrong
    assert asked[1]["correct"] == [{"fact": "quantity", "said": wrong, "right": 12}]


async def test_an_impatient_user_leaves(tmp_path):
    """After as many questions as its seed says."""
    said, *_ = await talk(tmp_path, [reply("Hurry up.")], *["Hm?"] * 4, name="impatient")
    assert [one.done for one in said].index(True) in (1, 2, 3)


async def test_an_adversarial_user_may_claim_what_it_likes_but_not_leak(tmp_path):
    """Its strategy is the task's."""
    said, asked, refused = await talk(
        tmp_path, [reply("My sister owns 99 shops!"), reply("K-4471")], "How many?", name="adversarial"
    )
    assert said[0].text == "My sister owns 99 shops!"
    assert refused == {}
    assert "sister" in asked[0]["profile"]


def test_profiles_follow_from_the_seed():
    """All of them occur, and a user without the means for one is cooperative."""
    task = shopper()
    drawn = [profile("mixed", task.user, random.Random(f"{seed}")) for seed in range(60)]
    assert {one.name for one in drawn} == set(MIXED)
    assert drawn == [profile("mixed", task.user, random.Random(f"{seed}")) for seed in range(60)]
    bare = shopper(facts={}, escape_strategy="")
    for name in ("forgetful", "corrects", "adversarial"):
        assert profile(name, bare.user, random.Random(0)).name == "cooperative"


async def test_the_scripted_endpoint_keeps_the_contract(tmp_path):
    """Over both routes, for every profile."""
    for api in ("openai", "sglang"):
        async with asking(tmp_path, api=api) as asker:
            for name in MIXED:
                session = await LlmUser(asker, name).open(shopper(), 3, None)
                replies = [await session.reply(text) for text in ("How many?", "How many?", "What membership?")]
                assert replies[0].text
            tally = asker.tallies["user"]
            assert tally.refused == {}
            assert tally.given_up == 0


async def test_a_value_that_two_facts_have_is_the_one_that_was_asked_for(tmp_path):
    """Nobody could say the one without the other; nor a part without the whole."""
    task = shopper(
        facts={
            "member": {"value": "K-4471", "keywords": ["member"]},
            "shop": {"value": "K-4471", "keywords": ["shop"]},
            "place": {"value": "the K-4471 annex", "keywords": ["place"]},
        }
    )
    said, _, refused = await talk(
        tmp_path,
        [reply("K-4471", ("member", "member")), reply("The K-4471 annex.", ("place", "Which place"))],
        "Which member are you?",
        "Which place?",
        task=task,
    )
    assert refused == {}
    assert [one.revealed for one in said] == [("member",), ("place",)]
