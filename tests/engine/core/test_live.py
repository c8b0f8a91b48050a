"""engine.core.live: every episode from its beginning until it is written, its phase, and that nothing stays."""

from collections import Counter

import anyio
import anyio.lowlevel
import pytest

from engine.core.live import LiveEpisodes
from engine.core.scheduler import Admission, LiveSlots, Scheduler
from engine.errors import Deadline, PolicyError, boundary
from engine.scripted.constant import ConstantScorer
from engine.telemetry.window import PHASES
from engine.types import Outcome, Source, StopReason
from tests.engine.core.test_episode import DONE
from tests.engine.telemetry.test_window import Some
from tests.parts.live_episodes import Gated, group_of, phases_of, played, scored, seams_of
from tests.parts.waiting import until


def counted(live):
    """Whether the counts are those of the episodes there."""
    return Counter(live.phases) == Counter(dict.fromkeys(PHASES, 0)) + Counter(phases_of(live))


class Waiting(ConstantScorer):
    """A judge that waits for the test."""

    def __init__(self):
        self.go = anyio.Event()

    async def score(self, record):
        await self.go.wait()
        return await super().score(record)


async def test_an_episode_goes_through_its_phases():
    """Queued, policy, tool or user, scoring, done: each lasts until the next begins, and its record stays with it."""
    live, policy, judge = LiveEpisodes(), Gated("Which fruit?", DONE), Waiting()
    results = []

    async def play():
        results.append(await played("g000001.00", seams_of(policy, live, scorer=judge)))

    async with anyio.create_task_group() as tg:
        tg.start_soon(play)
        await until(lambda: phases_of(live) == ["policy"])
        one = live.get("g000001.00")
        assert (one.turn, one.reward, one.outcome, one.finished, one.version) == (0, None, "", None, 3)
        first_s = one.phase_s
        policy.go(one.id, 0)
        await until(lambda: one.turn == 1)
        assert (one.phase, one.tokens) == ("policy", len(one.ids))
        assert one.phase_s > first_s >= one.start_s
        policy.go(one.id, 1)
        await until(lambda: one.phase == "scoring")
        assert live.phases["scoring"] == 1
        judge.go.set()
    assert one.phase == "done"
    assert one.finished is results[0]
    assert (one.reward, one.outcome) == (results[0].reward.value, results[0].outcome)
    assert {timing.phase for timing in one.timings} == {"queued", "policy", "user", "scoring"}
    assert live.phases == {**dict.fromkeys(PHASES, 0), "done": 1}
    assert repr(live) == "<LiveEpisodes 1: 1 done>"


async def test_without_a_registry_an_episode_is_the_same():
    """Nothing is kept, and nothing is missing."""
    policy = Gated()
    policy.go("g000001.00")
    assert (await played("g000001.00", seams_of(policy, None))).outcome.scored


async def test_the_counts_are_those_of_the_episodes_at_any_time():
    """With many at once, in all phases, cancelled, failed and done."""
    live, policy = LiveEpisodes(), Gated("Which?", DONE)
    seams = seams_of(policy, live)
    async with anyio.create_task_group() as tg:
        for number in range(20):
            tg.start_soon(played, f"g000001.{number:02d}", seams)
        await until(lambda: live.phases["policy"] == 20)
        for number in range(20):
            policy.go(f"g000001.{number:02d}", *range(number % 3))
            if number % 4 == 3:
                live.get(f"g000001.{number:02d}").cancel()
            await anyio.lowlevel.checkpoint()
            assert counted(live)
        await until(lambda: live.phases["done"] >= 9)
        assert counted(live)
        tg.cancel_scope.cancel()
    assert counted(live)
    assert set(phases_of(live)) == {"done"}


async def test_what_is_cancelled_without_a_record_leaves():
    """As at the end of a drain; those that ended stay, and are let go of once nothing is played any more."""
    live, policy = LiveEpisodes(), Gated()
    async with anyio.create_task_group() as tg:
        for number in range(600):
            tg.start_soon(played, f"g{number:06d}.00", seams_of(policy, live))
        for number in range(590):
            policy.go(f"g{number:06d}.00")
        await until(lambda: live.phases["done"] == 590)
        assert len(live.all()) == 600
        tg.cancel_scope.cancel()
    assert phases_of(live) == ["done"] * 590
    for _ in range(2):
        live.settle()
        assert [one.id for one in live.all()] == [f"g{number:06d}.00" for number in range(78, 590)]
        assert counted(live)


async def test_a_run_that_goes_wrong_leaves_nothing_in_flight():
    """An error that ends the run makes no record either."""
    live = LiveEpisodes()

    class Broken(Gated):
        async def complete(self, turn):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await played("g000001.00", seams_of(Broken(), live))
    assert (live.all(), counted(live)) == ([], True)


