"""What a seam admits, a frame can hold: values of any kind, from every seam, end as a record or mask one episode."""

import enum
import json
import string
from collections import OrderedDict, namedtuple
from dataclasses import dataclass, replace
from datetime import date
from decimal import Decimal
from types import MappingProxyType
from uuid import UUID

import anyio
import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.chat.actions import AgentCalls, Malformed, parse_action
from engine.core.seams import returned
from engine.llm.asking import _object
from engine.llm.question import RefusedReplyError
from engine.schema.legible import legible
from engine.schema.recordable import LEVELS, UnrecordableError, recorded, recorded_text
from engine.scripted.constant import ConstantScorer, ConstantSession, ConstantUser, ConstantUserSession, ConstantWorld
from engine.stream.frame import decode, encode
from engine.types import Completion, Episode, Observation, Outcome, Reply, Reward, StopReason, ToolCall, Verdict
from tests.engine.core.test_episode import DONE, ORDER, Lines, play, returns
from tests.parts.stream_groups import group

HALF = "Gern \ud83d"
Pair = namedtuple("Pair", "a b")  # noqa: PYI024 - an untyped one, as somebody's own
Text = type("Text", (str,), {})
Real = type("Real", (float,), {})
Color = enum.Enum("Color", {"RED": 1})
Size = enum.StrEnum("Size", {"BIG": "big"})


@dataclass
class Book:
    """As somebody's world may keep it."""

    title: str


def nested(levels, inner=None):
    """A value inside so many arrays."""
    for _ in range(levels):
        inner = [inner]
    return inner


def endless():
    """A list that has itself in it, twice."""
    made = []
    made += [made, made]
    return made


REFUSED = [
    (HALF, "half a surrogate pair (\\ud83d) is no character"),
    ({"\udc00": 1}, "\\udc00: half a surrogate pair (\\udc00) is no character"),
    ({"a": [0, float("nan")]}, "a.1: nan is no JSON number"),
    ([float("-inf")], "0: -inf is no JSON number"),
    ({"n": 2**64}, "n: an integer does not fit into 64 bits"),
    ([-(2**63) - 1], "0: an integer does not fit into 64 bits"),
    ({"price": np.float64(1)}, "price: numpy.float64 is no JSON value"),
    ({"n": np.int64(3)}, "n: numpy.int64 is no JSON value"),
    ({"ok": np.bool_(True)}, "ok: numpy.bool is no JSON value"),
    ({"a": np.zeros(2)}, "a: numpy.ndarray is no JSON value"),
    ({"lent": {"a", "b"}}, "lent: set is no JSON value"),
    (b"bytes", "bytes is no JSON value"),
    ({"when": date(2026, 1, 2)}, "when: datetime.date is no JSON value"),
    ({"id": UUID(int=1)}, "id: uuid.UUID is no JSON value"),
    ({"price": Decimal(1)}, "price: decimal.Decimal is no JSON value"),
    ({"book": Book("x")}, "book: tests.engine.schema.test_recordable.Book is no JSON value"),
    ({"color": Color.RED}, "color: tests.engine.schema.test_recordable.Color is no JSON value"),
    ({"row": Pair(1, 2)}, "row: tests.engine.schema.test_recordable.Pair is no JSON value"),
    ({"x": Real(1)}, "x: tests.engine.schema.test_recordable.Real is no JSON value"),
    ({"view": MappingProxyType({})}, "view: mappingproxy is no JSON value"),
    ({"by": {1: "a"}}, "by: a key is int, not str"),
    ({("a", "b"): 1}, "a key is tuple, not str"),
    (nested(LEVELS + 1), f"nests deeper than {LEVELS} levels"),
    (endless(), f"nests deeper than {LEVELS} levels"),
    ({"deep": nested(300)}, f"nests deeper than {LEVELS} levels"),
]


