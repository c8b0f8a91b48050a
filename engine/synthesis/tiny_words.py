"""The closed vocabulary of the tiny task family: verbs, nouns, keys with their values, and what is held out.

Every word becomes one token of the tiny tokenizer (`learner/pretrain/tokenizer.py`), so a word that is added here
changes the tokenizer and asks for a new base model. Value pools are disjoint, so a value tells its key.
"""

from itertools import product

from engine.task import Split

VERBS = ("sell", "buy", "rent", "send", "ship", "book", "lend", "pack", "clean", "wash", "paint", "order")
NOUNS = (
    "badge", "lamp", "chair", "table", "clock", "drum", "flute", "kite", "mug",
    "pen", "sofa", "tent", "vase", "boat", "bike", "coat", "piano", "wagon",
)  # fmt: skip
LOOKUPS = ("find", "check", "view")
DISTRACTORS = ("count", "list", "rate", "scan")
SIBLINGS = ("auto", "bulk", "quick", "safe", "fast", "smart", "direct", "local")
KEYS: dict[str, tuple[str, ...]] = {
    "color": ("red", "blue", "green", "black", "white", "pink", "brown", "gray", "gold", "teal", "navy", "lime",
              "plum", "violet", "amber"),
    "size": ("tiny", "small", "medium", "large", "huge", "giant", "mini", "wide", "narrow", "tall", "short", "long",
             "slim", "thick", "broad"),
    "city": ("Paris", "Rome", "Oslo", "Cairo", "Lima", "Delhi", "Tokyo", "Berlin", "Madrid", "Dublin", "Vienna",
             "Boston", "Quito", "Milan", "Kyoto"),
    "owner": ("Anna", "Ben", "Carl", "Dora", "Emil", "Fay", "Gus", "Hana", "Ivan", "Jill", "Kurt", "Lena", "Mona",
              "Nils", "Omar"),
    "shape": ("round", "square", "oval", "flat", "cube", "star", "heart", "cone", "disk", "wedge", "cross", "spiral",
              "arch", "dome", "loop"),
    "theme": ("lion", "tiger", "bear", "wolf", "fox", "owl", "crow", "swan", "deer", "frog", "duck", "seal", "whale",
              "hare", "goat"),
    "material": ("oak", "pine", "steel", "iron", "glass", "paper", "cotton", "wool", "silk", "clay", "stone", "brass",
                 "copper", "linen", "rubber"),
    "scent": ("apple", "lemon", "mint", "rose", "vanilla", "cherry", "mango", "peach", "melon", "cocoa", "honey",
              "ginger", "basil", "clove", "lilac"),
}  # fmt: skip

HELDOUT_NOUNS = ("piano", "wagon")
HELDOUT_VALUES_PER_KEY = 3
"""The last three values of every key appear only in held-out tasks."""


def goals(split: Split) -> list[tuple[str, str]]:
    """(verb, noun) goals of `split`; the three lists are disjoint.

    Held out: every goal of two nouns and 28 goals over the other nouns; validation: 12 further goals.
    """
    seen_nouns = [noun for noun in NOUNS if noun not in HELDOUT_NOUNS]
    pairs = list(product(VERBS, seen_nouns))
    ranked = sorted(pairs, key=lambda pair: (VERBS.index(pair[0]) * 5 + NOUNS.index(pair[1]) * 7) % 97)
    if split is Split.VALIDATION:
        return ranked[28:40]
    if split is Split.TRAIN:
        return ranked[40:]
    return list(product(VERBS, HELDOUT_NOUNS)) + ranked[:28]


def values(key: str, split: Split) -> tuple[str, ...]:
    """Values of `key` that tasks of `split` may use: a fifth of every pool is for held-out tasks only."""
    return KEYS[key] if split is Split.HELDOUT else KEYS[key][:-HELDOUT_VALUES_PER_KEY]
