"""The scripted LLM endpoint over real HTTP: both routes, three roles, cassettes, faults and the ledger of them."""

import os
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import anyio
import orjson
import pytest
from aiohttp import web

from engine.errors import ConfigError
from engine.schema.validate import compiled_schema
from engine.scripted.cassette import Cassette, CassetteRow, digest
from engine.scripted.endpoint import ScriptedEndpoint
from engine.scripted.fault_ledger import FaultLedger
from engine.scripted.faults import Faults, FaultWindow, ServerFault
from tests.parts.waiting import until

OUTPUTS = {
    "type": "object",
    "properties": {"code": {"type": "string"}, "left": {"type": "integer", "minimum": 10}},
    "required": ["code", "left"],
    "additionalProperties": False,
}
USER = {
    "as": "user",
    "persona": "a cook",
    "facts": [{"name": "due_date", "value": "Friday", "about": ["when", "date"]}],
    "told": [],
    "earlier": [],
    "agent": "When is it due?",
}
USER_REPLY = {
    "sentences": [{"asked_by": "When", "fact": "due_date", "says": "The due date is Friday."}],
    "done": False,
}
JUDGE = {
    "as": "judge",
    "rules": "",
    "items": [{"id": "s", "part": "subgoal", "text": "Answers."}],
    "events": [{"number": 1, "kind": "answered", "text": "Done."}],
    "stop": "answer",
}
JUDGE_REPLY = {"s": 1}


def tool(arguments: dict, *answers: dict, outputs: dict | None = OUTPUTS) -> dict:
    """A document for a call of `get_order`."""
    described = {"name": "get_order", "description": "", "parameters": {}, "outputs": outputs}
    return {"as": "tool", "background": "", "tool": described, "arguments": arguments, "answers": list(answers)}


def text_of(document: dict) -> str:
    """A document as a user message holds it."""
    return orjson.dumps(document).decode()


def chat(*documents: dict, **fields: object) -> dict:
    """A body for `/v1/chat/completions`."""
    messages = [{"role": "system", "content": "Answer."}]
    messages += [{"role": "user", "content": text_of(document)} for document in documents]
    return {"model": "any", "messages": messages, **fields}


def rendered(document: dict, *later: str) -> str:
    """A prompt as a chat template renders it."""
    turns = [f"<|im_start|>user\n{text}<|im_end|>\n" for text in (text_of(document), *later)]
    return "<|im_start|>system\nAnswer.<|im_end|>\n" + "".join(turns) + "<|im_start|>assistant\n"


def native(*documents: dict, **fields: object) -> dict:
    """A body for `/generate`: a batch."""
    return {
        "text": [rendered(document) for document in documents],
        "sampling_params": {"max_new_tokens": 500},
        **fields,
    }


