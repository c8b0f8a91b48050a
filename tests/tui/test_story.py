"""tui.story, tui.tokens and tui.numbers: an episode to read, its tokens, and the figures beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import pytest
from tokenizers import Tokenizer

from engine.config.load import ASSETS
from engine.telemetry import engine_metrics as keys
from engine.types import Event, EventKind, Reward, Span, TurnTiming, Verdict
from tests.parts.tui_canned import HOSTILE, engine_row, row, talk
from tests.parts.tui_pictures import assert_harmless
from tests.parts.work import calls
from tui.numbers import batches, finite, rate, rates, series, share_points, staleness_shares
from tui.snapshot import Conversation
from tui.story import actions, blocks, divergence, verdict_lines
from tui.theme import logprob_style
from tui.tokens import _MOST_SILENT, _NO_TEXT, Pieces, mask_line, token_blocks

TOKENIZER = ASSETS / "tiny-model" / "tokenizer.json"
PROMPT = ({"role": "system", "content": "Rules."}, {"role": "user", "content": "Task."})


def said(text: str, *answers: str, role: str = "tool") -> list[dict[str, str]]:
    """A completion and what was answered."""
    return [{"role": "assistant", "content": text}, *({"role": role, "content": answer} for answer in answers)]


def call(turn: int, tool: str = "look", *, ok: bool = True, text: str = "{}", **arguments: object) -> Event:
    """A call of a tool."""
    return Event(number=turn, turn=turn, kind=EventKind.CALLED, text=text, tool=tool, arguments=arguments, ok=ok)


def event(turn: int, kind: EventKind, text: str = "", revealed: tuple[str, ...] = ()) -> Event:
    """A question or an answer."""
    return Event(number=turn, turn=turn, kind=kind, text=text, revealed=revealed)


def took(turn: int, phase: str, start_s: float, end_s: float) -> TurnTiming:
    """Seconds of a phase."""
    return TurnTiming(turn=turn, phase=phase, start_s=start_s, end_s=end_s)  # type: ignore[arg-type]


def told(conversation: Conversation) -> list[tuple[str, str, str]]:
    """Who, what about it, and the text."""
    return [(block.who, " ".join(block.head.split()), str(block.text)) for block in blocks(conversation)]


# --- the story ------------------------------------------------------------------------------------------------------


def test_an_episode_is_told_turn_by_turn() -> None:
    """Each call beside what it took and got, each question beside its answer, and how it ended."""
    conversation = Conversation(
        row=row(0, phase="done", reward=1.0),
        messages=(
            *PROMPT,
            *said("two", "{}", "no"),
            *said("ask", "Blue.", role="user"),
            *said("bad", "what?"),
            *said("done"),
        ),
        events=(
            call(0, order=17),
            call(0, "buy", ok=False, text="no"),
            event(1, EventKind.SAID, "Which colour?", ("colour", "size")),
            event(3, EventKind.ANSWERED, "It is done."),
        ),
        timings=(
            took(0, "policy", 0, 1.5),
            took(0, "tool", 1.5, 2.0),
            took(0, "tool", 2.0, 4.0),
            took(1, "policy", 4, 5),
            took(1, "user", 5, 8),
        ),
        spans=(Span(start=3, length=6, version=3), Span(start=24, length=7, version=4)),
        stop="answer",
        reward=Reward(value=1.0, F=1.0, N=1.0, I=1.0, items=()),
    )
    assert told(conversation) == [
        ("rules", "", "Rules."),
        ("task", "", "Task."),
        ("P", "0 1.5s v3 6t", '→ look {"order":17}'),
        ("T", "0.5s", "{}"),
        ("P", "", "→ buy {}"),
        ("T", "2.0s error", "no"),
        ("P", "1 1.0s v4 7t", "Which colour?"),
        ("U", "3.0s reveals colour, size", "Blue."),
        ("P", "2", "bad"),
        ("!", "", "what?"),
        ("P", "3 final answer", "It is done."),
        ("end", "", "answer, agent_ok"),
    ]


def test_what_is_long_begins_folded() -> None:
    """The rules, and an observation of pages."""
    conversation = replace(
        talk(0),
        messages=(*PROMPT, *said("x", "long"), *said("y", "short")),
        events=(call(0, text="x" * 2_000), call(1)),
    )
    assert [block.who for block in blocks(conversation) if block.folded] == ["rules", "T"]


def test_keys_stay_while_it_grows() -> None:
    """A block that was folded stays folded: nothing that is told later changes what was told before."""
    whole = talk(1, ended=True)
    before = replace(whole, messages=whole.messages[:4], events=whole.events[:1], spans=whole.spans[:1], stop="")
    early, late = [[block.key for block in blocks(one)] for one in (before, whole)]
    assert early[:-1] == late[: len(early) - 1]
    assert early[-1] == "now"
    assert len(set(late)) == len(late)


def test_what_goes_on_stands_last() -> None:
    """With how long already; what failed is told with its reason."""
    assert told(talk(0))[-1] == ("T", "1.5s …tool", "")
    failed = replace(talk(0), row=row(0, phase="done")._replace(outcome="infra_error"), stop="error", error="no server")
    assert told(failed)[-1] == ("end", "", "error, infra_error, no server")
    assert blocks(failed)[-1].style == "dim"


def test_verdicts() -> None:
    """A forbidden thing that was done is bad, and that one has no words is known by its id."""
    items = (
        Verdict(id="f1", part="forbidden", met=True, evidence=3),
        Verdict(id="f2", part="forbidden", met=False),
        Verdict(id="s1", part="subgoal", met=True, by="judge"),
        Verdict(id="s2", part="subgoal", met=False),
    )
    rubric = {("forbidden", "f1"): "Tells a secret.", ("subgoal", "s1"): "Looks.", ("subgoal", "s2"): ""}
    done = replace(talk(0), rubric=rubric, reward=Reward(value=0.0, F=0.0, N=0.5, I=1.0, items=items))
    assert [(mark, text) for mark, _, text in verdict_lines(done)] == [
        ("✗", "forbidden Tells a secret. (event 3)"),
        ("✓", "forbidden f2"),
        ("✓", "subgoal Looks. judge"),
        ("✗", "subgoal s2"),
    ]
    asked = [("·", "forbidden Tells a secret."), ("·", "subgoal Looks."), ("·", "subgoal s2")]
    assert [(mark, text) for mark, _, text in verdict_lines(replace(done, reward=None))] == asked


def group(*events: Sequence[Event], stop: str = "answer", turns: int = 2) -> list[Conversation]:
    """Siblings that did this."""
    return [
        replace(talk(number), row=row(number)._replace(turn=turns), events=tuple(mine), stop=stop)
        for number, mine in enumerate(events)
    ]


def test_actions_are_a_word_or_two_a_turn() -> None:
    """Several calls of a turn are one action; what failed has a mark; a turn without any is a dash."""
    [one] = group([call(0), call(0, "buy", ok=False), event(2, EventKind.SAID)], turns=4)
    assert actions(one) == ["look + buy!", "—", "asks", "—"]
    [none] = group([], turns=0)
    assert actions(none) == []


def test_siblings_part_where_they_do_something_else() -> None:
    """Another tool, other arguments, or an earlier end; how it is worded does not count."""
    ask, answer = event(0, EventKind.SAID, "Which?"), event(1, EventKind.ANSWERED, "Done.")
    assert divergence(group([ask, answer], [replace(ask, text="Well?"), answer])) is None
    assert divergence(group([ask, answer], [call(0), answer])) == 0
    assert divergence(group([call(0, id=1), answer], [call(0, id=2), answer])) == 0
    assert divergence(group([ask, answer], [ask, call(1)], [ask, answer])) == 1
    [short] = group([ask], turns=1)
    assert divergence([*group([ask, answer]), short]) == 1
    assert divergence([]) is None


def test_siblings_in_flight_have_not_parted_yet() -> None:
    """A turn that goes on is nobody's choice."""
    done, early, late = [call(0), call(1)], [call(0)], []
    others = [one for mine in (early, late) for one in group(mine, stop="")]
    assert divergence([*group(done), *others]) is None
    assert divergence([*group(done), *group([call(0, "buy")], stop="")]) == 0


