"""What completions are read as, and that nothing in them keeps an episode from being written."""

from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.chat.actions import AgentCalls, AgentQuestion, FinalAnswer, Malformed, PlainMessage, parse_action
from engine.reward.rubric import RubricScorer
from engine.stream.frame import decode, encode
from engine.types import EpisodeGroup, Sampling, Source, ToolCall
from engine.world.offline import OfflineUser, OfflineWorld
from tests.engine.core.test_episode import DONE, LIMITS, Lines, play
from tests.parts.worlds import shop, task_json, tool

CALL = '<tool_call>{"name":"find","arguments":{"at":"x"}}</tool_call>'


def nested(levels: int, opening: str = '{"a":', closing: str = "}") -> str:
    """The JSON of an object that nests so deep."""
    return opening * levels + "1" + closing * levels


def test_calls_run_in_order_and_what_follows_them_is_ignored():
    """Several calls are kept in order; text and other tags around them say nothing."""
    second = CALL.replace("find", "keep")
    found = parse_action(f"Let me see. {CALL}\n{second} <answer>done</answer> bye")
    arguments = {"at": "x"}
    assert found == AgentCalls(
        calls=(ToolCall(name="find", arguments=arguments), ToolCall(name="keep", arguments=arguments))
    )


def test_the_first_tag_decides_the_kind():
    """A call inside a question or answer is text."""
    assert parse_action(f"<question>Which? {CALL}</question>") == AgentQuestion(text=f"Which? {CALL}")
    assert parse_action(f"<answer>It is 47.</answer>{CALL}") == FinalAnswer(text="It is 47.")


def test_without_a_tag_the_whole_text_is_said():
    """Plain text goes to the user, trimmed."""
    assert parse_action(" Hello there \n") == PlainMessage(text="Hello there")


def test_an_unclosed_question_or_answer_is_what_is_there():
    """A length stop inside a question or answer does not lose its words."""
    assert parse_action("<question>What is the size") == AgentQuestion(text="What is the size")
    assert parse_action("<answer>The code is 4") == FinalAnswer(text="The code is 4")


def test_malformed_calls_say_why():
    """Each defect has its own reason, and the agent sees it as a JSON error."""
    bodies = {
        '{"name":"find"': "not JSON",
        "[1]": "not an object",
        '{"arguments":{}}': "name must be a string",
        '{"name":"","arguments":{}}': "name must be a string",
        '{"name":"find"}': "arguments must be an object",
        '{"name":"find","arguments":"{}"}': "arguments must be an object",
        '{"name":"find","arguments":{"a":NaN}}': "not JSON",
        f'{{"name":"find","arguments":{nested(33)}}}': "arguments nest deeper than 32 levels",
        f'{{"name":"find","arguments":{{"a":{nested(1000, "[", "]")}}}}}': "arguments nest deeper than 32 levels",
        f'{{"name":"find","arguments":{nested(100_000)}}}': "not JSON",
        "": "not JSON",
    }
    for body, reason in bodies.items():
        (call,) = parse_action(f"<tool_call>{body}</tool_call>").calls
        assert isinstance(call, Malformed)
        assert call.reason.startswith(reason)
        assert call.observation.startswith('{"error":"malformed call: ')


def test_an_unclosed_call_is_malformed_beside_good_ones():
    """A cut call is not run even if its JSON is whole; the ones before it are."""
    found = parse_action(CALL + CALL.removesuffix("</tool_call>"))
    assert found.calls == (ToolCall(name="find", arguments={"at": "x"}), Malformed(reason="</tool_call> is missing"))


BODY = '{"name": "find", "arguments": {"at": "x"}}'


@pytest.mark.parametrize(
    "text",
    [
        f"```json\n{BODY}\n```",
        f"I will look it up.\n\n```\n{BODY}\n```\nOne moment.",
        f"```tool_call {BODY}```",
        f"```python\nprint(1)\n```\n```json\n  {BODY}\n```",
        f"```json\n{BODY}",
        BODY,
        BODY.replace(" ", "\n"),
        f"{BODY}\n\nI have looked it up.",
        f'{BODY}, "response": "found"}}',
        f"I look it up:\n{BODY}",
    ],
)
def test_a_call_may_stand_without_its_tags(text):
    """Bare or in a fence, whatever stands around it."""
    assert parse_action(text) == AgentCalls(calls=(ToolCall(name="find", arguments={"at": "x"}),))


