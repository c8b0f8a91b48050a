"""engine.attach.answers: an episode in pieces is the whole in the end, whatever is in it."""

import anyio
import numpy as np
import pytest

from engine.attach import server as attached
from engine.core.live import LiveEpisodes
from engine.packs.pack import parse_task
from engine.stream.record import event_of, reward_of
from engine.telemetry.window import WindowRow
from engine.types import Span, TurnTiming
from tests.engine.core.test_episode import DONE, ORDER
from tests.engine.telemetry.test_window import some
from tests.parts.live_episodes import Gated, Whole, followed, huge, looked_at, played, seams_of
from tests.parts.waiting import until
from tests.parts.worlds import task_json


def nested(depth):
    """An object in objects."""
    return {"a": nested(depth - 1)} if depth else {}


async def test_what_is_followed_is_in_the_end_what_is_recorded(tmp_path):
    """Over several turns, each answer only what is new; also the reward, and the task with the first message."""
    live, policy, results = LiveEpisodes(), Gated("Which fruit?", ORDER, DONE), []
    whole = Whole()

    async def play():
        results.append(await played("g000001.00", seams_of(policy, live)))

    async with looked_at(tmp_path, live) as connect, anyio.create_task_group() as tg:
        client = await connect()

        async def look():
            question = followed("g000001.00", "nobody", have={"g000001.00": whole.have, "nobody": whole.have})
            episodes = (await client.ask(follow=question))["episodes"]
            assert episodes["nobody"] is None
            assert ("rubric" in episodes["g000001.00"]) == (whole.have["messages"] == 0)
            whole.add(episodes["g000001.00"])

        tg.start_soon(play)
        await until(lambda: live.phases["policy"] == 1)
        for turn in range(3):
            await look()
            assert whole.have["messages"] == 2 + 2 * turn
            assert (whole.last["stop"], whole.last["reward"]) == ("", None)
            policy.go("g000001.00", turn)
            await until(lambda turn=turn: live.get("g000001.00").turn > turn or live.phases["done"])
        await look()
        await look()
    record, told = results[0], whole.lists
    assert told["messages"] == list(record.messages)
    assert tuple(map(event_of, told["events"])) == record.events
    assert tuple(TurnTiming(**timing) for timing in told["timings"]) == record.timings
    assert told["ids"] == record.tokens.ids.tolist()
    assert np.array_equal(np.array(told["logprobs"], np.float32), record.tokens.logprobs)
    assert tuple(Span(**span) for span in told["spans"]) == record.tokens.spans
    last = whole.last
    assert (last["stop"], last["error"], last["server"]) == ("answer", "", "here")
    assert reward_of(last["reward"]) == record.reward
    assert (last["most_turns"], last["most_tokens"], last["row"][3]) == (6, 2000, "done")
    assert last["instruction"] == parse_task(task_json()).instruction
    parts = {part for part, _, _ in last["rubric"]}
    assert parts <= {"forbidden", "subgoal", "interaction"}
    assert len(parts) > 1


@pytest.mark.parametrize("text", ["x" * 100_000, "😀" * 50_000, "\x00\x1b" * 50_000, "\ud800" * 30_000])
async def test_any_amount_of_any_text_comes_through_in_pieces(tmp_path, monkeypatch, text):
    """200 rows, sixteen followed, huge texts: no answer is too long, and after some questions everything is there."""
    monkeypatch.setattr(attached, "_PER_SECOND", 10_000)
    live = LiveEpisodes()
    for one in some(400):
        live.enter(one)
    names = [f"g9{number:05d}.00" for number in range(16)]
    for one in names:
        live.enter(huge(one, text, ids=3_000))
    wholes = {one: Whole() for one in names}
    async with looked_at(tmp_path, live) as connect:
        client = await connect()
        for _ in range(150):
            have = {one: whole.have for one, whole in wholes.items()}
            answer = await client.ask(rows=200, follow=followed(*names, have=have))
            assert len(answer["rows"]) > 100
            for one, whole in wholes.items():
                whole.add(answer["episodes"][one])
            if all(whole.have["spans"] for whole in wholes.values()):
                break
        for one, whole in wholes.items():
            whole.add((await client.ask(follow=followed(one, have={one: whole.have})))["episodes"][one])
    for one, whole in wholes.items():
        assert whole.have == {"messages": 3, "events": 3, "timings": 40, "ids": 3_000, "logprobs": 3_000, "spans": 1}
        assert [message["content"][0] for message in whole.lists["messages"]] == ["0", "1", "2"]
        assert whole.lists["messages"][0]["content"].endswith(" more characters]")
        assert WindowRow(*whole.last["row"]).task.startswith("t" * 100), one
        event_of(whole.lists["events"][0])
        assert len(reward_of(whole.last["reward"]).items) > 10
        assert all(len(item) == 3 for item in whole.last["rubric"])


async def test_a_long_text_is_cut_with_a_note(tmp_path):
    """To 16,000 characters; a shorter one is as it was, whatever is in it."""
    live = LiveEpisodes()
    live.enter(huge("g000001.00", "y" * 20_000))
    live.enter(huge("g000002.00", "\x1b[2J\u202e ok"))
    async with looked_at(tmp_path, live) as connect:
        client = await connect()
        first = (await client.ask(follow=followed("g000001.00")))["episodes"]["g000001.00"]
        second = (await client.ask(follow=followed("g000002.00")))["episodes"]["g000002.00"]
    assert first["messages"][0]["content"] == f"0 {'y' * 15_998} [4,002 more characters]"
    assert second["messages"][0]["content"] == "0 \x1b[2J\u202e ok"


@pytest.mark.parametrize("odd", [{1}, 2**70, "\ud800", nested(300)], ids=["set", "long", "surrogate", "deep"])
async def test_arguments_that_json_cannot_hold_are_replaced(tmp_path, odd):
    """By a note; the rest of the answer is as always."""
    live = LiveEpisodes()
    live.enter(huge("g000001.00", "x", arguments={"odd": odd}))
    async with looked_at(tmp_path, live) as connect:
        client = await connect()
        told = (await client.ask(follow=followed("g000001.00")))["episodes"]["g000001.00"]
    assert [event["arguments"]["…"][:22] for event in told["events"]] == ["[JSON cannot hold them"] * 3
    assert len(told["messages"]) == 3


async def test_long_arguments_are_told_by_their_beginning(tmp_path):
    """Short ones as they are, numbers and keys of any kind in JSON's way."""
    live = LiveEpisodes()
    live.enter(huge("g000001.00", "x", arguments={"nan": float("nan"), 5: [1.5, True, None], "f": np.float64(2)}))
    live.enter(huge("g000002.00", "x", arguments={str(number): number for number in range(50_000)}))
    told = []
    async with looked_at(tmp_path, live) as connect:
        client = await connect()
        for one in live.all():
            episodes = (await client.ask(follow=followed(one.id)))["episodes"]
            told += [event["arguments"] for event in episodes[one.id]["events"][:1]]
    short, long = told
    assert short == {"nan": None, "5": [1.5, True, None], "f": 2.0}
    assert long.keys() == {"…"}
    assert long["…"].startswith('{"0":0,"1":1,')
    assert long["…"].endswith(" more characters]")