class Client:
    """Posts JSON to one endpoint."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self.session, self.url = session, url

    async def post(self, route: str, body: object) -> tuple[int, dict | list]:
        async with self.session.post(self.url + route, json=body) as reply:
            return reply.status, orjson.loads(await reply.read())

    async def said(self, body: dict) -> dict:
        """The structured output of a chat completion that succeeds."""
        status, reply = await self.post("/v1/chat/completions", body)
        assert status == 200, reply
        return orjson.loads(reply["choices"][0]["message"]["content"])

    async def counted(self) -> dict:
        async with self.session.get(self.url + "/server_info") as reply:
            return (await reply.json())["mock"]


@asynccontextmanager
async def client_of(endpoint: ScriptedEndpoint, **session: object):
    """A client of an endpoint that listens inside this block."""
    runner = web.AppRunner(endpoint.application(), shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with aiohttp.ClientSession(**session) as opened:
            yield Client(opened, f"http://127.0.0.1:{runner.addresses[0][1]}")
    finally:
        await runner.cleanup()


def always(fault: ServerFault, **fields: object) -> ScriptedEndpoint:
    """An endpoint whose every request, or item, has one fault."""
    faults = Faults(rates={fault: 1.0})
    return ScriptedEndpoint(
        **({"malformed": faults} if fault is ServerFault.MALFORMED else {"faults": faults}), **fields
    )


def lines(path: Path) -> list[dict]:
    """The rows of a ledger."""
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


# --- the routes -------------------------------------------------------------------------------------------------------


async def test_each_role_is_played_on_the_openai_route():
    """Content, finish reason and usage are where OpenAI has them; the counts know who was asked."""
    async with client_of(ScriptedEndpoint()) as client:
        assert await client.said(chat(USER)) == USER_REPLY
        assert await client.said(chat(JUDGE)) == JUDGE_REPLY
        status, reply = await client.post("/v1/chat/completions", chat(tool({"id": 7})))
        assert (status, reply["choices"][0]["finish_reason"]) == (200, "stop")
        assert set(reply["usage"]) == {"prompt_tokens", "completion_tokens", "total_tokens"}
        said = orjson.loads(reply["choices"][0]["message"]["content"])
        answer = said["answer"]
        assert (said["same_as"], answer["ok"], compiled_schema(OUTPUTS)(answer["outputs"])) == (None, True, None)
        counted = await client.counted()
    assert counted["as"] == {"user": 1, "judge": 1, "tool": 1}
    assert (counted["requests"], counted["items"], counted["faults"], counted["largest_batch"]) == (3, 3, {}, 1)


async def test_a_batch_is_answered_in_its_order_on_the_native_route():
    """A list for a batch, an object for one text; each with its rid, its finish reason and its tokens."""
    async with client_of(ScriptedEndpoint()) as client:
        status, replies = await client.post("/generate", native(JUDGE, USER, rid=["a", "b"]))
        assert status == 200
        assert [orjson.loads(reply["text"]) for reply in replies] == [JUDGE_REPLY, USER_REPLY]
        assert [reply["meta_info"]["id"] for reply in replies] == ["a", "b"]
        _, prefixed = await client.post("/generate", native(JUDGE, USER, rid="x"))
        assert [reply["meta_info"]["id"] for reply in prefixed] == ["x_0", "x_1"]
        _, one = await client.post("/generate", {"text": rendered(USER), "rid": "x"})
        assert orjson.loads(one["text"]) == USER_REPLY
        meta = one["meta_info"]
        assert (meta["id"], meta["finish_reason"]["type"], meta["cached_tokens"]) == ("x", "stop", 0)
        counted = await client.counted()
    assert (counted["requests"], counted["items"], counted["largest_batch"]) == (3, 5, 2)


async def test_the_document_is_found_behind_later_messages():
    """After a refused reply the last document counts, whatever prose follows it or object stands inside it."""
    nested, works = tool({"who": {"as": "user"}}, outputs=None), {"ok": True, "outputs": {"status": "ok"}}
    async with client_of(ScriptedEndpoint()) as client:
        body = chat(nested)
        body["messages"] += [{"role": "assistant", "content": "?"}, {"role": "user", "content": 'Say {"ok": ...}.'}]
        assert await client.said(body) == {"same_as": None, "answer": works}
        _, reply = await client.post("/generate", {"text": rendered(nested, "That was no JSON.")})
        assert orjson.loads(reply["text"])["answer"] == works
        status, plain = await client.post("/generate", {"text": 'As in {"as":"user", ...'})
    assert (status, plain["text"]) == (200, "I have nothing to say to that.")


async def test_an_output_ends_at_its_limit():
    """As a model's would: finish reason `length`, and JSON that is cut."""
    async with client_of(ScriptedEndpoint()) as client:
        _, cut = await client.post("/v1/chat/completions", chat(USER, max_tokens=3))
        assert (cut["choices"][0]["finish_reason"], cut["usage"]["completion_tokens"]) == ("length", 3)
        limited = [{"max_new_tokens": 2}, {"max_new_tokens": 300}]
        _, replies = await client.post("/generate", native(USER, USER, sampling_params=limited))
    assert [reply["meta_info"]["finish_reason"]["type"] for reply in replies] == ["length", "stop"]
    assert replies[0]["meta_info"]["finish_reason"]["length"] == 2


SCHEMA = {"type": "json_schema", "json_schema": {"name": "reply", "schema": {"type": "object"}, "strict": True}}
GRAMMAR = {"json_schema": '{"type":"object"}', "max_new_tokens": 500}


@pytest.mark.parametrize(
    ("route", "body", "reason"),
    [
        ("/v1/chat/completions", {"model": "any"}, "messages: Field required"),
        ("/v1/chat/completions", chat(USER, stream=True), "stream: "),
        ("/v1/chat/completions", chat(USER, response_format={"type": "json_schema"}), "json_schema stands in"),
        ("/v1/chat/completions", chat({"as": "user", "facts": []}), "document.agent: Field required"),
        ("/generate", native(USER, sampling_params={"max_tokens": 3}), "Unexpected keyword argument 'max_tokens'"),
        ("/generate", native(USER, sampling_params={"json_schema": "[]"}), "the text of a JSON object"),
        ("/generate", native(USER, rid=["a", "b"]), r"length of rid \(2\) does not match the batch size \(1\)"),
        ("/generate", native(USER, USER, rid=["a", "a"]), "Duplicate request ID detected: a"),
    ],
)
async def test_a_body_that_a_server_would_refuse_is_refused(route, body, reason):
    """With 400 and the reason, and without a count: a mistake of the client is no injected fault."""
    async with client_of(always(ServerFault.ERROR)) as client:
        status, reply = await client.post(route, body)
        assert (status, (await client.counted())["requests"]) == (400, 0)
    with pytest.raises(ValueError, match=reason):
        raise ValueError(reply["error"]["message"])