def test_calls_without_tags_run_in_order_and_what_is_inside_one_is_not_another():
    """A line of a call's own arguments is part of them."""
    inside = f'{{"name": "keep", "arguments": {{"a":\n{BODY}\n}}}}'
    keep = ToolCall(name="keep", arguments={"a": {"name": "find", "arguments": {"at": "x"}}})
    assert parse_action(f"{inside}\n{BODY}").calls == (keep, ToolCall(name="find", arguments={"at": "x"}))


def test_malformed_calls_without_tags_say_why():
    """They are read as strictly as others, and never said to the user."""
    bodies = {
        BODY[:35]: "not JSON",
        BODY.replace('"x"', "NaN"): "not JSON",
        BODY.replace('"x"', "1" * 5000): "not JSON",
        BODY.replace('"x"', nested(100_000)): "not JSON",
        BODY.replace('"x"', nested(33)): "arguments nest deeper than 32 levels",
        BODY.replace('{"at": "x"}', '"x"'): "arguments must be an object",
        BODY.replace("name", "function"): "name must be a string",
        BODY.replace("arguments", "parameters"): "arguments must be an object",
        BODY.replace("arguments", "args"): "arguments must be an object",
    }
    for body, reason in bodies.items():
        for text in (body, f"```json\n{body}\n```"):
            (call,) = parse_action(text).calls
            assert isinstance(call, Malformed)
            assert call.reason.startswith(reason)


@pytest.mark.parametrize(
    "text",
    [
        '```json\n{"name": "find"}\n```',
        '```json\n{"origin": "Oslo", "date": "2023-01-01"}\n```',
        '{"name": "Ann", "age": 47, "arguments": "none"}',
        "```json\n[1, 2]\n```",
        f"You could send me {BODY}, for example.",
        "```",
    ],
)
def test_what_does_not_begin_as_a_call_is_said(text):
    """Data, code and JSON within a sentence are words to the user."""
    assert parse_action(text) == PlainMessage(text=text)


def test_a_tag_decides_before_a_call_without_tags():
    """A fence inside a question or answer, or beside a call, is text."""
    fence = f"```json\n{BODY}\n```"
    assert parse_action(f"<answer>{fence}</answer>") == FinalAnswer(text=fence)
    assert parse_action(f"{fence} <question>Where?</question>") == AgentQuestion(text="Where?")
    assert parse_action(f"{fence}{CALL}") == AgentCalls(calls=(ToolCall(name="find", arguments={"at": "x"}),))


@pytest.mark.parametrize("opening", ["<think>\n", ""])
def test_thoughts_are_no_action(opening):
    """Tags, calls and words in a thought do nothing, whether the template or the completion opened it."""
    thought = f"{opening}They want x. {CALL} or <answer>no</answer>? Ask: <question>Which?\n</think>\n\n"
    assert parse_action(f"{thought}{CALL}") == AgentCalls(calls=(ToolCall(name="find", arguments={"at": "x"}),))
    assert parse_action(f"{thought}<question>When?</question>") == AgentQuestion(text="When?")
    assert parse_action(f"{thought}Good morning.") == PlainMessage(text="Good morning.")
    assert parse_action("<think>\n\n</think>\n\n<answer>47</answer>") == FinalAnswer(text="47")


def test_a_thought_that_is_not_closed_is_malformed():
    """A length stop inside a thought says nothing to the user and does nothing."""
    for text in (f"<think>I call {CALL}", "<think>so</think> <think>and <answer>47</answer>"):
        assert parse_action(text) == AgentCalls(calls=(Malformed(reason="</think> is missing"),))


PIECES = ["<tool_call>", "</tool_call>", "<question>", "</answer>", "<think>", "</think>", CALL, BODY, "```", *'{é\n"']


