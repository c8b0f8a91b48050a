"""`/generate`: what a reply holds, what ends a completion, what is refused, what an abort leaves."""

from __future__ import annotations

import itertools

import anyio
import orjson
import pytest
from anyio.to_thread import run_sync

from tests.conformance.calls import (
    GREEDY,
    LONG,
    assert_sampled_by,
    generate,
    loaded,
    post,
    prompt_that_gives,
    refusal,
    until_running,
)
from tests.conformance.servers import ANSWER_END, CONTEXT, END, START
from tests.parts.embedded_models import reference_logprobs

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


async def test_a_reply_has_its_fields(http, differs, tokenizer):
    """Ids, text and meta_info with the types that the engine reads; triples of (log-probability, id, null)."""
    reply = await generate(http, list(range(220, 240)), GREEDY, rid="shape", return_logprob=True)
    meta = reply["meta_info"]
    assert meta["id"] == "shape"
    assert meta["finish_reason"] == {"type": "length", "length": 32}
    assert (meta["prompt_tokens"], meta["completion_tokens"], meta["cached_tokens"]) == (20, 32, 0)
    assert [triple[1:] for triple in meta["output_token_logprobs"]] == [[id_, None] for id_ in reply["output_ids"]]
    assert all(isinstance(triple[0], float) and triple[0] <= 0 for triple in meta["output_token_logprobs"])
    assert meta["output_token_logprobs_length"] == 32
    assert not meta["input_token_logprobs"]
    assert reply["text"] == tokenizer.decode(reply["output_ids"])
    assert ("lora_path" in meta) == differs.names_adapter
    assert isinstance(meta["e2e_latency"], float)
    plain = await generate(http, [5])
    assert "output_token_logprobs" not in plain["meta_info"]
    assert plain["meta_info"]["id"]


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.7, "top_p": 0.5, "top_k": 9, "min_p": 0.01}])
@pytest.mark.parametrize("version", [None, 1])
async def test_logprobs_are_those_of_the_temperature(server, http, version, sampling):
    """log_softmax(logits / temperature), before the support is cut, for base and adapter; the prompt's at 1."""
    prompt = list(range(100, 140))
    body = {"return_logprob": True, "logprob_start_len": 0}
    async with loaded(http, server.files, "scored", version or 1) as name:
        body["lora_path"] = name if version else None
        reply = await generate(http, prompt, {"max_new_tokens": 30} | sampling, **body)
    await assert_sampled_by(server.files, version, reply, prompt, sampling.get("temperature", 1.0))
    path = server.files.adapters / "v00001" if version else None
    expected = await run_sync(reference_logprobs, server.files.model, prompt, path)
    asked = reply["meta_info"]["input_token_logprobs"]
    assert [triple[1] for triple in asked] == prompt
    assert asked[0][0] is None
    assert [triple[0] for triple in asked[1:]] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 0.7, "top_k": 1}])
async def test_a_greedy_batch_takes_the_most_likely(server, http, differs, sampling):
    """Twice the same tokens; at temperature 0 their log-probabilities are those at 1."""
    prompts = [list(range(first, first + 20)) for first in (30, 50, 70)]
    replies = await generate(http, prompts, {"max_new_tokens": 12} | sampling, return_logprob=True)
    again = await generate(http, prompts, {"max_new_tokens": 12, "temperature": 0})
    assert [reply["output_ids"] for reply in replies] == [reply["output_ids"] for reply in again]
    temperature = differs.top_1_temperature or sampling["temperature"] or 1.0
    for prompt, reply in zip(prompts, replies, strict=True):
        await assert_sampled_by(server.files, None, reply, prompt, temperature)


async def test_a_batch_answers_in_order(server, http, differs):
    """A list of prompts, each with its rid and adapter; one rid for all is the beginning of each."""
    prompts = [[7] * 9, [8] * 5, [9] * 3]
    async with loaded(http, server.files, "one", 1), loaded(http, server.files, "two", 2):
        adapters = ["one", None, "two"]
        body = {"rid": ["x", "y", "z"], "lora_path": adapters, "return_logprob": True}
        replies = await generate(http, prompts, **body)
    assert [reply["meta_info"]["id"] for reply in replies] == ["x", "y", "z"]
    assert [reply["meta_info"]["prompt_tokens"] for reply in replies] == [9, 5, 3]
    for prompt, version, reply in zip(prompts, (1, None, 2), replies, strict=True):
        await assert_sampled_by(server.files, version, reply, prompt)
    if differs.names_adapter:
        assert [reply["meta_info"]["lora_path"] for reply in replies] == adapters
    prefixed = await generate(http, prompts, rid="p")
    assert [reply["meta_info"]["id"] for reply in prefixed] == ["p_0", "p_1", "p_2"]
    _, reply = await post(http, "/generate", text="hello", sampling_params={"max_new_tokens": 2})
    assert reply["meta_info"]["prompt_tokens"] == 5