async def test_structured_output_is_taken_or_refused():
    """A server without it says so with 400; plain JSON mode it has."""
    bodies = (
        ("/v1/chat/completions", chat(USER, response_format=SCHEMA)),
        ("/generate", native(USER, sampling_params=GRAMMAR)),
        ("/v1/chat/completions", chat(USER, response_format={"type": "json_object"})),
    )
    async with client_of(ScriptedEndpoint()) as client:
        assert [(await client.post(*body))[0] for body in bodies] == [200, 200, 200]
    async with client_of(ScriptedEndpoint(structured=False)) as client:
        replies = [await client.post(*body) for body in bodies]
    assert [status for status, _ in replies] == [400, 400, 200]
    assert all("not supported" in reply["error"]["message"] for _, reply in replies[:2])


async def test_a_key_is_asked_for():
    """401 without it, except where a load balancer looks."""
    endpoint = ScriptedEndpoint(api_key="s3")
    async with client_of(endpoint) as client:
        assert (await client.post("/generate", native(USER)))[0] == 401
        async with client.session.get(client.url + "/ready") as reply:
            assert reply.status == 200
    async with client_of(endpoint, headers={"Authorization": "Bearer s3"}) as client:
        assert (await client.post("/generate", native(USER)))[0] == 200
        async with client.session.get(client.url + "/v1/models") as reply:
            assert [card["id"] for card in (await reply.json())["data"]] == ["scripted"]


# --- cassettes --------------------------------------------------------------------------------------------------------


async def test_a_cassette_wins_over_the_rules(tmp_path):
    """Rows of one document in turn, the last for ever; a strict cassette refuses what it does not hold."""
    rows = [{"document": USER, "reply": {"message": "Hm."}}, {"document": USER, "reply": "no JSON"}]
    path = anyio.Path(tmp_path, "cassette.jsonl")
    await path.write_bytes(b"\n".join(map(orjson.dumps, rows)))
    cassette = await anyio.to_thread.run_sync(Cassette.load, Path(path))
    async with client_of(ScriptedEndpoint(cassette=cassette)) as client:
        replies = [(await client.post("/generate", {"text": rendered(USER)}))[1]["text"] for _ in range(3)]
        assert replies == ['{"message":"Hm."}', "no JSON", "no JSON"]
        assert await client.said(chat(JUDGE)) == JUDGE_REPLY
    cassette.strict = True
    async with client_of(ScriptedEndpoint(cassette=cassette)) as client:
        status, reply = await client.post("/v1/chat/completions", chat(JUDGE))
    assert (status, "has no reply to the document" in reply["error"]["message"]) == (400, True)


# --- faults -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "status"), [(ServerFault.ERROR, 500), (ServerFault.BUSY, 503), (ServerFault.LIMITED, 429)]
)
async def test_a_status_is_injected_once_a_request(fault, status, tmp_path):
    """The ledger has one line for a batch, whoever is asked; a rate limit says when to come back."""
    path = tmp_path / "ledger.jsonl"
    async with (
        client_of(always(fault, ledger=FaultLedger(path))) as client,
        client.session.post(client.url + "/generate", json=native(USER, JUDGE)) as reply,
    ):
        assert (reply.status, reply.headers.get("Retry-After")) == (status, "1" if status == 429 else None)
        assert (await client.counted())["faults"] == {fault: 1}
    (row,) = await anyio.to_thread.run_sync(lines, path)
    assert row.pop("at_s") < 10
    assert row == {"n": 1, "fault": fault, "as": "judge+user", "route": "/generate"}


async def test_connections_break_hang_and_bring_garbage():
    """What is no HTTP status: a reset, silence until the client gives up, and a page that is no JSON."""
    async with client_of(always(ServerFault.RESET)) as client:
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await client.post("/generate", native(USER))
    endpoint = always(ServerFault.HANG)
    async with client_of(endpoint) as client:
        # The same rid twice: the endpoint has forgotten who went away.
        for asked in (1, 2):
            async with anyio.create_task_group() as leaving:
                leaving.start_soon(client.post, "/generate", native(USER, rid="a"))
                await until(lambda asked=asked: endpoint.faults.drawn == {ServerFault.HANG: asked})
                leaving.cancel_scope.cancel()
            await until(lambda: not endpoint._flying)
        assert (await client.counted())["faults"] == {"hang": 2}
    async with client_of(always(ServerFault.GARBAGE)) as client:
        with pytest.raises(orjson.JSONDecodeError):
            await client.post("/generate", native(USER))


