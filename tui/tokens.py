"""An episode as its tokens: what was sampled, how likely each token was, and by which adapter version."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from rich.text import Text
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from tui.snapshot import Conversation
from tui.text import plain
from tui.theme import logprob_style
from tui.widgets.transcript import Block


class Pieces:
    """The texts of an episode's ids, decoded once each: the ids only grow."""

    def __init__(self, tokenizer: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(tokenizer))
        self._episode = ""
        self._stream = DecodeStream(skip_special_tokens=False)
        self._texts: list[str] = []

    def of(self, talk: Conversation) -> Sequence[str]:
        """One text per id; a token in the middle of a character has none."""
        if talk.row.id != self._episode or len(talk.ids) < len(self._texts):
            self._episode, self._texts = talk.row.id, []
            self._stream = DecodeStream(skip_special_tokens=False)
        for number in talk.ids[len(self._texts) :]:
            self._texts.append(self._stream.step(self._tokenizer, int(number)) or "")
        return self._texts


def token_blocks(talk: Conversation, texts: Sequence[str]) -> list[Block]:
    """What was given and what was sampled, in turn; sampled text is coloured by log-probability."""
    told: list[Block] = []
    end, sampled, version = 0, 0, None
    for number, span in enumerate(talk.spans):
        told.append(_given(texts[end : span.start], f"given{number}"))
        chances = talk.logprobs[sampled : sampled + span.length]
        text = Text()
        for piece, chance in zip(texts[span.start : span.start + span.length], chances, strict=False):
            text.append(_shown(piece), logprob_style(chance))
        mean = sum(chances) / len(chances) if chances else 0.0
        swapped = "" if version in (None, span.version) else f"   ┆ adapter v{version} → v{span.version}"
        weight = "" if talk.advantage is None else f"   advantage {talk.advantage:+.3f}"
        head = f"turn {number}  v{span.version}  {span.length} tokens trained  mean log p {mean:.2f}{weight}{swapped}"
        told.append(Block(who="P", style="bold", head=head, text=text, key=f"span{number}"))
        end, sampled, version = span.start + span.length, sampled + span.length, span.version
    told.append(_given(texts[end:], "given"))
    return [block for block in told if block.text]


def _given(texts: Sequence[str], key: str) -> Block:
    text = Text("".join(map(_shown, texts)), "dim")
    return Block(who="·", style="dim", head=f"{len(texts)} tokens given, not trained", text=text, key=key, folded=True)


def _shown(piece: str) -> str:
    """A token's text; line ends stay, whatever could steer a terminal does not."""
    return "\n".join(plain(line) for line in piece.split("\n"))


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
