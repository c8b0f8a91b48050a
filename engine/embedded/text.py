"""Token ids to text, and the search for stop strings."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from engine.embedded.sampling import SamplingParams
from engine.embedded.sequence import Finish, FinishKind
from engine.errors import ConfigError
from engine.modeldir.files import stop_token_ids


class Text:
    """A model's tokenizer; used by the event loop for replies and by the model thread for stop strings."""

    def __init__(self, model: Path) -> None:
        path = model / "tokenizer.json"
        if not path.exists():
            raise ConfigError(f"{model} has no tokenizer.json; save the model's fast tokenizer there")
        self._tokenizer = Tokenizer.from_file(str(path))
        self._pieces: dict[int, str] = {}
        self.eos_ids = frozenset(stop_token_ids(model, self._tokenizer.token_to_id))

    def encode(self, text: str) -> list[int]:
        """Ids of a text prompt, with whatever special tokens the tokenizer adds."""
        ids: list[int] = self._tokenizer.encode(text).ids
        return ids

    def decode(self, output: list[int], params: SamplingParams, finish: Finish | None) -> str:
        """The text of an output without what stopped it, or with it but nothing behind it (`no_stop_trim`)."""
        matched = finish.matched if finish is not None and finish.kind is FinishKind.STOP else None
        if isinstance(matched, int) and not params.no_stop_trim:
            output = output[:-1]
        text: str = self._tokenizer.decode(output, skip_special_tokens=params.skip_special_tokens)
        if isinstance(matched, str) and matched in text:
            before, _, _ = text.partition(matched)
            text = before + matched if params.no_stop_trim else before
        return text

    def find_stop(self, output: list[int], stops: tuple[str, ...]) -> str | None:
        """The stop string that the last token completed, if any."""
        if not self._may_complete(output[-1], stops):
            return None
        # A token may be a fraction of a character, so a match spans at most this many tokens.
        longest = max(len(stop.encode()) for stop in stops)
        tail = self._tokenizer.decode(output[-longest - 1 :], skip_special_tokens=False)
        return next((stop for stop in stops if stop in tail), None)

    def _may_complete(self, token: int, stops: tuple[str, ...]) -> bool:
        """Whether a token holds the last character of a stop string.

        Always possible for a non-ASCII one, which may be half a token, and for a space, which many tokenizers strip
        from the start of a text, here of a token alone."""
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._pieces[token] = self._tokenizer.decode([token], skip_special_tokens=False)
        return any(stop[-1] in piece or stop[-1].isspace() or not stop[-1].isascii() for stop in stops)
