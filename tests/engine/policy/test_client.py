"""The HTTP policy against a mock server on a real socket: what is believed, retried, refused, aborted."""

import math
from dataclasses import replace

import anyio
import orjson
import pytest
from aiohttp import web

from engine.errors import Deadline, Ended, PolicyError, boundary
from engine.scripted.faults import Faults, ServerFault
from engine.scripted.server import MockServer
from engine.types import Sampling, StopReason
from tests.parts.policy_parts import ADAPTER, LIMITS, policy_of, serving, tiny_chat, turn
from tests.parts.waiting import until

CHAT = tiny_chat()


def mock(**settings) -> MockServer:
    """A quick server that holds the adapter of the turns."""
    return MockServer(**{"chat": CHAT, "latency_s": 0.001, "adapters": {ADAPTER: "v00003"}, **settings})


class Recording(MockServer):
    """Keeps every request, and answers the first ones by `replies` if there are any."""

    async def generate(self, request: web.Request) -> web.StreamResponse:
        """Record, then answer."""
        body = orjson.loads(await request.read())
        self.bodies.append(body)
        if self.replies:
            status, reply = self.replies.pop(0)(self._reply(body, aborted=False))
            return web.Response(status=status, body=orjson.dumps(reply), content_type="application/json")
        return await super().generate(request)


def recording(*replies, **settings) -> Recording:
    """A recording server; each of `replies` makes (status, JSON) of the right reply."""
    server = Recording(chat=CHAT, latency_s=0.001, adapters={ADAPTER: "v00003"}, **settings)
    server.bodies, server.replies = [], list(replies)
    return server


async def test_a_completion_is_what_the_server_sampled():
    """Ids, log-probabilities, text, adapter, server and stop come from the reply; ids decode to the text."""
    server = mock()
    async with serving(server) as url, policy_of(CHAT, url) as (policy, _):
        completion = await policy.complete(turn(CHAT))
    assert completion.text == "<question>What do you need?</question>"
    assert list(completion.ids) == [*CHAT.encode(completion.text), CHAT.stop_token_ids[0]]
    assert len(completion.logprobs) == len(completion.ids)
    assert all(map(math.isfinite, completion.logprobs))
    assert (completion.adapter, completion.server, completion.stop) == (ADAPTER, url, "stop")


async def test_what_a_server_had_in_its_cache_is_kept():
    """It is told in the metrics."""
    server = recording(with_meta(cached_tokens=39), with_meta(cached_tokens="many"))
    async with serving(server) as url, policy_of(CHAT, url) as (policy, _):
        assert (await policy.complete(turn(CHAT))).cached_tokens == 39
        assert (await policy.complete(turn(CHAT))).cached_tokens == 0


async def test_requests_say_everything_that_a_server_could_guess_wrong():
    """Adapter, plain sampling, log-probabilities and stop tokens go with every request; ids are the ledger's."""
    server = recording()
    asked = turn(CHAT)
    async with serving(server) as url, policy_of(CHAT, url) as (policy, _):
        await policy.complete(asked)
        await policy.complete(replace(asked, adapter=None, ids=list(asked.ids)))
    body, base = server.bodies
    assert body["input_ids"] == base["input_ids"] == list(asked.ids)
    assert (body["lora_path"], base["lora_path"]) == (ADAPTER, None)
    assert body["return_logprob"] is True
    assert body["sampling_params"] == {
        "max_new_tokens": 48,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": -1,
        "min_p": 0.0,
        "stop_token_ids": list(CHAT.stop_token_ids),
        "skip_special_tokens": False,
    }


async def test_stop_strings_are_sent_and_kept_in_the_text():
    """A stop string is not trimmed, or the ids would say more than the text."""
    server = recording()
    async with serving(server) as url, policy_of(CHAT, url) as (policy, _):
        await policy.complete(turn(CHAT, sampling=Sampling(stop=("</answer>",))))
    parameters = server.bodies[0]["sampling_params"]
    assert (parameters["stop"], parameters["no_stop_trim"]) == (["</answer>"], True)


async def test_no_request_id_is_a_prefix_of_another():
    """SGLang aborts by prefix; ids are of one width and new for every attempt."""
    server = recording(lambda reply: (500, reply))
    async with serving(server) as url, policy_of(CHAT, url) as (policy, _), anyio.create_task_group() as tg:
        for index in (1, 10, 11):
            tg.start_soon(policy.complete, turn(CHAT, f"g000178.{index:02d}", index))
        await policy.complete(turn(CHAT, "g000178.01", 1))
    rids = [body["rid"] for body in server.bodies]
    assert len(set(rids)) == 5
    assert not any(a != b and b.startswith(a) for a in rids for b in rids)
    assert all(rid.startswith("g000178.") for rid in rids)


@pytest.mark.parametrize(
    "fault", [ServerFault.ERROR, ServerFault.BUSY, ServerFault.RESET, ServerFault.GARBAGE, ServerFault.ABORT]
)
async def test_what_a_hiccup_explains_is_tried_again(fault):
    """Each of these faults is survived: the same completion comes back from a later attempt."""
    events = []
    server = mock(faults=Faults(rates={fault: 0.5}, seed=11))
    async with serving(server) as url, policy_of(CHAT, url, events=events) as (policy, _):
        for index in range(4):
            completion = await policy.complete(turn(CHAT, index=index))
            assert completion.text == "<question>What do you need?</question>"
    assert server.requests > 4
    assert server.faults.drawn[fault] == server.requests - 4
    aborts = [event for event in events if event["event"] == "abort"]
    assert len(aborts) == (server.faults.drawn[fault] if fault is ServerFault.ABORT else 0)