@pytest.mark.parametrize(("value", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_what_no_record_can_hold_is_refused_with_its_place(value, said):
    """In words that can be written themselves."""
    with pytest.raises(UnrecordableError) as caught:
        recorded(value)
    assert said in str(caught.value)
    assert str(caught.value).encode()


def test_what_a_record_holds_comes_back_plain():
    """Tuples are lists, subclasses their plain values; the copy has nothing in common with what was given."""
    given = {"rows": [(1, 2.0), ()], "size": Size.BIG, "text": Text("é"), "more": OrderedDict(a=None, b=True)}
    made = recorded(given)
    assert made == {"rows": [[1, 2.0], []], "size": "big", "text": "é", "more": {"a": None, "b": True}}
    assert [type(made["size"]), type(made["text"]), type(made["more"])] == [str, str, dict]
    given["rows"].append("later")
    assert len(made["rows"]) == 2
    assert recorded(-0.0).hex() == "-0x0.0p+0"
    assert recorded([2**64 - 1, -(2**63)]) == [2**64 - 1, -(2**63)]
    assert recorded(nested(LEVELS)) == nested(LEVELS)


def test_a_text_for_people_can_be_written():
    """The half is spelled out; nothing else is changed."""
    assert legible(HALF) == "Gern \\ud83d"
    assert legible("Über 😀") == "Über 😀"
    with pytest.raises(UnrecordableError, match="the text is bytes, not str"):
        recorded_text(b"bytes")


# --- the property ----------------------------------------------------------------------------------------------------

any_text = st.text() | st.text(st.characters(exclude_categories=())) | st.just(HALF)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([2**63, 2**64 - 1, 2**64, -(2**63)])
    | st.floats()
    | any_text
    | st.sampled_from([value for value, _ in REFUSED])
    | st.sampled_from([Size.BIG, Text("x"), nested(LEVELS - 1), OrderedDict(a=1), np.str_("x"), object(), 1j, ()])
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(any_text | st.integers() | st.just(Text("k")), inner, max_size=3)
    ),
    max_leaves=6,
)


def read_back(episode: Episode) -> Episode:
    """The episode as whoever reads the stream gets it."""
    return decode(encode(replace(group(1), episodes=(episode,)))).episodes[0]


def assert_held(episode: Episode) -> None:
    """A frame holds it, and gives back the same: equal, and of the same types."""
    read = read_back(episode)
    assert replace(read, tokens=None) == replace(episode, tokens=None)
    assert repr(replace(read, tokens=None)) == repr(replace(episode, tokens=None))


@settings(max_examples=200)
@given(values)
def test_what_is_admitted_a_frame_can_hold(value):
    """And whoever reads it gets the value that was admitted, to the type; what is refused is refused in words."""
    try:
        made = recorded(value)
    except UnrecordableError as error:
        str(error).encode()
        return
    episode = replace(group(1).episodes[0], final_state=made, messages=({"role": "tool", "content": made},))
    read = read_back(episode)
    assert repr(read.final_state) == repr(made)
    assert read == replace(episode, tokens=read.tokens)


def handing_in(seam, value):
    """The seams of an episode in which somebody hands in a value; and the outcome if it is refused."""
    tool, user, judge = Outcome.TOOL_FAULT, Outcome.USER_FAULT, Outcome.JUDGE_FAULT
    whole = Reward(value=1.0, F=1.0, N=1.0, I=1.0)
    item = Verdict(id="n1", part="subgoal", met=True)
    return {
        "content": (tool, session(call=Observation(content=value, ok=True))),
        "ok": (tool, session(call=Observation(content="{}", ok=value))),
        "observation": (tool, session(call=value)),
        "state": (tool, session(close=value)),
        "text": (user, speaker(Reply(text=value))),
        "revealed": (user, speaker(Reply(text="Yes.", revealed=value))),
        "one revealed": (user, speaker(Reply(text="Yes.", revealed=(value,)))),
        "done": (user, speaker(Reply(text="Yes.", done=value))),
        "value": (judge, scorer(replace(whole, value=value))),
        "I": (judge, scorer(replace(whole, I=value))),
        "items": (judge, scorer(replace(whole, items=value))),
        "id": (judge, scorer(replace(whole, items=(replace(item, id=value),)))),
        "met": (judge, scorer(replace(whole, items=(item, replace(item, met=value))))),
        "evidence": (judge, scorer(replace(whole, items=[replace(item, evidence=value)]))),
    }[seam]


def session(**answers):
    """A world whose session answers so."""
    made = ConstantSession()
    for method, value in answers.items():
        made = returns(type(made), method, value)
    return {"world": returns(ConstantWorld, "open", made)}


def speaker(reply):
    """A user who says so."""
    return {"user": returns(ConstantUser, "open", returns(ConstantUserSession, "reply", reply))}


