"""From an episode as the engine plays it to the learner's targets: what ends a turn is one only if it was sampled."""

import anyio
import pytest

from engine.core.episode import run_episode
from engine.core.seams import EpisodePlan, Seams
from engine.packs.pack import parse_task
from engine.scripted import ConstantScorer, ConstantUser, ConstantWorld
from engine.types import Completion, Limits, Sampling, StopReason
from learner.rows import trained_episode
from tests.parts.policy_parts import tiny_chat
from tests.parts.worlds import task_json

CHAT = tiny_chat()
(STOP, *_) = CHAT.stop_token_ids
QUESTION = "<question>How many?</question>"
ASKED, ANSWERED = CHAT.encode(QUESTION).tolist(), CHAT.encode("<answer>Done.</answer>").tolist()
LIMITS = Limits(turns=4, tokens=2000, completion_tokens=100, wall_s=5.0, turn_s=2.0)


class Sampler:
    """A policy that samples these ids, one list a turn."""

    def __init__(self, stop, *turns):
        self.stop, self.turns = stop, turns

    async def complete(self, turn):
        ids = self.turns[turn.index]
        return Completion(
            text=CHAT.decode(ids),
            ids=ids,
            logprobs=[-0.5] * len(ids),
            adapter=turn.adapter,
            server="here",
            stop=self.stop,
        )


async def play(stop, *turns):
    """The episode in which the policy samples `turns`."""
    plan = EpisodePlan(
        id="g000007.01",
        group_id="g000007",
        task=parse_task(task_json()),
        seed=1,
        version=3,
        adapter="run-v00003",
        limits=LIMITS,
        sampling=Sampling(stop=("</question>", "</answer>")),
        queued_s=0.0,
    )
    seams = Seams(
        policy=Sampler(stop, *turns),
        chat=CHAT,
        world=ConstantWorld(),
        user=ConstantUser(),
        scorer=ConstantScorer(),
        clock=anyio.current_time,
    )
    return await run_episode(plan, seams, lambda _: False)


@pytest.mark.parametrize(
    ("stop", "first", "last", "is_target"),
    [
        pytest.param("stop", [*ASKED, STOP], [*ANSWERED, STOP], True, id="stop id"),
        pytest.param("stop", ASKED, ANSWERED, False, id="stop string"),
        pytest.param("length", ASKED[:-1], ANSWERED, False, id="length"),
    ],
)
async def test_a_stop_token_is_a_target_only_if_it_was_sampled(stop, first, last, is_target):
    """Turns that end by stop id, stop string and length: the targets are the sampled ids and nothing else. The stop
    token that the template puts after the latter two is in the ledger, and is no target (acceptance 7)."""
    played = await play(stop, first, last)
    assert played.stop is StopReason.ANSWER
    episode = trained_episode(played, "g000007", advantage=1.0, temperature=1.0)
    assert episode.ids_T[episode.target_P].tolist() == [*first, *last]
    assert (STOP in episode.ids_T[episode.target_P]) is is_target
    stopped_at = episode.prompt_tokens + len(first) - is_target
    assert episode.ids_T[stopped_at] == STOP
    assert (stopped_at in episode.target_P) is is_target
