"""engine.llm.endpoint and transport over real HTTP: both routes, second attempts, limits, and what is counted."""

import shutil
import time
from collections import Counter

import anyio
import orjson
import pytest
from aiohttp import web

from engine.errors import ConfigError
from engine.llm.batching import EndpointError
from engine.llm.transport import retry_after_s
from engine.scripted.endpoint import ScriptedEndpoint as Scripted
from engine.scripted.faults import Faults, ServerFault
from tests.parts.llm_parts import TINY, listening, prompt, reachable
from tests.parts.waiting import until

pytestmark = pytest.mark.anyio
SAID = "I have nothing to say to that."


def answering(*replies):
    """A server that gives these replies in turn (status, body, headers), the last for ever; and what it was sent."""
    bodies, left = [], list(replies)

    async def handle(request):
        bodies.append(orjson.loads(await request.read()))
        status, body, headers = left.pop(0) if len(left) > 1 else left[0]
        return web.Response(status=status, body=orjson.dumps(body), headers=headers, content_type="application/json")

    application = web.Application()
    application.add_routes([web.post("/v1/chat/completions", handle), web.post("/generate", handle)])
    return application, bodies


def completion(text="{}"):
    """A chat completion."""
    usage = {"prompt_tokens": 10, "completion_tokens": 2}
    return 200, {"choices": [{"message": {"content": text}}], "usage": usage}, {}


def generated(*texts, finish="stop"):
    """A reply of /generate to a batch."""
    meta = {"prompt_tokens": 10, "completion_tokens": 2, "finish_reason": {"type": finish}}
    return 200, [{"text": text, "meta_info": meta} for text in texts], {}


BUSY = (429, {"error": "slow down"}, {"Retry-After": "0"})


@pytest.mark.parametrize("api", ["openai", "sglang"])
async def test_a_scripted_endpoint_answers_on_both_routes(api):
    """With the tokens that it counted."""
    async with listening(Scripted().application()) as url, reachable(url, api=api) as opened:
        assert (await opened.batcher.call("a", prompt())).text == SAID
        account = opened.endpoint.account
        assert (account.calls, account.requests) == (1, 1)
        assert account.prompt_tokens > 0
        assert account.completion_tokens > 0


async def test_native_calls_go_in_batches_and_chat_completions_one_by_one():
    """As large as they may be."""
    for api, requests in (("sglang", 2), ("openai", 8)):
        async with listening(Scripted().application()) as url, reachable(url, api=api, batch=4) as opened:
            async with anyio.create_task_group() as tasks:
                for owner in range(8):
                    tasks.start_soon(opened.batcher.call, str(owner), prompt())
            assert opened.endpoint.account.requests == requests
            assert opened.endpoint.account.calls == 8


async def test_the_schema_goes_to_the_server():
    """By each route in its own way, with the endpoint's own sampling."""
    application, bodies = answering(completion())
    async with listening(application) as url, reachable(url, model="m", max_tokens=7) as opened:
        await opened.batcher.call("a", prompt(temperature=0.5))
    [body] = bodies
    assert body["response_format"]["json_schema"]["schema"] == prompt().schema
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("m", 7, 0.5)
    application, bodies = answering(generated("{}"))
    async with listening(application) as url, reachable(url, api="sglang") as opened:
        await opened.batcher.call("a", prompt())
    [parameters] = bodies[0]["sampling_params"]
    assert orjson.loads(parameters["json_schema"]) == prompt().schema
    assert bodies[0]["text"][0].count("Answer.") == 1


@pytest.fixture
def model(tmp_path, template):
    """A model's directory with that chat template."""
    shutil.copytree(TINY, tmp_path, dirs_exist_ok=True)
    (tmp_path / "chat_template.jinja").write_text(template)
    return str(tmp_path)


@pytest.mark.parametrize(
    ("template", "kind", "sentence"),
    [
        ("{{ raise_exception('no system message, please') }}", ConfigError, "refuses the conversation: no system"),
        ("{{ messages[0].content + 1 }}", EndpointError, "endpoint: TypeError: "),
    ],
)
async def test_a_chat_template_that_fails_is_told_to_every_caller_at_once(model, kind, sentence):
    """Nobody waits for a deadline, and nothing is sent."""
    application, bodies = answering(generated("{}"))

    async def asked(opened):
        with pytest.raises(kind, match=sentence):
            await opened.batcher.call("a", prompt())

    async with listening(application) as url, reachable(url, api="sglang", model=model) as opened:
        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(asked, opened)
    assert bodies == []