@given(st.lists(st.sampled_from(PIECES)))
def test_any_text_is_read(parts):
    """No completion makes the parser raise, and every call is a call or a reason."""
    found = parse_action("".join(parts))
    if isinstance(found, AgentCalls):
        assert found.calls
        assert all(isinstance(call, ToolCall | Malformed) for call in found.calls)


def test_arguments_may_nest_as_deep_as_any_tool_wants() -> None:
    """The bound itself is allowed, and what stands beside the arguments does not count: it is dropped."""
    body = f'{{"name":"find","arguments":{nested(32)},"more":{nested(900)}}}'
    assert parse_action(f"<tool_call>{body}</tool_call>").calls == (
        ToolCall(name="find", arguments=orjson.loads(nested(32))),
    )


# --- hostile completions --------------------------------------------------------------------------------------------

VALUES = [
    *map(nested, (31, 32, 33, 250, 255, 900, 1024, 5000)),
    nested(300, "[", "]"),
    *map(str, (2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 10**400)),
    *("1e400", "1e308", "-1e-400", "1E16", "-0.0", "NaN", "Infinity"),
    *('"\\ud800"', '"\\udfff\\ud800"', '{"\\ud800":1}', '"\\ud83d\\ude00"', '{"\\ud83d\\ude00":1}'),
    *('"\\u0000"', '{"\\u0000":1}', '"\ue0000\ue001"', '"\uffff"', '"\\u2028"', '"{id}"', '"~0/~1"'),
    *("{1:2}", '{"a":1,"a":2}', '{"\u00e9":1,"e\u0301":2}', '{"":{"":""}}', "null", "[]", '""'),
]
"""Values of arguments: everything that orjson could read and not write again is among them."""


def hostile(value: str) -> list[str]:
    """Completions that bring a value everywhere where a model can bring one."""
    bodies = [
        f'{{"name":"keep","arguments":{{"a":{value}}}}}',
        f'{{"name":"keep","arguments":{{{value}:1}}}}',
        f'{{"name":"keep","arguments":{value}}}',
        f'{{"name":{value},"arguments":{{}}}}',
        f'{{"name":"keep","arguments":{{"a":1}},"b":{value}}}',
        value,
    ]
    calls = [f"<tool_call>{body}</tool_call>" for body in bodies]
    return [*calls, "".join(calls), f"<question>{value} how many?</question>", value, f"<answer>{value}</answer>"]


KEEP = tool(
    "keep", {"a": {}}, effect={"write": "/orders/kept", "value": {"whole": "{a}", "in {a}": "in {a}", "{a}": [["{a}"]]}}
)


@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
async def test_whatever_is_said_can_be_written(value: str) -> None:
    """Every episode of the offline world becomes a frame, with events and state as they were."""
    task = shop(tools=[*task_json()["tools"], KEEP])
    limits = replace(LIMITS, turns=20, tokens=10**7, completion_tokens=10**6)
    seams: dict[str, Any] = {"world": OfflineWorld(), "user": OfflineUser(), "scorer": RubricScorer()}
    episode = await play(Lines(*hostile(value), DONE), task=task, limits=limits, **seams)
    assert episode.scored, episode.error
    assert episode.turns == 10
    group = {"id": "g000007", "position": 7, "task_id": task.id, "source": Source.POLICY, "sampling": Sampling()}
    (written,) = decode(encode(EpisodeGroup(**group, episodes=(episode,)))).episodes
    assert written.events == episode.events
    assert written.final_state == episode.final_state


def test_a_lone_surrogate_is_in_no_reply_and_no_call() -> None:
    """Replies of servers and calls are read by orjson, which refuses what no frame could hold; escaped or not."""
    for text in (r"\ud800", r"\udfff\ud800", "\ud800"):
        (call,) = parse_action(f'<tool_call>{{"name":"keep","arguments":{{"a":"{text}"}}}}</tool_call>').calls
        assert isinstance(call, Malformed)
        with pytest.raises(orjson.JSONDecodeError):
            orjson.loads(f'{{"text":"{text}"}}'.encode("utf-8", "surrogatepass"))
