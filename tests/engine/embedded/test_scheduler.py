"""Continuous batching on a real decoder, driven step by step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models

from engine.embedded.decoder import Decoder
from engine.embedded.lora import read_adapter
from engine.embedded.sampling import SamplingParams
from engine.embedded.scheduler import BatchLimits, BatchScheduler
from engine.embedded.sequence import FinishKind, Sequence
from engine.embedded.text import Text
from tests.parts.embedded_models import make_adapter, make_model

GREEDY = SamplingParams(temperature=0.0, max_new_tokens=12)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """One random model for all tests here."""
    return make_model(tmp_path_factory.mktemp("scheduler") / "model")


def make_scheduler(model: Path, **limits: int) -> BatchScheduler:
    """A fresh scheduler with one seed."""
    sizes = {"max_running": 16, "kv_tokens": 100_000} | limits
    return BatchScheduler(Decoder(model), Text(model), BatchLimits(**sizes), seed=3)


def run(scheduler: BatchScheduler, *sequences: Sequence) -> list[Sequence]:
    """Queue, step until nothing is left, and hand the same sequences back."""
    for sequence in sequences:
        scheduler.add(sequence)
    with torch.inference_mode():
        while scheduler.has_work:
            scheduler.step()
    return list(sequences)


def prompt(first: int, length: int = 30) -> list[int]:
    """Ids that differ from every other first's."""
    return [first, *((first * 7 + i * 13) % 250 for i in range(length - 1))]


def test_batched_rows_get_what_they_get_alone(model):
    """Twelve greedy requests of many lengths, more than run at once: the tokens of each alone."""
    prompts = [prompt(i, 5 + 11 * i) for i in range(12)]
    alone = [run(make_scheduler(model), Sequence("r", ids, 0, GREEDY))[0].output() for ids in prompts]
    together = run(
        make_scheduler(model, max_running=5), *(Sequence(f"r{i}", p, 0, GREEDY) for i, p in enumerate(prompts))
    )
    assert [s.output() for s in together] == alone
    assert {s.finish.kind for s in together} <= {FinishKind.LENGTH, FinishKind.STOP}


def test_a_next_turn_reuses_the_previous_one(model):
    """All but the last generated token and the new text come from the cache, and the result is the same."""
    scheduler = make_scheduler(model)
    (first,) = run(scheduler, Sequence("a", prompt(1), 0, GREEDY))
    assert first.cached_tokens == 0
    follow_up = [*first.ids, 5, 6, 7]
    (second,) = run(scheduler, Sequence("b", follow_up, 0, GREEDY))
    assert second.cached_tokens == len(first.ids) - 1
    (fresh,) = run(make_scheduler(model), Sequence("c", follow_up, 0, GREEDY))
    assert second.output() == fresh.output()
    assert second.logprobs == pytest.approx(fresh.logprobs, abs=1e-5)


def test_siblings_share_the_prompt_in_the_same_moment(model):
    """Of eight that arrive together one reads the prompt; the others compute its last token only."""
    sequences = run(make_scheduler(model), *(Sequence(f"s{i}", prompt(2), 0, GREEDY) for i in range(8)))
    assert sorted(s.cached_tokens for s in sequences) == [0, *[29] * 7]
    assert len({tuple(s.output()) for s in sequences}) == 1


def test_adapters_share_a_batch_but_never_a_cache(model, tmp_path):
    """The same prompt under the base and two adapters: each as if alone, nothing reused across them."""
    paths = [make_adapter(tmp_path / f"a{seed}", model, seed=seed) for seed in (1, 2)]

    def scheduler() -> BatchScheduler:
        made = make_scheduler(model)
        decoder = Decoder(model)
        for load_id, path in enumerate(paths, 1):
            made.install(load_id, read_adapter(path, decoder.shape, decoder.weights, 8))
        return made

    alone = [run(scheduler(), Sequence("r", prompt(3), load_id, GREEDY))[0].output() for load_id in range(3)]
    mixed = run(scheduler(), *(Sequence(f"r{i}", prompt(3), i, GREEDY) for i in range(3)))
    assert [s.output() for s in mixed] == alone
    assert len({tuple(output) for output in alone}) == 3
    assert [s.cached_tokens for s in mixed] == [0, 0, 0]