async def test_a_server_without_json_schemas_is_asked_in_a_simpler_way_from_then_on():
    """The schema is in the words then; the refusals are no faults."""
    async with listening(Scripted(structured=False).application()) as url, reachable(url) as opened:
        for _ in range(2):
            assert (await opened.batcher.call("a", prompt())).text == SAID
        assert not opened.endpoint.account.faults
    refused = (400, {"error": "no response_format"}, {})
    application, bodies = answering(refused, refused, refused, completion(), completion())
    async with listening(application) as url, reachable(url) as opened:
        for _ in range(2):
            await opened.batcher.call("a", prompt())
    assert [body.get("response_format", {}).get("type") for body in bodies] == [
        "json_schema",
        "json_object",
        "json_object",
        None,
        None,
    ]
    assert [body.get("response_format", {}).get("schema") for body in bodies[1:3]] == [prompt().schema, None]
    assert "JSON Schema" in bodies[-1]["messages"][0]["content"]


def taking_only_json_objects():
    """The scripted endpoint as an API that knows no schema in any way, and what it refused, by mode."""
    application, refused = Scripted(latency_s=0.05).application(), Counter()

    @web.middleware
    async def unschemed(request, handler):
        asked = orjson.loads(await request.read()).get("response_format", {})
        if asked.get("type") == "json_schema" or "schema" in asked:
            refused["json_schema" if "json_schema" in asked else "json_object_schema"] += 1
            return web.json_response({"error": "response_format: unknown"}, status=400)
        return await handler(request)

    application.middlewares.append(unschemed)
    return application, refused


async def test_many_first_calls_find_out_once_what_a_server_takes():
    """One caller tries each mode, the others wait for what it finds: a mode that is refused is refused once."""
    application, refused = taking_only_json_objects()
    async with listening(application) as url, reachable(url) as opened:
        async with anyio.create_task_group() as tasks:
            for owner in range(8):
                tasks.start_soon(opened.batcher.call, str(owner), prompt())
        account = opened.endpoint.account
        assert (account.calls, account.requests, account.retries) == (8, 8, 0)
        assert not account.faults
    assert refused == {"json_schema": 1, "json_object_schema": 1}


@pytest.mark.parametrize("ending", ["fails", "is refused", "is cancelled"])
async def test_a_first_call_that_finds_nothing_out_keeps_nobody_waiting(ending):
    """The next one tries the modes, and the rest goes on."""
    scripted, said, failed, hanging = Scripted().application(), [], [], anyio.Event()

    @web.middleware
    async def picky(request, handler):
        body = orjson.loads(await request.read())
        if "odd" not in body["messages"][1]["content"]:
            return await handler(request)
        hanging.set()
        if ending == "is cancelled":
            await anyio.sleep_forever()
        return web.Response(status=500 if ending == "fails" else 400)

    async def first(opened):
        try:
            await opened.batcher.call("odd", prompt("odd"))
        except EndpointError as error:
            failed.append(str(error))

    async def other(opened, owner):
        said.append((await opened.batcher.call(owner, prompt())).text)

    scripted.middlewares.append(picky)
    async with listening(scripted) as url, reachable(url, retries=0) as opened:
        async with anyio.create_task_group() as tasks, anyio.create_task_group() as leaving:
            leaving.start_soon(first, opened)
            await hanging.wait()
            for owner in range(4):
                tasks.start_soon(other, opened, str(owner))
            if ending == "is cancelled":
                await anyio.wait_all_tasks_blocked()
                leaving.cancel_scope.cancel()
        assert (opened.endpoint.account.calls, opened.endpoint.account.requests) == (4, 5)
    assert said == [SAID] * 4
    assert len(failed) == (ending != "is cancelled")


async def test_a_server_that_fails_at_a_way_that_it_does_not_know_is_asked_in_another():
    """As llama-cpp-python does at a schema given in OpenAI's way."""
    unknown = {
        "message": "1 validation error:\n  {'type': 'literal_error', 'loc': ('body', 'response_format', 'type')}",
        "type": "internal_server_error",
    }
    application, bodies = answering((500, {"error": unknown}, {}), completion())
    async with listening(application) as url, reachable(url) as opened:
        await opened.batcher.call("a", prompt())
        assert not opened.endpoint.account.faults
    assert bodies[1]["response_format"] == {"type": "json_object", "schema": prompt().schema}


