"""Conversations as token ids, in the format of the model (docs/architecture.md, *token-in, token-out*).

An episode's ledger starts with :meth:`ChatFormat.prompt` and grows by what the policy sampled and by
:meth:`ChatFormat.observation`: the text after the last assistant message in render(history + observation + generation
prompt). A probe at load proves on several histories that this text does not depend on the history, so it is rendered
behind a short stand-in. Earlier turns are never rendered again: the ledger keeps what was sampled.

The system message is policy.system. By default (`auto`) a model whose tokenizer has tokens for `<question>` and
`<answer>` was made for these actions and gets its task's rules alone; any other is told how to ask and how to finish.
How to call a tool is not said here: the template's own tool section says it.

Models think or not as their template has it; where it has the switch of Qwen3 (`enable_thinking`), thinking is off and
the generation prompt brings the empty thought. What a model thinks all the same (`<think>...</think>`) stays in the
ledger and in the conversation, as everything that it sampled, and is no part of its action (engine.chat.actions).

Text from users, tools and packs cannot forge control tokens: a special token's spelling inside it is encoded as plain
text.
"""

from __future__ import annotations

import re
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from engine.chat.template import ChatTemplate
from engine.errors import ConfigError
from engine.modeldir.files import read_config, stop_token_ids
from engine.task import Task
from engine.types import ChatMessage

_AUTO = "auto"
_ACTION_TAGS = ("<question>", "<answer>")
_EXPLAINED = """\
{rules}

The user may not have told you every value that you need. Never guess or make up a value: ask for it first. Reply with \
one of:
<question>What is the ...?</question> to ask the user for a value
a tool call, once the user has told you every value that it needs
<answer>...</answer> when everything is done, to tell the user what they wanted to know

Begin your reply with <question> as long as the user has not told you every value."""
"""The system message for a model that was not made for these actions. The last line holds back: in its first turn a
model of 0.5 B called with a made-up value on 4 % of 120 errands and asked for the right one on 22 %; without that line
on 30 % and 15 %."""
_MARK = "Qj7xWz"
"""Stands for a completion in a rendered conversation."""
_SAID = "Kv3pYb"
"""Stands for an observation in one."""
_CACHED = 4096
_CACHED_CHARACTERS = 2000
_HIDDEN = "\ue000{}\ue001"
"""Stands for the n-th special token in untrusted text while it is rendered; private-use characters."""
_TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Look.",
        "parameters": {"type": "object", "properties": {"at": {"type": "string"}}, "required": ["at"]},
    },
}
_CALL = '<tool_call>{"name": "look", "arguments": {"at": "x"}}</tool_call>'
_TURNS: tuple[ChatMessage, ...] = (
    {"role": "assistant", "content": _CALL},
    {"role": "tool", "content": '{"seen": 1}'},
    {"role": "assistant", "content": "<question>which</question>"},
    {"role": "user", "content": "this"},
)
_ODD = (
    " \n x\t ",
    '{"a": "\\u00e9\\n", "b": [1, {}]}',
    "<think>y</think> é 漢 <tool_response>z</tool_response>",
    "",
    "{{ q }} {% x %}",
)
"""Contents that a template would change if it changed any."""
_STANDIN: tuple[ChatMessage, ...] = ({"role": "system", "content": "r"}, {"role": "user", "content": "q"})

Prompt = tuple[tuple[ChatMessage, ...], "array[int]", list[dict[str, Any]]]