def test_memory_stays_bounded_and_requests_wait(model):
    """A budget of three rows: the rest queue, the cache gives way, everything ends and nothing is over the budget."""
    scheduler = make_scheduler(model, kv_tokens=3 * 64)
    sequences = [Sequence(f"r{i}", prompt(i), 0, GREEDY) for i in range(10)]
    for sequence in sequences:
        scheduler.add(sequence)
    most_running = 0
    with torch.inference_mode():
        while scheduler.has_work:
            scheduler.step()
            most_running = max(most_running, scheduler.gauges.running)
            assert scheduler._pool.used <= 3 * 64
    assert most_running == 3
    assert all(s.finish.kind is FinishKind.LENGTH for s in sequences)


def test_turns_are_cached_when_the_budget_is_one_row(model):
    """A finished row's place counts as free: its keys and values are there for the next turn."""
    scheduler = make_scheduler(model, kv_tokens=64)
    (first,) = run(scheduler, Sequence("a", prompt(1), 0, GREEDY))
    (second,) = run(scheduler, Sequence("b", [*first.ids, 5, 6], 0, GREEDY))
    assert second.cached_tokens == len(first.ids) - 1
    assert scheduler._pool.used <= 64


def test_long_prompts_are_read_beside_decoding_rows(model, monkeypatch):
    """A prompt of many pieces does not stall a running row: it gets one token a step."""
    monkeypatch.setattr("engine.embedded.scheduler.PREFILL_TOKENS", 16)
    scheduler = make_scheduler(model)
    short = Sequence("short", prompt(1, 4), 0, SamplingParams(max_new_tokens=40, ignore_eos=True))
    scheduler.add(short)
    with torch.inference_mode():
        scheduler.step()
        long = Sequence("long", prompt(2, 200), 0, GREEDY)
        scheduler.add(long)
        for step in range(12):
            scheduler.step()
            assert len(short.logprobs) == step + 2
    assert long.logprobs == []
    run(scheduler)
    assert long.output() == run(make_scheduler(model), Sequence("x", prompt(2, 200), 0, GREEDY))[0].output()


def test_prompt_logprobs_match_in_pieces_and_whole(model, monkeypatch):
    """From `prompt_logprob_start` on, cached or not, in one piece or several: the same numbers."""

    def score(scheduler: BatchScheduler, start: int) -> Sequence:
        sequence = Sequence("s", prompt(4, 60), 0, GREEDY)
        sequence.prompt_logprob_start = start
        return run(scheduler, sequence)[0]

    scheduler = make_scheduler(model)
    whole = score(scheduler, 0)
    tail = score(scheduler, 40)
    monkeypatch.setattr("engine.embedded.scheduler.PREFILL_TOKENS", 7)
    pieces = score(make_scheduler(model), 0)
    assert len(whole.prompt_logprobs) == 59
    assert pieces.prompt_logprobs == pytest.approx(whole.prompt_logprobs, abs=1e-5)
    assert tail.cached_tokens == 40
    assert tail.prompt_logprobs == pytest.approx(whole.prompt_logprobs[40:], abs=1e-5)


def test_endings(model):
    """Stop token and minimum length, each as asked; a stop token beats the length, as in SGLang."""
    (free,) = run(make_scheduler(model), Sequence("r", prompt(5), 0, GREEDY))
    third = free.output()[2]

    def ending(**changes) -> Sequence:
        params = SamplingParams(temperature=0.0, **{"max_new_tokens": 12, **changes})
        sequence = Sequence("r", prompt(5), 0, params)
        sequence.stop_ids = params.stop_token_ids
        return run(make_scheduler(model), sequence)[0]

    stopped = ending(stop_token_ids=frozenset([third]))
    first_at = free.output().index(third)
    assert stopped.output() == free.output()[: first_at + 1]
    assert (stopped.finish.kind, stopped.finish.matched) == (FinishKind.STOP, third)
    assert ending(stop_token_ids=frozenset([third]), max_new_tokens=first_at + 1).finish.kind is FinishKind.STOP
    later = ending(stop_token_ids=frozenset([third]), min_new_tokens=8)
    assert third not in later.output()[:8]