async def test_a_request_that_is_wrong_in_every_way_is_not_repeated():
    """Nor does it make a server that takes schemas one that does not."""
    refused = (400, {"error": "too long"}, {})
    application, bodies = answering(completion(), *[refused] * 4, completion())
    async with listening(application) as url, reachable(url) as opened:
        await opened.batcher.call("a", prompt())
        with pytest.raises(EndpointError, match=r"endpoint sim refuses the request.*HTTP 400.*too long"):
            await opened.batcher.call("a", prompt())
        await opened.batcher.call("a", prompt())
    assert bodies[-1]["response_format"]["type"] == "json_schema"


async def test_one_bad_prompt_harms_nobody_else_in_its_batch():
    """The batch is taken apart."""

    async def handle(request):
        texts = orjson.loads(await request.read())["text"]
        if any("poison" in text for text in texts):
            return web.json_response({"error": "too long"}, status=400)
        return web.json_response(generated(*["fine" for _ in texts])[1])

    application, said = web.Application(), {}
    application.add_routes([web.post("/generate", handle)])

    async def ask(opened, text):
        try:
            said[text] = (await opened.batcher.call(text, prompt(text))).text
        except EndpointError:
            said[text] = "refused"

    async with (
        listening(application) as url,
        reachable(url, api="sglang", batch=3) as opened,
        anyio.create_task_group() as tasks,
    ):
        for text in ("a", "poison", "b"):
            tasks.start_soon(ask, opened, text)
    assert said == {"a": "fine", "poison": "refused", "b": "fine"}


@pytest.mark.parametrize(
    ("kind", "reply"),
    [
        ("busy", BUSY),
        ("busy", (503, {}, {})),
        ("error", (500, {}, {})),
        ("garbage", (200, {"choices": []}, {})),
    ],
)
async def test_what_a_moment_may_mend_is_tried_again_and_counted(kind, reply):
    """By its kind."""
    application, bodies = answering(reply, reply, completion("x"))
    async with listening(application) as url, reachable(url) as opened:
        assert (await opened.batcher.call("a", prompt())).text == "x"
        assert opened.endpoint.account.faults == {kind: 2}
        assert opened.endpoint.account.retries == 2
    assert len(bodies) == 3


async def test_an_aborted_or_missing_reply_is_tried_again():
    """On the native route."""
    application, _ = answering(generated("half", finish="abort"), generated(), generated("whole"))
    async with listening(application) as url, reachable(url, api="sglang") as opened:
        assert (await opened.batcher.call("a", prompt())).text == "whole"
        assert opened.endpoint.account.faults == {"error": 1, "garbage": 1}


@pytest.mark.parametrize(
    ("fault", "kind", "timeout_s"),
    [(ServerFault.HANG, "timeout", 0.2), (ServerFault.RESET, "reset", 60), (ServerFault.GARBAGE, "garbage", 60)],
)
async def test_an_endpoint_that_never_answers_is_an_error_that_names_it(fault, kind, timeout_s):
    """After as many attempts as it is given."""
    scripted = Scripted(faults=Faults(rates={fault: 1.0}))
    async with (
        listening(scripted.application()) as url,
        reachable(url, retries=1, timeout_s=timeout_s) as opened,
    ):
        with pytest.raises(EndpointError, match="endpoint sim: 2 attempts failed: "):
            await opened.batcher.call("a", prompt())
        assert opened.endpoint.account.faults == {kind: 2}
        assert opened.endpoint.account.failed == 1


async def test_nobody_listens():
    """A refused connection is an attempt like any other."""
    async with reachable("http://127.0.0.1:1", retries=0) as opened:
        with pytest.raises(EndpointError, match="endpoint sim: 1 attempts failed"):
            await opened.batcher.call("a", prompt())


async def test_an_api_key_is_sent_and_not_shown():
    """In the header, and in no error."""
    async with listening(Scripted(api_key="sesame").application()) as url:
        async with reachable(url, "sesame") as opened:
            assert (await opened.batcher.call("a", prompt())).text == SAID
        async with reachable(url, "wrong-secret") as opened:
            with pytest.raises(EndpointError, match="HTTP 401") as caught:
                await opened.batcher.call("a", prompt())
            assert "wrong-secret" not in str(caught.value)


