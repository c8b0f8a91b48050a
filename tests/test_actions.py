"""What completions are read as."""

from hypothesis import given
from hypothesis import strategies as st

from engine.policy.actions import Answer, Calls, Malformed, Question, Said, parse
from engine.types import ToolCall

CALL = '<tool_call>{"name":"find","arguments":{"at":"x"}}</tool_call>'


def test_calls_run_in_order_and_what_follows_them_is_ignored():
    """Several calls are kept in order; text and other tags around them say nothing."""
    second = CALL.replace("find", "keep")
    found = parse(f"Let me see. {CALL}\n{second} <answer>done</answer> bye")
    arguments = {"at": "x"}
    assert found == Calls(
        calls=(ToolCall(name="find", arguments=arguments), ToolCall(name="keep", arguments=arguments))
    )


def test_the_first_tag_decides_the_kind():
    """A call inside a question or answer is text."""
    assert parse(f"<question>Which? {CALL}</question>") == Question(text=f"Which? {CALL}")
    assert parse(f"<answer>It is 47.</answer>{CALL}") == Answer(text="It is 47.")


def test_without_a_tag_the_whole_text_is_said():
    """Plain text goes to the user, trimmed."""
    assert parse(" Hello there \n") == Said(text="Hello there")


def test_an_unclosed_question_or_answer_is_what_is_there():
    """A length stop inside a question or answer does not lose its words."""
    assert parse("<question>What is the size") == Question(text="What is the size")
    assert parse("<answer>The code is 4") == Answer(text="The code is 4")


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
        "": "not JSON",
    }
    for body, reason in bodies.items():
        (call,) = parse(f"<tool_call>{body}</tool_call>").calls
        assert isinstance(call, Malformed)
        assert call.reason.startswith(reason)
        assert call.observation.startswith('{"error":"malformed call: ')


def test_an_unclosed_call_is_malformed_beside_good_ones():
    """A cut call is not run even if its JSON is whole; the ones before it are."""
    found = parse(CALL + CALL.removesuffix("</tool_call>"))
    assert found.calls == (ToolCall(name="find", arguments={"at": "x"}), Malformed(reason="</tool_call> is missing"))


@given(st.lists(st.sampled_from(["<tool_call>", "</tool_call>", "<question>", "</answer>", CALL, "{", "é", "\n", '"'])))
def test_any_text_is_read(parts):
    """No completion makes the parser raise, and every call is a call or a reason."""
    found = parse("".join(parts))
    if isinstance(found, Calls):
        assert found.calls
        assert all(isinstance(call, ToolCall | Malformed) for call in found.calls)