def scorer(reward):
    """A scorer that says so."""
    return {"scorer": returns(ConstantScorer, "score", reward)}


SEAMS = (
    *("content", "ok", "observation", "state", "text", "revealed", "one revealed", "done"),
    *("value", "I", "items", "id", "met", "evidence"),
)


@settings(max_examples=120)
@given(st.sampled_from(SEAMS), values)
def test_whatever_a_plugin_hands_in_its_episode_can_be_written(seam, value):
    """It is part of the record as it was admitted, or its episode is masked by name: never more than that."""
    refused, seams = handing_in(seam, value)
    episode = anyio.run(lambda: play(Lines("Which one?", ORDER, DONE), **seams))
    assert_held(episode)
    assert episode.scored or (episode.outcome, episode.reward) == (refused, None)
    assert episode.scored or episode.error


@pytest.mark.parametrize(
    ("seam", "value", "said"),
    [
        ("observation", None, "returned NoneType, not engine.types.Observation"),
        ("content", HALF, r"the Observation: half a surrogate pair \(\\ud83d\)"),
        ("ok", np.zeros(2), "ambiguous"),
        ("state", {"n": np.int64(1)}, "n: numpy.int64 is no JSON value"),
        ("state", {"lent": {"a"}}, "lent: set is no JSON value"),
        ("state", {("a", 1): 2}, "a key is tuple, not str"),
        ("state", {"x": float("inf")}, "x: inf is no JSON number"),
        ("state", endless(), f"nests deeper than {LEVELS} levels"),
        ("state", {"when": date(2026, 1, 2)}, "when: datetime.date is no JSON value"),
        ("text", HALF, r"the Reply: half a surrogate pair \(\\ud83d\)"),
        ("revealed", {"item"}, "what the Reply revealed is set, not a tuple"),
        ("revealed", None, "what the Reply revealed is NoneType, not a tuple"),
        ("revealed", "item", "what the Reply revealed is str, not a tuple"),
        ("one revealed", np.str_("\udc00"), "0: half a surrogate pair"),
        ("value", np.float64(1), "the Reward: value: numpy.float64 is no JSON value"),
        ("value", 10**400, "the Reward: value: an integer does not fit into 64 bits"),
        ("value", "1", "the value of the Reward is str, not a number"),
        ("I", float("nan"), "the Reward: I: nan is no JSON number"),
        ("items", iter(()), "the items of the Reward"),
        ("id", HALF, r"the Reward: items.0.id: half a surrogate pair"),
        ("met", np.bool_(True), "the Reward: items.1.met: numpy.bool is no JSON value"),
        ("evidence", np.int64(0), "the Reward: items.0.evidence: numpy.int64 is no JSON value"),
    ],
)
async def test_a_value_that_no_record_can_hold_masks_its_episode(seam, value, said):
    """With an error that says what it was, and where."""
    refused, seams = handing_in(seam, value)
    episode = await play(Lines("Which one?", ORDER, DONE), **seams)
    assert (episode.outcome, episode.reward) == (refused, None)
    assert said.replace("\\", "") in episode.error.replace("\\", "")
    assert_held(episode)


async def test_what_can_be_held_counts_as_it_did():
    """Subclasses, lists and tuples of somebody's own are recorded as plain ones, and the scorer sees what is read."""
    seen = []

    class Looking(ConstantScorer):
        async def score(self, record):
            seen.append(record.final_state)
            sub = type("Mine", (Reward,), {})
            return sub(value=1, F=1, N=1, I=1, items=[Verdict(id=Size.BIG, part="subgoal", met=True)])

    seams = {
        **session(call=Observation(content=Text("{}"), ok=np.bool_(False)), close={"rows": [(1, "a")]}),
        **speaker(Reply(text="Yes.", revealed=["item"])),
        "scorer": Looking(),
    }
    episode = await play(Lines("Which one?", ORDER, DONE), **seams)
    assert_held(episode)
    assert (episode.stop, episode.outcome) == (StopReason.ANSWER, Outcome.AGENT_OK)
    assert seen == [{"rows": [[1, "a"]]}]
    assert [event.ok for event in episode.events] == [True, False, True]
    assert episode.events[0].revealed == ("item",)
    assert type(episode.reward) is Reward


