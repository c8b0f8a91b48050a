"""What the tests of admission find, and what they are given: a task with its script, and what follows of both."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from engine.synthesis.admission.play import ScriptPlayer
from engine.synthesis.admission.visible import Visible
from engine.synthesis.planted import Script
from engine.task import Task
from engine.types import Episode

AdmissionResult = Literal["passed", "failed", "not applicable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionFlaw:
    """One reason for which a task is no task."""

    code: str
    """One of its test's."""
    evidence: str
    """A sentence: what was seen."""
    script: Sequence[str] = ()
    """The completions that show it, for a person to play; none where nothing needs to be played."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionFinding:
    """What one test found."""

    test: str
    result: AdmissionResult
    flaws: Sequence[AdmissionFlaw] = ()
    """The first of each code."""
    why: str = ""
    """For a test that was not applied: the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionCase:
    """A sound task with a script that fits it."""

    task: Task
    script: Script
    player: ScriptPlayer
    gold: Episode
    """The gold script, played first in this world."""
    visible: Visible
    """What an agent can see without asking."""
    episodes: int
    """How many the adversary of `search` has."""

    @property
    def facts(self) -> Sequence[str]:
        """The names of what only the user knows."""
        return () if self.task.user is None else tuple(self.task.user.facts)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionTest:
    """One row of the table of admission."""

    passes: str
    """What a task promises that passes it."""
    codes: Mapping[str, str]
    """What each of its codes means."""
    flaws: Callable[[AdmissionCase], AsyncIterator[AdmissionFlaw]]
    absent: Callable[[AdmissionCase], str] = lambda _: ""
    """Why it does not apply to a task; empty where it does."""
