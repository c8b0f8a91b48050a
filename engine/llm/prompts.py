"""What a model is told about the part it plays: engine/assets/prompts, one file a role."""

from __future__ import annotations

from functools import cache

from engine.config import ASSETS
from engine.llm.question import Role


@cache
def instructions(role: Role) -> str:
    """The system message of a role's questions."""
    return (ASSETS / "prompts" / f"{role}.md").read_text(encoding="utf-8").strip()