async def test_a_written_group_stays_until_enough_newer_ones_are():
    """512 episodes; what is not written stays however old it is, in the order in which all began."""
    live = LiveEpisodes()
    for number in range(1_000):
        live.enter(Some(id=f"g{number:06d}.00", phase="done"))
    for number in range(1, 1_000):
        live.written(group_of(scored(f"g{number:06d}.00", 1.0)))
    assert [one.id for one in live.all()] == [f"g{number:06d}.00" for number in (0, *range(488, 1_000))]
    assert counted(live)


async def test_an_evaluation_that_begins_anew_takes_the_place_of_the_old_one():
    """The same ids again: the counts are those of the new ones, and the old ones' end does not take them away."""
    live = LiveEpisodes()
    old, new = Some(id="e00001-0001.00", phase="done"), Some(id="e00001-0001.00", phase="policy")
    live.enter(old)
    live.written(group_of(scored(old.id, 1.0)))
    live.enter(new)
    live.leave(old)
    for number in range(512):
        live.enter(Some(id=f"g{number:06d}.00", phase="done"))
        live.written(group_of(scored(f"g{number:06d}.00", 1.0)))
    assert live.get("e00001-0001.00") is new
    assert counted(live)


async def test_the_rewards_are_those_of_the_newest_training_episodes():
    """Not of evaluations, not of masked ones; one outside 0 to 1 is counted at the end."""
    live = LiveEpisodes()
    live.written(group_of(*(scored("g000001.00", value) for value in (0.0, 0.049, 0.05, 0.5, 0.999, 1.0, None))))
    live.written(group_of(scored("e00001-0001.00", 0.5), source=Source.EVAL))
    assert live.rewards == [2, 1, *[0] * 8, 1, *[0] * 8, 2]
    live.written(group_of(scored("g000002.00", -3.0), scored("g000002.01", 1e308)))
    assert (live.rewards[0], live.rewards[-1]) == (3, 3)
    live.written(group_of(*(scored("g000003.00", 0.7) for _ in range(2_047))))
    assert (live.rewards[14], live.rewards[-1], sum(live.rewards)) == (2_047, 1, 2_048)


@pytest.mark.parametrize("scoring", [False, True])
async def test_an_operator_ends_an_episode(scoring):
    """At a turn, or while it is scored: a masked record that says who did it, and its group goes on."""
    live, policy = LiveEpisodes(), Gated()
    seams, results = seams_of(policy, live, scorer=Waiting()), []

    async def play():
        results.append(await played("g000001.00", seams))

    async with anyio.create_task_group() as tg:
        tg.start_soon(play)
        await until(lambda: live.phases["policy"] == 1)
        if scoring:
            policy.go("g000001.00")
            await until(lambda: live.phases["scoring"] == 1)
        one = live.get("g000001.00")
        one.cancel()
        one.cancel()
    ended = results[0]
    assert (ended.stop, ended.outcome, ended.reward) == (StopReason.CANCELLED, Outcome.INFRA_ERROR, None)
    assert ended.error == "g000001.00: cancelled by an operator"
    assert ended.final_state is not None
    assert (one.phase, one.outcome, one.finished) == ("done", "infra_error", ended)


async def test_the_first_reason_to_end_an_episode_counts():
    """A cancel after the deadline is too late, and so is a deadline after the cancel."""

    async def late():
        with Deadline("e", step_s=0.02, wall_s=9) as deadline:
            async with boundary(PolicyError, "slow", deadline):
                try:
                    await anyio.sleep(9)
                finally:
                    deadline.cancel(PolicyError("late"))

    async def asked():
        with Deadline("e", step_s=0.02, wall_s=9) as deadline:
            async with boundary(PolicyError, "slow", deadline):
                deadline.cancel(PolicyError("asked to"))
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(0.1)
                await anyio.sleep(9)

    with pytest.raises(PolicyError, match="slow: no answer"):
        await late()
    with pytest.raises(PolicyError, match="asked to"):
        await asked()


async def test_a_whole_scheduler_leaves_what_it_should():
    """Groups are played and written; what the end of training cancels is gone, and nothing is counted twice."""
    live, policy = LiveEpisodes(), Gated(DONE)
    seams = seams_of(policy, live)

    async def play(position, index):
        if position < 6:
            policy.go(f"g{position:06d}.{index:02d}")
        return await played(f"g{position:06d}.{index:02d}", seams)

    async def emit(position, episodes):
        assert counted(live)
        live.written(group_of(*episodes))

    scheduler = Scheduler(
        admission=Admission(budget=8, written=set()),
        slots=LiveSlots(limit=64, most=64),
        group_size=4,
        play=play,
        emit=emit,
        clock=anyio.current_time,
    )
    async with anyio.create_task_group() as tg:
        tg.start_soon(scheduler.run)
        await until(lambda: len(scheduler.admission.written) == 6)
        await until(lambda: live.phases["policy"] == 8)
        assert scheduler.live == sum(live.phases.values()) - live.phases["done"]
        tg.cancel_scope.cancel()
    live.settle()
    assert live.phases == {**dict.fromkeys(PHASES, 0), "done": 24}
    assert sum(live.rewards) == 24