@dataclass(slots=True, kw_only=True, eq=False)
class ChatFormat:
    """Template and tokenizer of one model."""

    template: ChatTemplate
    system: str
    """The system message, never `auto`; `{rules}` is replaced by the task's rules."""
    stop_token_ids: tuple[int, ...]
    vocab_size: int
    context_length: int
    tokenizer_sha256: str
    template_sha256: str
    _tokenizer: Tokenizer
    _special: Mapping[str, int]
    _pattern: re.Pattern[str] = field(init=False)
    _hidden: tuple[tuple[int, ...], ...] = field(init=False)
    """The ids of each special token's spelling as plain text."""
    _prompts: _Recent = field(init=False)
    _observations: _Recent = field(init=False)
    _around: dict[str, tuple[str, str, str]] = field(init=False, default_factory=dict)
    """By role whose content a template shows as it is: what ends the turn before, the text before, the text after."""

    def __post_init__(self) -> None:
        self._prompts, self._observations = _Recent(), _Recent()
        self._pattern = re.compile("|".join(re.escape(token) for token in sorted(self._special, key=len, reverse=True)))
        self._tokenizer.encode_special_tokens = True
        self._hidden = tuple(tuple(self._encode_plain(token)) for token in self._special)
        self._tokenizer.encode_special_tokens = False

    @classmethod
    def load(cls, model_dir: Path, system: str = _AUTO) -> ChatFormat:
        """Read tokenizer and template of a model in Hugging Face format, and prove the template usable.

        Raises ConfigError with the reason if there are none, or the text that an observation adds depends on the
        history."""
        config = read_config(model_dir)
        template = ChatTemplate.load(model_dir)
        file = model_dir / "tokenizer.json"
        if not file.is_file():
            raise ConfigError(f"{model_dir}: no tokenizer.json; use a model with a fast tokenizer")
        content = file.read_bytes()
        tokenizer = Tokenizer.from_str(content.decode())
        special = {
            token.content: number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special
        }
        stops = _stop_tokens(model_dir, tokenizer)
        special |= stops
        chat = cls(
            template=template,
            system=_default_system(tokenizer) if system == _AUTO else system,
            stop_token_ids=tuple(stops.values()),
            vocab_size=int(config.get("vocab_size", 0)),
            context_length=int(config.get("max_position_embeddings", 0)),
            tokenizer_sha256=sha256(content).hexdigest(),
            template_sha256=sha256(template.source.encode()).hexdigest(),
            _tokenizer=tokenizer,
            _special=special,
        )
        if chat.vocab_size < tokenizer.get_vocab_size() or chat.context_length < 1:
            raise ConfigError(
                f"{model_dir}/config.json: vocab_size {chat.vocab_size} must cover the tokenizer's "
                f"{tokenizer.get_vocab_size()} tokens, and max_position_embeddings must be given"
            )
        chat._probe()
        return chat

    # --- what an episode asks for ---------------------------------------------------------------------------------

    def prompt(self, task: Task) -> Prompt:
        """Messages, ids and OpenAI tool functions of the first turn; siblings of a group share one rendering."""
        cached: Prompt | None = self._prompts.get(task.id)
        if cached is None:
            messages = (
                {"role": "system", "content": self.system.replace("{rules}", task.rules)},
                {"role": "user", "content": task.instruction},
            )
            tools = [tool.function for tool in task.tools]
            ids = self._ids(self.template.render(self._hide(messages), self._hide(tools)))
            cached = self._prompts.put(task.id, (messages, ids, tools))
        return cached

    def observation(self, messages: Sequence[ChatMessage], stop_sampled: bool) -> array[int]:  # noqa: FBT001 - a seam's
        """The ids that `messages` and the generation prompt add behind the last assistant message.

        `stop_sampled`: the completion's own end-of-turn token is in the ledger already and is not repeated. Treat the
        array as read-only: it is shared."""
        key = (stop_sampled, *((message["role"], message["content"]) for message in messages))
        cached: array[int] | None = self._observations.get(key)
        if cached is None:
            ending, text = self._added(self._hide(messages))
            cached = self._ids(text if stop_sampled else ending + text)
            if len(text) <= _CACHED_CHARACTERS:
                self._observations.put(key, cached)
        return cached

    def ended(self, ids: Sequence[int]) -> bool:
        """Whether the last sampled id ends a turn."""
        return bool(ids) and ids[-1] in self.stop_token_ids

    def encode(self, text: str) -> array[int]:
        """The ids of a completion's text, as a policy would sample it; no end-of-turn token is added."""
        return array("I", self._encode_plain(text))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of sampled ids, without a final stop token."""
        kept = ids[:-1] if self.ended(ids) else ids
        return str(self._tokenizer.decode(kept, skip_special_tokens=False))

    # --- rendering ------------------------------------------------------------------------------------------------

    def _added(self, messages: Sequence[ChatMessage]) -> tuple[str, str]:
        """What the observation `messages` adds, rendered only where the probe found no shorter way."""
        if len(messages) == 1 and (around := self._around.get(messages[0]["role"])):
            ending, before, after = around
            return ending, before + messages[0]["content"] + after
        return self._suffix(_STANDIN, messages)

    def _suffix(
        self,
        history: Sequence[ChatMessage],
        messages: Sequence[ChatMessage],
        words: str = _MARK,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> tuple[str, str]:
        """(what ends the assistant's turn, what follows) when `messages` come after a completion `words`."""
        conversation = [*history, {"role": "assistant", "content": words}, *messages]
        _, found, text = self.template.render(conversation, tools).rpartition(words)
        if not found:
            raise ConfigError(
                f"{self.template.place}: its chat template does not show the assistant's words as they are"
            )
        ends = [match.end() for match in self._pattern.finditer(text) if self._special[match[0]] in self.stop_token_ids]
        at = ends[0] if ends else 0
        return text[:at], text[at:]

    def _probe(self) -> None:
        """Prove that a suffix is the same behind every history; learn which roles' contents appear as they are."""
        user, tool = {"role": "user", "content": _SAID}, {"role": "tool", "content": _SAID}
        for messages in ([user], [tool], [tool, tool]):
            self._prove(messages)
        for message in (user, tool):
            ending, text = self._suffix(_STANDIN, [message])
            before, _, after = text.partition(_SAID)
            verbatim = (
                self._suffix(_STANDIN, [{**message, "content": odd}])[1] == before + odd + after for odd in _ODD
            )
            if all(verbatim):
                self._around[message["role"]] = (ending, before, after)

    def _prove(self, messages: Sequence[ChatMessage]) -> None:
        ending, text = self._suffix(_STANDIN, messages)
        if not ending or _SAID in ending:
            stops = ", ".join(token for token, number in self._special.items() if number in self.stop_token_ids)
            raise ConfigError(
                f"{self.template.place}: its chat template does not end an assistant turn with a stop token ({stops})"
            )
        for history in (_STANDIN + _TURNS[:2], _STANDIN + _TURNS, _STANDIN + _TURNS * 3, (_STANDIN[1], *_TURNS[:2])):
            for words in (_MARK, f"{_CALL} {_MARK}", f"Well, {_MARK}"):
                found = self._suffix(history, messages, words, [_TOOL])
                if found != (ending, text):
                    raise ConfigError(
                        f"{self.template.place}: its chat template cannot be applied turn by turn: after "
                        f"{len(history)} messages an observation adds {''.join(found)!r}, after two "
                        f"{ending + text!r}; use a template whose later turns do not depend on earlier ones"
                    )

    # --- text to ids ----------------------------------------------------------------------------------------------

    def _hide(self, value: Any) -> Any:
        """A JSON value with every special token's spelling replaced by a stand-in."""
        if isinstance(value, str):
            return self._pattern.sub(self._stand_in, value) if self._pattern.search(value) else value
        if isinstance(value, Mapping):
            return {self._hide(name): self._hide(inner) for name, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self._hide(inner) for inner in value]
        return value

    def _stand_in(self, match: re.Match[str]) -> str:
        return _HIDDEN.format(list(self._special).index(match[0]))

    def _ids(self, text: str) -> array[int]:
        """Ids of rendered text; stand-ins become the plain spelling of what they stand for."""
        ids: array[int] = array("I")
        for piece, hidden in _pieces(text):
            ids.extend(self._encode_plain(piece))
            if hidden is not None and hidden < len(self._hidden):
                ids.extend(self._hidden[hidden])
        return ids

    def _encode_plain(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids


class _Recent:
    """The values used last, by key; bounded."""

    def __init__(self) -> None:
        self._values: OrderedDict[Any, Any] = OrderedDict()

    def get(self, key: Any) -> Any:
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
        return value

    def put(self, key: Any, value: Any) -> Any:
        self._values[key] = value
        if len(self._values) > _CACHED:
            self._values.popitem(last=False)
        return value


def _pieces(text: str) -> Iterator[tuple[str, int | None]]:
    """Rendered text cut at its stand-ins: (text, number of the special token that follows or None)."""
    parts = re.split("\ue000([0-9]{1,4})\ue001", text)
    for at in range(0, len(parts), 2):
        yield parts[at], int(parts[at + 1]) if at + 1 < len(parts) else None


def _default_system(tokenizer: Tokenizer) -> str:
    made_for_it = all(tokenizer.token_to_id(tag) is not None for tag in _ACTION_TAGS)
    return "{rules}" if made_for_it else _EXPLAINED


def _stop_tokens(model: Path, tokenizer: Tokenizer) -> dict[str, int]:
    """Every token that ends a turn and that the tokenizer knows, with its id."""
    tokens = {tokenizer.id_to_token(number): number for number in stop_token_ids(model, tokenizer.token_to_id)}
    known = {token: number for token, number in tokens.items() if token is not None}
    if not known:
        raise ConfigError(f"{model}: no end-of-turn token: set eos_token_id in generation_config.json")
    return known