async def test_attempts_are_bounded():
    """They go on as long as the turn's time; then an error names server, turn and reason, and each is on record."""
    server, events = mock(faults=Faults(rates={ServerFault.ERROR: 1.0})), []
    limits = replace(LIMITS, turn_s=2.0)
    async with serving(server) as url, policy_of(CHAT, url, events=events) as (policy, _):
        with pytest.raises(PolicyError, match=rf"{url}: g000178\.03@00 failed \d times: HTTP 500: .*Internal error"):
            await policy.complete(turn(CHAT, limits=limits))
    assert 2 <= server.requests <= 6
    assert [event["event"] for event in events].count("retry") == server.requests


async def test_a_request_that_hangs_ends_with_its_turn_and_the_server_is_told():
    """The whole deadline of a turn is the request's: half of it would cut long completions that are under way."""
    server = mock(faults=Faults(rates={ServerFault.HANG: 1.0}))
    async with serving(server) as url, policy_of(CHAT, url) as (policy, _):
        with (
            pytest.raises(PolicyError, match=r"g000178\.03@00: no answer within 1 s"),
            Deadline("g000178.03", step_s=1.0, wall_s=60.0) as deadline,
        ):
            async with boundary(PolicyError, "g000178.03@00", deadline):
                await policy.complete(turn(CHAT))
    assert (server.requests, server.aborts) == (1, 1)


async def test_a_cancelled_request_is_aborted_on_the_server():
    """Cancelling an episode frees its place on the server at once, also while it is being cancelled."""
    server = mock(latency_s=30.0)
    async with serving(server) as url, policy_of(CHAT, url) as (policy, _):
        async with anyio.create_task_group() as tg:
            tg.start_soon(policy.complete, turn(CHAT))
            await until(lambda: server.requests)
            tg.cancel_scope.cancel()
        assert server.aborts == 1


async def test_a_wrong_request_is_not_tried_again():
    """HTTP 400 ends the turn at once, with the server's own words."""
    server = recording(lambda reply: (400, {"error": {"message": "temperature must be positive"}}))
    async with serving(server) as url, policy_of(CHAT, url) as (policy, _):
        with pytest.raises(PolicyError, match=r"refuses g000178\.03@00: .*temperature must be positive"):
            await policy.complete(turn(CHAT))
    assert len(server.bodies) == 1


def with_meta(**changes):
    """A reply whose meta_info is changed."""
    return lambda reply: (200, {**reply, "meta_info": {**reply["meta_info"], **changes}})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (with_meta(lora_path="demo-1f0c2a9b-v00002"), "with adapter 'demo-1f0c2a9b-v00002', not with"),
        (with_meta(lora_path=None), "with adapter None"),
        (with_meta(id="g000178.04@00"), "with the reply to 'g000178.04@00'"),
        (with_meta(completion_tokens=3), "inconsistent"),
        (with_meta(output_token_logprobs=[[-1.0, 5, None]]), "inconsistent"),
        (with_meta(output_token_logprobs=None), "lacks ids or log-probabilities"),
        (lambda reply: (200, {**reply, "output_ids": []}), "inconsistent"),
        (lambda reply: (200, {"meta_info": reply["meta_info"]}), "lacks ids or log-probabilities"),
        (lambda reply: (200, {**reply, "output_ids": [-1]}), "lacks ids or log-probabilities"),
    ],
)
async def test_a_reply_whose_parts_disagree_is_refused(change, reason):
    """Wrong adapter, wrong request, or ids and log-probabilities that do not match: never believed, never retried."""
    server = recording(change)
    async with serving(server) as url, policy_of(CHAT, url) as (policy, _):
        with pytest.raises(PolicyError, match=reason):
            await policy.complete(turn(CHAT))
    assert len(server.bodies) == 1


async def test_values_that_would_poison_training_are_refused():
    """An infinite log-probability and an id outside the vocabulary name the server."""

    def infinite(reply):
        reply["meta_info"]["output_token_logprobs"][0][0] = 1e39
        return 200, reply

    def foreign(reply):
        reply["output_ids"][0] = reply["meta_info"]["output_token_logprobs"][0][1] = 1_000_000
        return 200, reply

    for change in (infinite, foreign):
        async with serving(recording(change)) as url, policy_of(CHAT, url) as (policy, _):
            with pytest.raises(PolicyError, match=f"{url}: the reply to g000178.03@00 is inconsistent"):
                await policy.complete(turn(CHAT))


async def test_the_context_bounds_a_completion():
    """What is left of the model's context is asked for; with nothing left the episode has reached its limit."""
    server = recording()
    async with serving(server) as url, policy_of(CHAT, url) as (policy, _):
        await policy.complete(turn(CHAT, ids=[5] * (CHAT.context_length - 27)))
        with pytest.raises(Ended) as limit:
            await policy.complete(turn(CHAT, ids=[5] * (CHAT.context_length - 7)))
    assert server.bodies[0]["sampling_params"]["max_new_tokens"] == 20
    assert limit.value.stop is StopReason.TOKENS


async def test_a_length_stop_is_told():
    """A completion cut at its limit says so, and its text is what was sampled."""
    server = mock()
    async with serving(server) as url, policy_of(CHAT, url) as (policy, _):
        completion = await policy.complete(turn(CHAT, limits=replace(LIMITS, completion_tokens=3)))
    assert (completion.stop, len(completion.ids)) == ("length", 3)
    assert completion.text == CHAT.decode(completion.ids)
