"""The judges that there are, by name, and whose an answer in a journal is.

To add one, write an engine.reward.rubric.Judge that asks by the Asker it is made with, and name it in JUDGES. A journal
keeps one answer to a question for ever, so what tells a judge from the one that a run began with is part of what it
asks: no judge gets another one's answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeVar

from engine.config.endpoints import EndpointSection
from engine.config.tree import Config
from engine.errors import ConfigError
from engine.llm.prompts import ROLE_INSTRUCTIONS
from engine.llm.question import Admit, Asker, ModelQuestion
from engine.reward.judge import LlmJudge
from engine.reward.rubric import Judge
from engine.types import Json

_T = TypeVar("_T")

_FIRST = "llm"
"""The judge of runs that name none: its questions are kept without its name, as they always were."""
JUDGES: Mapping[str, Callable[[Asker], Judge]] = {_FIRST: LlmJudge}


def judge_of(config: Config, asker: Asker, began_with: Config | None = None) -> Judge:
    """Returns the judge of a configuration, over `asker`; its answers are those of the run that `began_with` another
    configuration only where it is the same judge: of one kind, model and temperature.

    Raises ConfigError for a kind that there is not."""
    apart = {} if config.scorer.judge_kind == _FIRST else {"kind": config.scorer.judge_kind}
    if began_with is not None and _who(began_with) != _who(config):
        apart = identity(config.scorer.judge_kind, config.endpoints[config.scorer.judge])
    return made_judge(config.scorer.judge_kind, asker, apart)


def _who(config: Config) -> tuple[str, ...] | None:
    """Who judges, wherever it is served; an endpoint that names no model is told by its own name."""
    if (settings := config.endpoints.get(config.scorer.judge)) is None:
        return None
    return config.scorer.judge_kind, settings.model or config.scorer.judge, str(settings.temperature)


def identity(kind: str, settings: EndpointSection) -> dict[str, Json]:
    """Returns all that an answer depends on beside the question."""
    made = {
        "judge": settings.model or settings.url,
        "temperature": settings.temperature,
        "instructions": ROLE_INSTRUCTIONS["judge"],
    }
    return made if kind == _FIRST else {**made, "kind": kind}


def made_judge(kind: str, asker: Asker, apart: Mapping[str, Json]) -> Judge:
    """Returns the judge of that name; where `apart` says anything, its questions are no other judge's.

    Raises ConfigError for one that there is not."""
    require_judge(kind)
    return JUDGES[kind](_Apart(asker, apart) if apart else asker)


def require_judge(kind: str) -> None:
    """Raises ConfigError for a kind of judge that there is not."""
    if kind not in JUDGES:
        raise ConfigError(f"scorer.judge_kind = {kind!r}: there is no such judge; name one of: {', '.join(JUDGES)}")


class _Apart:
    """An Asker whose answers are kept apart from those to the same questions of others."""

    def __init__(self, asker: Asker, apart: Mapping[str, Json]) -> None:
        self._asker, self._apart = asker, dict(apart)

    async def ask(self, question: ModelQuestion, admit: Admit[_T]) -> _T:
        """See engine.llm.question.Asker."""
        return await self._asker.ask(replace(question, about=(*question.about, self._apart)), admit)