async def test_a_stream_is_cumulative_and_ends_with_done(http):
    """Every event contains the one before; the last one has the finish reason."""
    sampling = {"max_new_tokens": 40, "ignore_eos": True, "temperature": 0}
    body = {"input_ids": [3] * 20, "sampling_params": sampling, "stream": True, "return_logprob": True}
    async with http.post("/generate", data=orjson.dumps(body)) as response:
        assert response.content_type == "text/event-stream"
        lines = [line async for line in response.content if line.strip()]
    assert lines[-1].strip() == b"data: [DONE]"
    events = [orjson.loads(line.removeprefix(b"data: ")) for line in lines[:-1]]
    assert len(events) > 1
    for before, after in itertools.pairwise(events):
        assert before["meta_info"]["finish_reason"] is None
        assert after["output_ids"][: len(before["output_ids"])] == before["output_ids"]
        assert after["text"].startswith(before["text"])
    assert len(events[-1]["meta_info"]["output_token_logprobs"]) == len(events[-1]["output_ids"]) == 40
    assert events[-1]["meta_info"]["finish_reason"] == {"type": "length", "length": 40}


# --- ends ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [{"stop_token_ids": [ANSWER_END]}, {}])
async def test_a_stop_token_ends_a_completion(http, tokenizer, asked):
    """One that was asked for, or the model's own end: named, kept in the ids, not in the text unless asked for.

    It beats the length, and `ignore_eos` ignores both."""
    token = ANSWER_END if asked else END
    prompt, free = await prompt_that_gives(http, token)
    upto = free[: free.index(token) + 1]
    stops = GREEDY | asked | {"ignore_eos": False, "skip_special_tokens": False}
    for limit in (32, len(upto)):
        reply = await generate(http, prompt, stops | {"max_new_tokens": limit}, return_logprob=True)
        assert reply["meta_info"]["finish_reason"] == {"type": "stop", "matched": token}
        assert reply["output_ids"] == upto
        assert len(reply["meta_info"]["output_token_logprobs"]) == reply["meta_info"]["completion_tokens"] == len(upto)
        assert reply["text"] == tokenizer.decode(upto[:-1], skip_special_tokens=False)
    kept = await generate(http, prompt, stops | {"no_stop_trim": True})
    assert kept["text"] == tokenizer.decode(upto, skip_special_tokens=False)
    short = await generate(http, prompt, stops | {"max_new_tokens": len(upto) - 1})
    assert short["meta_info"]["finish_reason"] == {"type": "length", "length": len(upto) - 1}
    ignoring = await generate(http, prompt, stops | {"ignore_eos": True})
    assert ignoring["output_ids"] == free


async def test_a_stop_string_ends_a_completion(http, tokenizer):
    """The string is named and cut from the text, or with `no_stop_trim` what is behind it; the ids are whole tokens.

    It beats a stop token and the length."""
    prompt, free = await prompt_that_gives(http, ANSWER_END)
    upto = free[: free.index(ANSWER_END) + 1]
    before = tokenizer.decode(upto[:-1])
    stops = GREEDY | {"ignore_eos": False, "stop_token_ids": [ANSWER_END]}
    for stop, limit in (("</ans", 32), (["never there", "</ans"], len(upto))):
        reply = await generate(http, prompt, stops | {"stop": stop, "max_new_tokens": limit})
        assert reply["meta_info"]["finish_reason"] == {"type": "stop", "matched": "</ans"}
        assert (reply["output_ids"], reply["text"]) == (upto, before)
    kept = await generate(http, prompt, stops | {"stop": "</ans", "no_stop_trim": True})
    assert (kept["output_ids"], kept["text"]) == (upto, before + "</ans")
    ignoring = await generate(http, prompt, stops | {"stop": "</ans", "ignore_eos": True})
    assert ignoring["output_ids"] == upto


