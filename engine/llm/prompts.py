"""What a model is told about the part it plays: engine/assets/prompts, one file a role."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

from engine.config.load import ASSETS
from engine.llm.question import Role

ROLE_INSTRUCTIONS: Mapping[Role, str] = {
    role: (ASSETS / "prompts" / f"{role}.md").read_text(encoding="utf-8").strip() for role in get_args(Role)
}
"""The system message of each role's questions."""
