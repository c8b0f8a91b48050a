"""The tiny model's tokenizer and chat template.

A byte-level BPE whose pre-split attaches a word's trailing space or underscore to it, so that a value, a tool name's
parts and a two-digit code are the same single tokens in prose and in JSON. Every UTF-8 text can be encoded (bytes are
the fallback). The action tags are ordinary added tokens: decoding shows them.
"""

from pathlib import Path

import orjson
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from engine.synthesis.tiny_words import DISTRACTORS, KEYS, LOOKUPS, NOUNS, SIBLINGS, VERBS

PRE_SPLIT = r"[A-Za-z]+[ _]?|[0-9]{2}|[0-9]|_|[^A-Za-z0-9_\s]+[ ]?|\s"
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TAGS = (
    "<tool_call>", "</tool_call>", "<question>", "</question>", "<answer>", "</answer>", "<tool_response>",
    "</tool_response>",
)  # fmt: skip
PROSE = (
    "system\n", "user\n", "assistant\n", "tool\n",
    "To use , never . Before you call . Report the code.", "Please a . I want to a . You should a .",
    "The is . What is the and the Tell me the and", "I am not sure what you mean.", "The code is . Done. All is done.",
    "Call with . Which tool do you use Which tool do you never use What is missing Write",
    "not missing bad unknown malformed ",
    '{"', '":"', '","', '":{"', '"}}', '"}', '":', '"},"', "}", "{}}", '":{}}', "(", ")", ", ", "). ", ",", ".", ". ",
    ": ", "! ", "? ",
)  # fmt: skip
TOKENIZER_FIELDS = (
    "name", "arguments", "code", "left", "total", "error", "found", "possible", "argument", "call", "system", "user",
    "assistant", "tool",
)  # fmt: skip
CHAT_TEMPLATE = (
    "{%- macro signatures() -%}"
    "{%- for tool in tools -%}"
    "{{ '\\n' + tool.function.name + '(' + (tool.function.parameters.properties | join(', ')) + ')' }}"
    "{%- endfor -%}"
    "{%- endmacro -%}"
    "{%- if tools and messages[0].role != 'system' -%}"
    "{{ '<|im_start|>system' + signatures() + '<|im_end|>\\n' }}"
    "{%- endif -%}"
    "{%- for message in messages -%}"
    "{%- if message.role == 'system' and loop.first and tools -%}"
    "{{ '<|im_start|>system\\n' + message.content + signatures() + '<|im_end|>\\n' }}"
    "{%- elif message.role == 'tool' -%}"
    "{{ '<|im_start|>tool\\n<tool_response>' + message.content + '</tool_response><|im_end|>\\n' }}"
    "{%- else -%}"
    "{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)


def lexicon() -> list[str]:
    """Every piece of text that must be one token or a sequence of such tokens."""
    stems = [f"{word}_" for word in (*SIBLINGS, *LOOKUPS, *DISTRACTORS, *VERBS)]
    pool = [value for values in KEYS.values() for value in values]
    words = [*NOUNS, *pool, *KEYS, *(f"{word} " for word in (*VERBS, *KEYS))]
    numbers = [f"{number:02d}" for number in range(100)]
    return [*stems, *words, *numbers, *TOKENIZER_FIELDS, *PROSE]


def build_tokenizer() -> Tokenizer:
    """Train the BPE until every lexicon entry is made of whole tokens; deterministic."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRE_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        min_frequency=1,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(lexicon(), trainer)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in TAGS])
    return tokenizer


def write_tokenizer(directory: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json, loadable by transformers and by `tokenizers` alone."""
    directory.mkdir(parents=True, exist_ok=True)
    build_tokenizer().save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": 32768,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (directory / "tokenizer_config.json").write_bytes(orjson.dumps(settings, option=orjson.OPT_INDENT_2))