async def test_malformed_output_is_drawn_for_each_item(tmp_path):
    """HTTP is fine; what is said is cut in half or breaks its schema, and the ledger counts items."""
    path = tmp_path / "ledger.jsonl"
    endpoint = ScriptedEndpoint(malformed=Faults(rates={ServerFault.MALFORMED: 0.5}, seed=2), ledger=FaultLedger(path))
    good, cut, misfits = 0, 0, 0
    async with client_of(endpoint) as client:
        for _ in range(4):
            status, replies = await client.post("/generate", native(*[USER] * 20))
            assert status == 200
            for reply in replies:
                try:
                    said = orjson.loads(reply["text"])
                except orjson.JSONDecodeError:
                    cut += 1
                    continue
                good += said == USER_REPLY
                misfits += said == {**USER_REPLY, "sentences": [["?"]]}
    assert good + cut + misfits == 80
    assert min(good, cut, misfits) >= 10
    rows = await anyio.to_thread.run_sync(lines, path)
    assert [(row["n"], row["fault"], row["as"]) for row in rows] == [
        (number, "malformed", "user") for number in range(1, cut + misfits + 1)
    ]


async def test_an_outage_refuses_everything_for_a_while():
    """From its start to its end, readiness included; the counts stay in sight. It begins with the first request."""
    endpoint = ScriptedEndpoint(down=FaultWindow(0.0, 60.0))
    async with client_of(endpoint) as client:
        assert (await client.post("/generate", native(USER)))[0] == 503
        async with client.session.get(client.url + "/health") as reply:
            assert reply.status == 503
        assert (await client.counted())["faults"] == {"down": 2}
        endpoint._first -= 60.0
        assert (await client.post("/generate", native(USER)))[0] == 200


async def test_requests_are_served_side_by_side():
    """The latency is a mean; it does not add up, and the peak is what was in flight at once."""
    async with client_of(ScriptedEndpoint(latency_s=1.0)) as client:
        started = anyio.current_time()
        async with anyio.create_task_group() as tg:
            for _ in range(20):
                tg.start_soon(client.said, chat(USER))
        assert 0.5 <= anyio.current_time() - started < 10.0
        assert (await client.counted())["peak"] == 20


# --- the process ------------------------------------------------------------------------------------------------------


async def test_the_endpoint_is_a_process(tmp_path):
    """Started by its command line it says where it listens, plays, leaves its ledger and ends on SIGTERM."""
    path = tmp_path / "ledger.jsonl"
    options = ["--faults", "error=0.5,malformed=0.2", "--seed", "3", "--ledger", str(path), "--latency-s", "0"]
    command = [sys.executable, "-m", "engine.scripted", "endpoint", *options, "--parent-pid", str(os.getpid())]
    async with await anyio.open_process(command, stderr=None) as process:
        try:
            url = orjson.loads(await process.stdout.receive())["url"]
            async with aiohttp.ClientSession() as session:
                client = Client(session, url)
                statuses = [(await client.post("/generate", native(USER)))[0] for _ in range(40)]
                faults = (await client.counted())["faults"]
        finally:
            process.terminate()
        assert await process.wait() == 0
    rows = [row["fault"] for row in await anyio.to_thread.run_sync(lines, path)]
    assert faults == {"error": statuses.count(500), "malformed": rows.count("malformed")}
    assert set(statuses) == {200, 500}
    assert len(rows) == sum(faults.values())


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--strict-cassette"], "no effect without --cassette"),
        (["--cassette", "nowhere.jsonl"], "nowhere.jsonl: No such file"),
        (["--ledger", "nowhere/ledger"], "nowhere/ledger: No such file"),
        (["--down", "soon"], "write START:SECONDS"),
        (["--faults", "truncate=1"], "names are error, busy, reset, garbage, hang, limited, malformed"),
    ],
)
async def test_what_it_cannot_do_is_refused_in_one_sentence(options, reason):
    """No option without effect, no traceback."""
    done = await anyio.run_process([sys.executable, "-m", "engine.scripted", "endpoint", *options], check=False)
    assert done.returncode == 1
    assert reason in done.stderr.decode()
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize(
    ("row", "reason"), [('{"reply":"x"}', "a document or its sha256"), ('{"document":{},"reply":3}', r"reply\.")]
)
def test_a_wrong_cassette_row_is_named(tmp_path, row, reason):
    """File, line and reason."""
    path = tmp_path / "cassette.jsonl"
    path.write_text(f'{{"sha256":"00","reply":"x"}}\n{row}\n')
    with pytest.raises(ConfigError, match=rf"cassette\.jsonl, line 2: .*{reason}"):
        Cassette.load(path)


def test_a_row_may_hold_a_digest():
    """The SHA-256 of compact JSON with sorted keys, however the prompt orders them."""
    cassette = Cassette([CassetteRow(sha256=digest(USER), reply="x")])
    assert cassette.reply(dict(reversed(USER.items()))) == "x"
    assert cassette.reply(JUDGE) is None