async def test_requests_keep_to_the_rate():
    """Evenly: the third of 600 a minute starts 0.2 s after the first."""
    async with (
        listening(Scripted().application()) as url,
        reachable(url, requests_per_minute=600) as opened,
        anyio.create_task_group() as tasks,
    ):
        begun = time.monotonic()
        for owner in range(3):
            tasks.start_soon(opened.batcher.call, str(owner), prompt())
    assert time.monotonic() - begun >= 0.19


def test_retry_after_is_read_in_both_forms_and_never_believed_beyond_a_minute():
    """RFC 9110, section 10.2.3."""
    assert retry_after_s("3", 0) == 3
    assert retry_after_s("9999", 0) == 60
    assert retry_after_s("Thu, 01 Jan 1970 00:00:10 GMT", 4) == 6
    assert [retry_after_s(text, 0) for text in ("", "soon", "-1", "nan", "inf")] == [0, 0, 0, 0, 60]


async def test_tokens_cost_what_the_endpoint_says():
    """A million of each."""
    application, _ = answering(completion())
    async with listening(application) as url, reachable(url, input_price=2.0, output_price=5.0) as opened:
        await opened.batcher.call("a", prompt())
        account, settings = opened.endpoint.account, opened.endpoint.settings
        assert settings.priced
        assert settings.money(account.prompt_tokens, account.completion_tokens) == pytest.approx((10 * 2 + 2 * 5) / 1e6)


async def test_every_request_is_accounted_for():
    """Answered, a fault, refused, or abandoned by whoever waited for it."""
    replies = (completion(), (500, {}, {}), completion(), (404, {}, {}))
    application, _ = answering(*replies)
    async with listening(application) as url, reachable(url, structured="prompt") as opened:
        for _ in range(2):
            await opened.batcher.call("a", prompt())
        with pytest.raises(EndpointError, match="refuses"):
            await opened.batcher.call("a", prompt())
        account = opened.endpoint.account
        assert (account.requests, account.calls, account.retries, account.failed) == (4, 2, 1, 1)
        assert account.faults == {"error": 1, "refused": 1}
    hanging = Scripted(faults=Faults(rates={ServerFault.HANG: 1.0}))
    async with listening(hanging.application()) as url, reachable(url) as opened:
        async with anyio.create_task_group() as leaving:
            leaving.start_soon(opened.batcher.call, "a", prompt())
            await until(lambda: hanging.faults.drawn)
            leaving.cancel_scope.cancel()
        await until(lambda: opened.endpoint.account.abandoned)
        assert (opened.endpoint.account.requests, opened.endpoint.account.abandoned) == (1, 1)
        assert not opened.endpoint.account.faults


async def test_an_endpoint_that_is_away_is_waited_for(monkeypatch):
    """Attempts are counted while others get answers: when nobody does, calls wait until it is back, or for ever."""
    monkeypatch.setattr("engine.llm.endpoint._BACKOFF_S", 0.01)
    monkeypatch.setattr("engine.llm.endpoint._LONGEST_BACKOFF_S", 0.02)
    replies = (completion(), *[(503, {}, {})] * 40, completion())
    application, _ = answering(*replies)
    async with listening(application) as url, reachable(url, retries=1, structured="prompt") as opened:
        await opened.batcher.call("a", prompt())
        async with anyio.create_task_group() as tasks:
            for owner in range(10):
                tasks.start_soon(opened.batcher.call, str(owner), prompt())
        assert (opened.endpoint.account.calls, opened.endpoint.account.failed) == (11, 0)
        assert opened.endpoint.account.faults == {"busy": 40}


@pytest.mark.parametrize("ago_s", [None, 301.0])
async def test_an_endpoint_that_was_never_there_or_is_gone_is_not_waited_for(monkeypatch, ago_s):
    """A wrong URL is said after the attempts that the configuration allows."""
    monkeypatch.setattr("engine.llm.endpoint._BACKOFF_S", 0.01)
    application, _ = answering((503, {}, {}))
    failed = []
    async with listening(application) as url, reachable(url, retries=1, structured="prompt") as opened:
        if ago_s is not None:
            opened.endpoint._heard_s = time.monotonic() - ago_s

        async def call(owner):
            with pytest.raises(EndpointError, match="2 attempts failed"):
                await opened.batcher.call(owner, prompt())
            failed.append(owner)

        async with anyio.create_task_group() as tasks:
            for owner in range(10):
                tasks.start_soon(call, str(owner))
    assert len(failed) == 10
