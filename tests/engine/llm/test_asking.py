"""engine.llm.asking and json_text: contracts, second replies, and answers that stay what they were."""

import anyio
import pytest

from engine.errors import RewardError, ToolError, UserError
from engine.llm.asking import JournaledAsker
from engine.llm.journal import open_journal
from engine.llm.json_text import parsed
from engine.llm.question import Question, RefusedReplyError
from tests.engine.llm.test_endpoint import answering, completion
from tests.parts.llm_parts import ECHO, listening, reachable

pytestmark = pytest.mark.anyio


def question(role="user", about="x"):
    """Some question."""
    return Question(
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
