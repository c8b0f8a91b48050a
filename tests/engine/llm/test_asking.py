"""engine.llm.asking and json_text: contracts, second replies, and answers that stay what they were."""

import anyio
import orjson
import pytest
from anyio import to_thread

from engine.errors import RewardError, ToolError, UserError
from engine.llm.asking import JournaledAsker
from engine.llm.journal import Exchange, open_journal, read_journal
from engine.llm.question import ModelQuestion, RefusedReplyError
from engine.schema.json_text import parsed
from tests.engine.llm.test_endpoint import answering, completion
from tests.parts.llm_parts import ECHO, listening, reachable

pytestmark = pytest.mark.anyio


def question(role="user", about="x"):
    """Some question."""
    return ModelQuestion(
        role=role,
        task="t1",
        owner="t1",
        about=(role, about),
        instructions="Answer.",
        document={"as": role, "about": about},
        schema=ECHO,
    )


def admit(reply, _document):
    """Only `true` is acceptable."""
    if not reply["ok"]:
        raise RefusedReplyError("leak", "ok must be true")
    return reply


async def test_a_reply_that_is_refused_is_asked_for_again_with_the_reason(tmp_path):
    """Warmer, with the reply left out, which would be copied; each refusal is counted by its kind and kept."""
    application, bodies = answering(
        completion("Sure!"), completion('{"ok": 3}'), completion('{"ok": false}'), completion('{"ok": true}')
    )
    async with listening(application) as url, open_journal(tmp_path / "j") as journal, reachable(url) as opened:
        asker = JournaledAsker(journal, opened)
        assert await asker.ask(question(), admit) == {"ok": True}
        tally = asker.tallies["user"]
        assert (tally.asked, tally.replies, dict(tally.refused)) == (1, 4, {"malformed": 2, "leak": 1})
        assert (tally.prompt_tokens, tally.completion_tokens) == (40, 8)
        refusals = [exchange.refusal async for exchange in journal.exchanges()]
    assert bodies[0]["temperature"] == 0
    assert bodies[3]["temperature"] == 0.7
    assert bodies[3]["messages"][-2:] == [
        {"role": "assistant", "content": "{}"},
        {
            "role": "user",
            "content": "This cannot be used: ok must be true. "
            "Answer the document again, with one JSON object and nothing else.",
        },
    ]
    assert [text.partition(":")[0] for text in refusals] == ["malformed", "malformed", "leak", ""]


@pytest.mark.parametrize(("role", "fault"), [("tool", ToolError), ("user", UserError), ("judge", RewardError)])
async def test_what_stays_unacceptable_is_the_fault_of_whoever_was_played(tmp_path, role, fault):
    """With the last reason; so is an endpoint that does not answer."""
    application, _ = answering(completion('{"ok": false}'))
    async with listening(application) as url, open_journal(tmp_path / "j") as journal, reachable(url) as opened:
        with pytest.raises(fault, match=r"t1: .*4 replies were refused, the last one: ok must be true"):
            await JournaledAsker(journal, opened).ask(question(role), admit)
    async with open_journal(tmp_path / "k") as journal, reachable("http://127.0.0.1:1", retries=0) as opened:
        with pytest.raises(fault, match=r"t1: .*endpoint sim"):
            await JournaledAsker(journal, opened).ask(question(role), admit)


async def test_a_question_is_answered_once_for_the_whole_run(tmp_path):
    """Later, after a restart, and without an endpoint the answer is the same; another question is not known."""
    application, bodies = answering(completion('{"ok": true, "n": 1}'), completion('{"ok": true, "n": 2}'))
    async with listening(application) as url:
        for _ in range(2):
            async with open_journal(tmp_path / "j") as journal, reachable(url) as opened:
                asker = JournaledAsker(journal, opened)
                for _ in range(2):
                    assert (await asker.ask(question(), admit))["n"] == 1
    assert len(bodies) == 1
    async with open_journal(tmp_path / "j") as journal:
        alone = JournaledAsker(journal, None)
        assert (await alone.ask(question(), admit))["n"] == 1
        with pytest.raises(UserError, match="not in the journal"):
            await alone.ask(question(about="y"), admit)


async def test_a_recorded_answer_is_checked_like_a_fresh_one(tmp_path):
    """A check that changed since then is a difference, not a pass."""
    application, _ = answering(completion('{"ok": true}'))
    async with listening(application) as url, open_journal(tmp_path / "j") as journal, reachable(url) as opened:
        asker = JournaledAsker(journal, opened)
        await asker.ask(question(), admit)

        def stricter(_reply, _document):
            raise RefusedReplyError("leak", "never")

        with pytest.raises(UserError, match="the recorded reply is refused: never"):
            await asker.ask(question(), stricter)


async def test_two_who_ask_the_same_at_once_agree(tmp_path):
    """On the first answer that came."""
    application, _ = answering(completion('{"ok": true, "n": 1}'), completion('{"ok": true, "n": 2}'))
    said = []

    async def ask(asker):
        said.append((await asker.ask(question(), admit))["n"])

    async with listening(application) as url, open_journal(tmp_path / "j") as journal, reachable(url) as opened:
        asker = JournaledAsker(journal, opened)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask, asker)
            tasks.start_soon(ask, asker)
    assert len(set(said)) == 1


