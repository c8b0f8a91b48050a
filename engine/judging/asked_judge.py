"""A judge that is asked about recorded episodes: its endpoint, served for as long as it takes."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import anyio

from engine.config.endpoints import EndpointSection
from engine.config.environment import api_key
from engine.config.tree import Config
from engine.errors import ConfigError
from engine.llm.endpoint import Reachable, open_endpoint
from engine.llm.question import Admit, Asker, ModelQuestion
from engine.rundir.layout import RunDir
from engine.serving.addresses import endpoint_urls
from engine.serving.models import endpoint_key, find_model
from engine.serving.served import served

_T = TypeVar("_T")

HOW = "--set scorer.judge=NAME --set endpoints.NAME.url=URL --set endpoints.NAME.model=MODEL"
"""How to name a judge on the command line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedJudge:
    """The endpoint that plays the judge."""

    kind: str
    """Of engine.reward.judges.JUDGES."""
    name: str
    settings: EndpointSection
    url: str

    def open(self) -> AbstractAsyncContextManager[Reachable]:
        """Reach it, until the end of the block.

        Raises ConfigError for an API key that is not set, and a model without a chat template."""
        key = api_key(self.settings.api_key_env, f"endpoints.{self.name}.api_key_env")
        return open_endpoint(self.name, self.settings, self.url, key)


class Once:
    """An Asker that sends a question to another one at a time: whoever asks the same meanwhile gets its answer.

    Episodes of one task that went the same way are the same question, and many are asked about at once."""

    def __init__(self, asker: Asker) -> None:
        self._asker = asker
        self._turns: dict[str, anyio.Lock] = defaultdict(anyio.Lock)

    @property
    def subjects(self) -> AbstractSet[str]:
        """What was asked."""
        return self._turns.keys()

    async def ask(self, question: ModelQuestion, admit: Admit[_T]) -> _T:
        """See engine.llm.question.Asker."""
        async with self._turns[question.subject]:
            return await self._asker.ask(question, admit)


@contextmanager
def asked_judge(config: Config) -> Iterator[AskedJudge]:
    """The judge of a configuration; where a run would start its server, that one alone, until the end of the block.

    Raises ConfigError if there is none, or its model or SGLang is missing, RunError if the server does not start."""
    name = config.scorer.judge
    if not name:
        raise ConfigError(f"scorer.judge names no endpoint: name the judge, with {HOW}")
    settings = config.endpoints[name]
    if settings.has_model_directory:
        found = find_model(settings.model, endpoint_key(name), weights=settings.launch == "sglang")
        settings = settings.model_copy(update={"model": str(found.path)})
    alone = _alone(config, name, settings)
    # Neither its log nor its address is the run's.
    with tempfile.TemporaryDirectory(prefix="synth-judge-") as scratch:
        run = RunDir(Path(scratch))
        with served(run, alone):
            yield AskedJudge(
                kind=config.scorer.judge_kind, name=name, settings=settings, url=endpoint_urls(run, alone)[name]
            )


def _alone(config: Config, name: str, settings: EndpointSection) -> Config:
    """The configuration without anybody else who would need a server, a GPU or a model."""
    changes = {
        "model": config.model.model_copy(update={"path": settings.model}),
        "policy": config.policy.model_copy(update={"launch": "none"}),
        "learner": config.learner.model_copy(update={"gpus": ()}),
        "endpoints": {name: settings},
    }
    return config.model_copy(update=changes)
