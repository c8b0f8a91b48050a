"""An episode as its tokens: what was sampled, how likely each token was, and by which adapter version."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from rich.text import Span, Text
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from tui.snapshot import Conversation
from tui.text import visible
from tui.theme import logprob_style
from tui.widgets.transcript import Block

_MOST_SILENT = 16
"""Tokens without a text in a row: no character takes as many, and each looks at all before it."""
_NO_TEXT = "\N{REPLACEMENT CHARACTER}"


class Pieces:
    """The texts of an episode's ids, decoded once each: the ids only grow."""

    def __init__(self, tokenizer: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(tokenizer))
        self._episode = ""
        self._texts: list[str] = []
        self._begin()

    def _begin(self) -> None:
        self._stream, self._silent = DecodeStream(skip_special_tokens=False), 0

    def of(self, talk: Conversation) -> Sequence[str]:
        """One text per id; a token in the middle of a character has none."""
        if talk.row.id != self._episode or len(talk.ids) < len(self._texts):
            self._episode, self._texts = talk.row.id, []
            self._begin()
        for number in talk.ids[len(self._texts) :]:
            text = self._stream.step(self._tokenizer, int(number)) or ""
            self._silent = 0 if text else self._silent + 1
            if self._silent == _MOST_SILENT:
                text = _NO_TEXT
                self._begin()
            self._texts.append(text)
        return self._texts


def token_blocks(talk: Conversation, texts: Sequence[str]) -> list[Block]:
    """What was given and what was sampled, in turn; sampled text is coloured by log-probability."""
    told: list[Block] = []
    end, sampled, version = 0, 0, None
    for number, span in enumerate(talk.spans):
        told.append(_given(texts[end : span.start], f"given{number}"))
        chances = talk.logprobs[sampled : sampled + span.length]
        text = _coloured(texts[span.start : span.start + span.length], chances)
        mean = sum(chances) / len(chances) if chances else 0.0
        swapped = "" if version in (None, span.version) else f"   ┆ adapter v{version} → v{span.version}"
        weight = "" if talk.advantage is None else f"   advantage {talk.advantage:+.3f}"
        head = f"turn {number}  v{span.version}  {span.length} tokens trained  mean log p {mean:.2f}{weight}{swapped}"
        told.append(Block(who="P", style="bold", head=head, text=text, key=f"span{number}"))
        end, sampled, version = span.start + span.length, sampled + span.length, span.version
    told.append(_given(texts[end:], "given"))
    return [block for block in told if block.text]


def _coloured(pieces: Sequence[str], chances: Sequence[float]) -> Text:
    """Made visible as a whole, which keeps the places: a mark may stand on a letter of the token before."""
    spans, at = [], 0
    for piece, chance in zip(pieces, chances, strict=False):
        if style := logprob_style(chance):
            spans.append(Span(at, at + len(piece), style))
        at += len(piece)
    return Text(visible("".join(pieces)), spans=spans)


def _given(texts: Sequence[str], key: str) -> Block:
    text = Text(visible("".join(texts)), "dim")
    return Block(who="·", style="dim", head=f"{len(texts)} tokens given, not trained", text=text, key=key, folded=True)


def mask_line(talk: Conversation, cells: int) -> str:
    """The whole episode in so many cells: █ where most tokens are trained, ─ where they are given."""
    size = len(talk.ids)
    if not size or cells < 1:
        return ""
    edges = [size * cell // cells for cell in range(cells + 1)]
    return "".join("█" if _share(talk, low, max(high, low + 1)) >= 0.5 else "─" for low, high in pairwise(edges))


def _share(talk: Conversation, low: int, high: int) -> float:
    trained = sum(max(0, min(high, span.start + span.length) - max(low, span.start)) for span in talk.spans)
    return trained / (high - low)