def test_stop_strings_are_found_across_tokens(model):
    """A string that spans tokens ends the request at the token that completes it, and is cut from the text."""
    text = Text(model)
    ids = text.encode("ab</x>cd")
    stops = ("</x>",)
    found = [text.find_stop(ids[: n + 1], stops) for n in range(len(ids))]
    assert found.index("</x>") == 5
    assert text.find_stop(text.encode("né"), ("é",)) == "é"


def test_stop_strings_that_end_in_a_space_are_found_where_tokens_begin_with_one(tmp_path):
    """With a Metaspace tokenizer the space is half of the next token, and a token alone loses it; what is kept of
    tokens does not grow with the strings that clients send."""
    vocabulary = {"▁foo": 0, "▁": 1, "▁bar": 2, "<unk>": 3}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    text = Text(tmp_path)
    assert text.find_stop([0, 1], ("foo ",)) == "foo "
    assert text.find_stop([0, 2], ("foo ",)) == "foo "
    assert text.find_stop([0, 2], ("foo x ",)) is None
    for number in range(100):
        text.find_stop([0, 2], (f"r{number}",))
    assert len(text._pieces) <= len(vocabulary)


def test_abort_keeps_partial_output_and_spares_others(model):
    """A running and a waiting request end as aborted; the third goes on as if alone."""
    scheduler = make_scheduler(model, max_running=2)
    sequences = [Sequence(f"r{i}", prompt(i), 0, GREEDY) for i in range(3)]
    for sequence in sequences:
        scheduler.add(sequence)
    with torch.inference_mode():
        for _ in range(4):
            scheduler.step()
        scheduler.abort("r0")
        scheduler.abort("r2")
        scheduler.abort("unknown")
    run(scheduler)
    assert [s.finish.kind for s in sequences] == [FinishKind.ABORT, FinishKind.LENGTH, FinishKind.ABORT]
    assert [len(s.logprobs) for s in sequences] == [4, 12, 0]
    assert sequences[1].output() == run(make_scheduler(model), Sequence("x", prompt(1), 0, GREEDY))[0].output()
    assert scheduler.gauges.running == scheduler.gauges.waiting == 0


def test_numbers_that_overflow_end_one_request_only(model, tmp_path):
    """An adapter that drives logits to infinity fails its own requests with an error; the base row is untouched."""
    path = make_adapter(tmp_path / "huge", model, seed=1, scale=1e25)
    scheduler = make_scheduler(model)
    decoder = Decoder(model)
    scheduler.install(1, read_adapter(path, decoder.shape, decoder.weights, 8))
    bad, good = run(scheduler, Sequence("bad", prompt(1), 1, GREEDY), Sequence("good", prompt(1), 0, GREEDY))
    assert bad.finish.kind is FinishKind.ERROR
    assert "not finite" in bad.finish.message
    assert good.finish.kind is FinishKind.LENGTH
    assert good.output() == run(make_scheduler(model), Sequence("x", prompt(1), 0, GREEDY))[0].output()
    after = run(scheduler, *(Sequence(f"after{i}", prompt(i, 3 + 9 * i), 0, GREEDY) for i in range(2, 5)))
    assert [s.finish.kind for s in after] == [FinishKind.LENGTH] * 3


def test_a_failed_step_loses_its_requests_and_nothing_else(model):
    """After `fail_all` the scheduler serves new requests from clean caches."""
    scheduler = make_scheduler(model)
    lost = Sequence("lost", prompt(1), 0, GREEDY)
    scheduler.add(lost)
    with torch.inference_mode():
        scheduler.step()
        assert scheduler.fail_all("out of memory") == [lost]
    assert lost.finish.kind is FinishKind.ERROR
    (after,) = run(scheduler, Sequence("after", prompt(1), 0, GREEDY))
    assert after.cached_tokens == 0
    assert scheduler.flush()
    assert scheduler._pool.used == 0