def answered(about, text):
    """An exchange that answered a question with that text, as a journal keeps it."""
    request = {"messages": [{"role": "system", "content": ""}, {"role": "user", "content": '{"as": "user"}'}]}
    return Exchange(
        subject=question(about=about).subject,
        attempt=0,
        role="user",
        task="t1",
        endpoint="sim",
        model="m",
        request=orjson.dumps(request),
        reply=text,
        refusal="",
        prompt_tokens=1,
        completion_tokens=1,
    )


async def kept(path, *exchanges):
    """A journal of these."""
    async with open_journal(path) as journal:
        for exchange in exchanges:
            journal.put(exchange)


UNRECORDABLE = {
    '{"ok": true, "says": "yes \\ud83d"}': "says: half a surrogate pair (\\ud83d) is no character",
    'Sure: {"ok": true, "\\udc00": 1}': "\\udc00: half a surrogate pair (\\udc00) is no character",
    '```json\n{"ok": true, "n": 123456789012345678901}\n```': "n: an integer does not fit into 64 bits",
    'Well, {"ok": true, "n": [1e999]}': "n.0: inf is no JSON number",
    '{"ok": true, "n": ' + "[" * 300 + "]" * 300 + "}": "nests deeper than 200 levels",
}


@pytest.mark.parametrize("role", ["tool", "user", "judge"])
@pytest.mark.parametrize(("text", "said"), UNRECORDABLE.items(), ids=UNRECORDABLE.values())
async def test_a_reply_that_no_record_can_hold_is_asked_for_again(tmp_path, role, text, said):
    """Whoever is played: the model is told what is wrong with it, and the journal keeps it as refused."""
    application, bodies = answering(completion(text), completion('{"ok": true}'))
    async with listening(application) as url, open_journal(tmp_path / "j") as journal, reachable(url) as opened:
        asker = JournaledAsker(journal, opened)
        assert await asker.ask(question(role), admit) == {"ok": True}
        assert dict(asker.tallies[role].refused) == {"malformed": 1}
        rows = [(exchange.reply, exchange.refusal) async for exchange in journal.exchanges()]
    assert said in bodies[1]["messages"][-1]["content"]
    assert [reply for reply, _ in rows] == [text, '{"ok": true}']
    assert said in rows[0][1]
    assert rows[1][1] == ""


@pytest.mark.parametrize("text", UNRECORDABLE, ids=UNRECORDABLE.values())
async def test_a_recorded_reply_that_no_record_can_hold_is_no_answer(tmp_path, text):
    """It is refused in the journal and asked for again, once for everybody who asks; after that it has an answer."""
    await kept(tmp_path / "j", answered("x", text), answered("y", '{"ok": true, "n": 1}'))
    application, bodies = answering(completion('{"ok": true, "n": 2}'))
    async with listening(application) as url, open_journal(tmp_path / "j") as journal, reachable(url) as opened:
        asker = JournaledAsker(journal, opened)
        said = []

        async def ask(about):
            said.append((about, (await asker.ask(question(about=about), admit))["n"]))

        async with anyio.create_task_group() as tasks:
            for about in ("x", "x", "y"):
                tasks.start_soon(ask, about)
        await ask("x")
    assert sorted(said) == [("x", 2), ("x", 2), ("x", 2), ("y", 1)]
    asked = len(bodies)
    async with open_journal(tmp_path / "j") as journal:
        assert (await JournaledAsker(journal, None).ask(question(about="x"), admit))["n"] == 2
        counts = await journal.check()
        assert (counts.accepted["user"], counts.refused["user"]) == (2, 1)
    assert len(bodies) == asked <= 2


@pytest.mark.parametrize("text", UNRECORDABLE, ids=UNRECORDABLE.values())
async def test_such_a_reply_in_a_journal_that_is_only_read_is_passed_over(tmp_path, text):
    """Nobody writes there: the question is not answered, or a later journal answers it."""
    path = tmp_path / "earlier"
    await kept(path, answered("x", text))
    before = await to_thread.run_sync(path.read_bytes)
    application, _ = answering(completion('{"ok": true, "n": 2}'))
    async with (
        listening(application) as url,
        read_journal(path) as earlier,
        open_journal(tmp_path / "j") as journal,
        reachable(url) as opened,
    ):
        with pytest.raises(UserError, match="not in the journal"):
            await JournaledAsker(earlier, None).ask(question(), admit)
        assert (await JournaledAsker(journal, opened, [earlier]).ask(question(), admit))["n"] == 2
        assert (await JournaledAsker(journal, None, [earlier]).ask(question(), admit))["n"] == 2
    assert await to_thread.run_sync(path.read_bytes) == before


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": 1}', {"a": 1}),
        ('Sure:\n```json\n{"a": {"b": 2}}\n```\nDone.', {"a": {"b": 2}}),
        ('<think>{"no": 1}</think>\n{"a": 1}', {"a": 1}),
        ('{"a": 1', None),
        ("[1]", None),
        ("no object", None),
        ('x {"a": NaN}', None),
        ('{"a":' * 2000, None),
    ],
)
def test_the_object_in_a_reply(text, value):
    """Whatever stands around it; and no exception for what is none."""
    assert parsed(text) == value