@pytest.mark.parametrize("text", [HALF, f"<question>{HALF}</question>", b"bytes", None])
async def test_a_completion_that_no_record_can_hold_masks_its_episode(text):
    """A policy's text is held to the same."""

    class Saying(Lines):
        async def complete(self, turn) -> Completion:
            return replace(await super().complete(turn), text=text)

    episode = await play(Saying(DONE))
    assert (episode.outcome, episode.messages[2:]) == (Outcome.INFRA_ERROR, ())
    assert "g000007.01@00: UnrecordableError: " in episode.error
    assert_held(episode)


@pytest.mark.parametrize("seam", ["world", "user", "scorer"])
async def test_an_error_that_no_record_can_hold_is_spelled_out(seam):
    """What went wrong is told in words of somebody's own: those are recorded whatever they have in them."""

    async def failing(*_):
        raise RuntimeError(HALF)

    method = {"world": "open", "user": "open", "scorer": "score"}[seam]
    kind = {"world": ConstantWorld, "user": ConstantUser, "scorer": ConstantScorer}[seam]
    episode = await play(Lines(DONE), **{seam: type("Broken", (kind,), {method: staticmethod(failing)})()})
    assert episode.error.endswith("RuntimeError: Gern \\ud83d")
    assert_held(episode)


def test_a_rehearsed_value_is_held_to_the_same():
    """`returned` is what the rehearsal asks too; it names the type that it wants."""
    with pytest.raises(TypeError, match=r"returned str, not engine\.types\.Reply"):
        returned("Yes.", Reply)


# --- calls of the policy ---------------------------------------------------------------------------------------------

numbers = st.integers() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
arguments = st.dictionaries(
    st.text(string.ascii_letters, min_size=1),
    st.recursive(
        numbers | st.text(st.characters(exclude_characters="<", exclude_categories=["Cs"])) | st.none() | st.booleans(),
        lambda inner: st.lists(inner, max_size=3),
    ),
    max_size=3,
)


@settings(max_examples=200)
@given(arguments)
def test_a_call_is_what_was_written_or_malformed(wanted):
    """Integers above all: no other number stands in for one that does not fit."""
    body = json.dumps({"name": "get", "arguments": wanted})
    [call] = parse_action(f"<tool_call>{body}</tool_call>").calls
    if isinstance(call, Malformed):
        assert "64 bits" in call.reason
        with pytest.raises(TypeError):
            orjson.dumps(wanted)
        return
    assert repr(call.arguments) == repr(wanted)
    event = replace(group(1).episodes[0].events[0], arguments=call.arguments)
    assert_held(replace(group(1).episodes[0], events=(event,)))


@pytest.mark.parametrize(
    ("number", "call"),
    [
        ("9223372036854775807", 2**63 - 1),
        ("12345678901234567890", 12345678901234567890),
        ("100000000000000000001", "an integer does not fit into 64 bits"),
        ("-9223372036854775809", "an integer does not fit into 64 bits"),
        ('"100000000000000000001"', "100000000000000000001"),
        ("1.00000000000000000000001", 1.0),
        ("1e300", 1e300),
    ],
)
def test_an_integer_beyond_64_bits_is_no_other_number(number, call):
    """It is malformed; long digits of a text or a fraction are not."""
    expected = ToolCall(name="get", arguments={"id": call})
    if isinstance(call, str) and "64 bits" in call:
        expected = Malformed(reason=call)
    written = f'<tool_call>{{"name": "get", "arguments": {{"id": {number}}}}}</tool_call>'
    assert parse_action(written) == AgentCalls(calls=(expected,))


# --- replies of language models --------------------------------------------------------------------------------------

written = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(-(2**70), 2**70) | st.floats() | any_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200)
@given(
    st.dictionaries(any_text, written, max_size=3), st.sampled_from(["{}", "Sure: {}", "```json\n{}\n```", HALF + "{}"])
)
def test_what_is_read_of_a_reply_a_frame_can_hold(value, around):
    """Escapes, long integers and numbers that are none included; anything else is refused with words that a model and
    the journal can be given."""
    try:
        made = _object(around.replace("{}", json.dumps(value)))
    except RefusedReplyError as refusal:
        refusal.reason.encode()
        return
    episode = replace(group(1).episodes[0], final_state=made)
    assert repr(read_back(episode).final_state) == repr(made)