# --- tokens ---------------------------------------------------------------------------------------------------------


@cache
def tokenizer() -> Tokenizer:
    """That of the shipped model."""
    return Tokenizer.from_file(str(TOKENIZER))


def ids(text: str) -> list[int]:
    """Its tokens."""
    return list(tokenizer().encode(text, add_special_tokens=False).ids)


def sampled(*parts: str, chance: float = -0.1) -> Conversation:
    """Parts that were given and sampled by turns, the first given."""
    numbers: list[int] = []
    spans: list[Span] = []
    for place, part in enumerate(parts):
        mine = ids(part)
        if place % 2:
            spans.append(Span(start=len(numbers), length=len(mine), version=3 + place // 2))
        numbers += mine
    length = sum(span.length for span in spans)
    return replace(talk(0), ids=tuple(numbers), logprobs=(chance,) * length, spans=tuple(spans))


def test_tokens_are_told_as_they_were_given_and_sampled() -> None:
    """The text is whole, and each sampled part says its version, what it weighs, and where the adapter changed."""
    conversation = replace(sampled("Rules.\nTask.", "I look.", "{}", "Done."), advantage=-0.5)
    told = token_blocks(conversation, Pieces(TOKENIZER).of(conversation))
    assert [(block.who, str(block.text)) for block in told] == [
        ("·", "Rules.\nTask."),
        ("P", "I look."),
        ("·", "{}"),
        ("P", "Done."),
    ]
    first, second = [block.head for block in told if block.who == "P"]
    assert first == f"turn 0  v3  {len(ids('I look.'))} tokens trained  mean log p -0.10   advantage -0.500"
    assert second.endswith("┆ adapter v3 → v4")


def test_each_token_has_the_colour_of_its_own_chance() -> None:
    """Where characters are made of several tokens too: the last has all of it."""
    text = "a界é👍🏽 e\u0301 b"
    conversation = sampled("x", text)
    chances = [math.log(0.9), math.log(0.3), math.log(0.001)]
    conversation = replace(
        conversation, logprobs=tuple(chances[place % 3] for place in range(conversation.spans[0].length))
    )
    pieces = Pieces(TOKENIZER).of(conversation)[1:]
    assert "".join(pieces) == text
    assert "" in pieces
    [block] = [block for block in token_blocks(conversation, ["x", *pieces]) if block.who == "P"]
    assert not isinstance(block.text, str)
    assert block.text.plain == text
    at = 0
    for piece, chance in zip(pieces, conversation.logprobs, strict=True):
        styles = {str(span.style) for span in block.text.spans if span.start <= at < span.end}
        assert not piece or styles == set(filter(None, [logprob_style(chance)]))
        at += len(piece)


def test_tokens_are_decoded_once_whatever_they_are_cut_in() -> None:
    """As an episode grows, and anew for another one."""
    whole, pieces = sampled("The 界 rules.", "I look 👍."), Pieces(TOKENIZER)
    for length in (1, 5, 9, len(whole.ids)):
        texts = pieces.of(replace(whole, ids=whole.ids[:length]))
        assert len(texts) == length
    assert "".join(texts) == "The 界 rules.I look 👍."
    other = replace(sampled("Other."), row=row(9))
    assert "".join(pieces.of(other)) == "Other."
    assert "".join(pieces.of(whole)) == "The 界 rules.I look 👍."


def test_hostile_tokens_are_shown_and_do_nothing() -> None:
    """What steers a terminal has a stand-in, and nothing vanishes: carriage returns and bells count too."""
    text = HOSTILE.encode("utf-8", "replace").decode() + "\r\x07\x08\x0b\x0c\u202e"
    conversation = sampled(text, text)
    told = token_blocks(conversation, Pieces(TOKENIZER).of(conversation))
    assert [len(str(block.text)) for block in told] == [len(text), len(text)]
    assert_harmless([str(block.text) for block in told])


def test_tokens_that_make_no_text_cost_nothing() -> None:
    """Halves of characters for ever, and ids that the tokenizer does not have: one text each still."""
    half = ids("é")[0]
    number = tokenizer().get_vocab_size() + 7
    for one in (half, number):
        conversation = replace(talk(0), ids=(*(one,) * 8_000, *ids("end")), spans=())
        texts = Pieces(TOKENIZER).of(conversation)
        assert len(texts) == len(conversation.ids)
        assert texts.count(_NO_TEXT) == 8_000 // _MOST_SILENT, "each looks at those before it, back to one of these"
        assert "".join(texts).endswith("end")


def test_a_long_episode_costs_a_little_a_token() -> None:
    """It is coloured anew four times a second while somebody looks."""
    spans = tuple(Span(start=400 * turn + 100, length=300, version=1) for turn in range(20))
    conversation = replace(talk(0), ids=(0,) * 8_100, logprobs=(-3.0,) * 6_000, spans=spans)
    texts = ["word "] * 8_100
    assert calls(lambda: token_blocks(conversation, texts)) < 10 * len(texts)


@pytest.mark.parametrize(
    ("cells", "line"),
    [(0, ""), (4, "─█─█"), (8, "──██──██"), (16, "────████────████"), (32, "────────████████────────████████")],
)
def test_the_mask_in_any_number_of_cells(cells: int, line: str) -> None:
    """By tokens: four given, four sampled, twice."""
    spans = (Span(start=4, length=4, version=1), Span(start=12, length=4, version=1))
    assert mask_line(replace(talk(0), ids=tuple(range(16)), spans=spans), cells) == line


def test_an_episode_without_tokens_has_no_mask() -> None:
    """Nor blocks of tokens."""
    conversation = replace(talk(0), ids=(), spans=(), logprobs=())
    assert mask_line(conversation, 10) == ""
    assert token_blocks(conversation, []) == []


# --- figures --------------------------------------------------------------------------------------------------------


def test_a_rate_is_of_the_last_seconds() -> None:
    """Over 15 s of the run's clock; an engine that was started again does not count backwards."""
    rows = [engine_row(second) for second in range(60)]
    assert rate(rows, keys.TOKENS_SAMPLED) == pytest.approx(500)
    slower = [*rows, *({**engine_row(60 + n), keys.TOKENS_SAMPLED: 29_500.0} for n in range(5))]
    assert rate(slower, keys.TOKENS_SAMPLED) == pytest.approx(500 * 10 / 15)
    again = [*rows, {**engine_row(60), keys.TOKENS_SAMPLED: 100.0}]
    assert rate(again, keys.TOKENS_SAMPLED) == 0
    assert rates(again, keys.TOKENS_SAMPLED)[-2:] == [(759.0, 500.0), (760.0, 0.0)]
    assert rate(rows[:1], keys.TOKENS_SAMPLED) == rate([], "x") == rate([rows[0], rows[0]], keys.CPU_S) == 0


def test_a_series_has_the_rows_that_have_both() -> None:
    """A key that was declared later begins later."""
    assert series([{"x": 1}, {"x": 2, "y": 5}, {"y": 6}], "x", "y") == [(2, 5)]


def test_shares_of_what_grew() -> None:
    """Where nothing grew there is none, and a restarted engine counts from zero."""
    rows = [
        {keys.RUN_S: float(at), "part": part, "whole": whole}
        for at, part, whole in ((0, 0, 0), (1, 2, 4), (2, 2, 4), (3, 0, 0), (4, 9, 5))
    ]
    assert share_points(rows, "part", "whole") == [(1.0, 0.5), (4.0, 1.0)]


def test_batches_of_all_endpoints() -> None:
    """By size; other keys of endpoints are none."""
    row = {
        "endpoint.sim/batch_16_count": 3.0,
        "endpoint.sim/batch_2_count": 1.0,
        "endpoint.a.b/batch_2_count": 4.0,
        "endpoint.sim/batch_wait_p50_s": 9.0,
        "endpoint.sim/calls_count": 9.0,
    }
    assert list(batches(row).items()) == [(2, 5), (16, 3)]


def test_staleness_shares() -> None:
    """By number of versions, in order; keys that only look alike are none."""
    learned = {
        "learner/staleness_10_tokens": 1,
        "learner/staleness_0_tokens": 2,
        "learner/staleness_2_tokens": 1,
        "learner/staleness_1_tokens": None,
        "learner/drift_k3_staleness_0_nats": 9,
        "learner/staleness_<versions>_tokens": 9,
    }
    assert list(staleness_shares(learned).items()) == [(0, 0.5), (2, 0.25), (10, 0.25)]  # type: ignore[arg-type]
    assert staleness_shares({}) == staleness_shares({"learner/staleness_0_tokens": 0}) == {}


def test_what_json_has_no_number_for_is_left_out() -> None:
    """NaN and infinity are null there."""
    assert finite({"a": None, "b": 0}) == {"b": 0}