async def test_special_tokens_are_text_only_if_asked_for(http, tokenizer):
    """They are in the ids in any case."""
    prompt, free = await prompt_that_gives(http, START)
    for skip in (True, False):
        reply = await generate(http, prompt, GREEDY | {"skip_special_tokens": skip})
        assert reply["output_ids"] == free
        assert reply["text"] == tokenizer.decode(free, skip_special_tokens=skip)
        assert ("<|im_start|>" in reply["text"]) != skip


async def test_the_end_of_the_context(http, differs):
    """More than fits is refused, never truncated; of what fits, SGLang keeps the last tokens back."""
    sampling = {"max_new_tokens": 20, "ignore_eos": True}
    reply = await generate(http, [4] * (CONTEXT - 20), sampling)
    assert len(reply["output_ids"]) == 20 - differs.context_spare
    status, _ = await post(http, "/generate", input_ids=[4] * (CONTEXT - 6), sampling_params={"max_new_tokens": 1})
    assert status == (400 if differs.context_spare else 200)
    over = {"max_new_tokens": CONTEXT - 8}
    assert "maximum context length" in await refusal(http, input_ids=[1] * 9, sampling_params=over)
    assert "longer than the model's context" in await refusal(http, input_ids=[1] * CONTEXT)


# --- refusals and aborts --------------------------------------------------------------------------------------------


async def test_wrong_requests_are_refused_with_a_reason(http):
    """400 and a message that names what is wrong."""
    assert "nonsense" in await refusal(http, sampling_params={"nonsense": 1})
    assert "temperature" in await refusal(http, sampling_params={"temperature": -1})
    assert "top_p" in await refusal(http, sampling_params={"top_p": 0})
    assert "nobody-v00001" in await refusal(http, lora_path="nobody-v00001")
    assert "nobody-v00001" in await refusal(http, input_ids=[[1], [2]], lora_path=[None, "nobody-v00001"])
    assert await refusal(http, input_ids=None)
    assert await refusal(http, input_ids=[])
    async with http.post("/generate", data=b"{not json") as response:
        assert response.status == 400
    defaults = {"stop": None, "temperature": None, "stop_token_ids": None}
    await generate(http, [1], defaults, lora_path=None, rid=None)


async def test_a_live_rid_is_refused_until_it_ends(http):
    """Twice at once is a duplicate; one after the other is fine."""
    async with anyio.create_task_group() as tg:
        tg.start_soon(lambda: generate(http, [2] * 5, LONG, rid="twice"))
        await until_running(http, 1)
        assert "Duplicate request ID" in await refusal(http, rid="twice")
        await post(http, "/abort_request", rid="twice")
    assert "Duplicate request ID" in await refusal(http, input_ids=[[1], [2]], rid=["q", "q"])
    await generate(http, [1], rid="twice")
    await generate(http, [1], rid="twice")


async def test_an_abort_returns_what_there_is(server, http, differs):
    """200 with type abort, partial ids and their log-probabilities; an unknown rid is 200 too and ends nobody."""
    replies = {}

    async def run(rid: str, sampling: dict[str, int]) -> None:
        replies[rid] = await generate(http, [4] * 5, sampling, rid=rid, return_logprob=True)

    async with anyio.create_task_group() as tg:
        tg.start_soon(run, "pf-1", LONG)
        tg.start_soon(run, "pf-10", {"max_new_tokens": 300})
        tg.start_soon(run, "pg-10", {"max_new_tokens": 300})
        await until_running(http, 3)
        for unknown in ("unknown", "pf-", "p"):
            assert await post(http, "/abort_request", rid=unknown) == (200, None)
        assert (await post(http, "/abort_request", rid="pf-1")) == (200, None)
    finish = {rid: reply["meta_info"]["finish_reason"] for rid, reply in replies.items()}
    assert finish["pf-1"] == {"type": "abort", "message": "Aborted", "status_code": None, "err_type": None}
    assert 0 < len(replies["pf-1"]["output_ids"]) < 1500
    await assert_sampled_by(server.files, None, replies["pf-1"], [4] * 5)
    assert finish["pf-10"]["type"] == ("abort" if differs.aborts_prefixes else "length")
    assert finish["pg-10"]["type"] == "length"
