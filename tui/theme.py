"""What colours mean: a phase, the sign of a reward, an unlikely token; nothing else is coloured.

The hues are those of Okabe and Ito, evened out so that each reads on a dark and on a light background. Every one has a
twin that needs no colour: a letter, a glyph, a text attribute. NO_COLOR is Textual's: it greys the whole picture.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

BLUE = "#1F7FBF"
ORANGE = "#C45800"
PURPLE = "#B35C8E"
GREEN = "#008A65"
GREY = "#767676"

QUIET = "dim"
"""Labels, axes, notes."""
STRONG = "bold"
CURSOR = "bold reverse"
"""The chosen line of the widget that has the focus."""
HIT = "reverse"
"""Text that was searched for."""
HIT_NOW = "bold underline reverse"
CURVE = BLUE
"""Lines and bars of charts."""


class PhaseLook(NamedTuple):
    """How a phase is shown."""

    letter: str
    name: str
    glyph: str
    style: str


PHASE_LOOKS: Mapping[str, PhaseLook] = MappingProxyType(
    {
        "policy": PhaseLook("P", "policy", "█", BLUE),
        "tool": PhaseLook("T", "tool", "▓", ORANGE),
        "user": PhaseLook("U", "user", "▒", PURPLE),
        "scoring": PhaseLook("S", "scoring", "░", GREEN),
        "queued": PhaseLook("Q", "queued", "·", GREY),
        "done": PhaseLook("D", "done", " ", QUIET),
    }
)
"""By engine.telemetry.window.PHASES, in the order of the bar."""


def reward_style(value: float | None) -> str:
    """By its sign; none yet, or none that is a number, is quiet."""
    if value is None or math.isnan(value):
        return QUIET
    if value > 0:
        return f"bold {GREEN}"
    return f"underline {ORANGE}" if value < 0 else ""


def logprob_style(logprob: float) -> str:
    """From likely to unlikely (in nats): plain from one in two, then underlined, bold too, at last reversed."""
    if math.isnan(logprob):
        return QUIET
    if logprob >= math.log(0.5):
        return ""
    if logprob >= math.log(0.1):
        return f"underline {BLUE}"
    if logprob >= math.log(0.01):
        return f"bold underline {ORANGE}"
    return f"bold reverse {ORANGE}"
