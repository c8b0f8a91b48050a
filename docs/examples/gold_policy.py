"""A scripted policy that plays `meta.gold`: to look at a world, user and scorer before a model meets them."""

from __future__ import annotations

from pathlib import Path

from engine.chat.chat_format import ChatFormat
from engine.packs.pack import load_pack
from engine.scripted import GoldPolicy


class LibraryGold(GoldPolicy):
    """The gold scripts of library.jsonl. `policy.script = "gold_policy:LibraryGold"`."""

    def __init__(self, chat: ChatFormat, seed: int) -> None:
        super().__init__(chat, seed, load_pack(Path(__file__).with_name("library.jsonl")).tasks)
