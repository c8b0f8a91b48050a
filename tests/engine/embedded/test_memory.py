"""The KV pool, the prefix tree and the sampler, each alone."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.embedded.kv import KVPool, capacity_for
from engine.embedded.prefix import PrefixTree
from engine.embedded.sampling import SamplingParams, draw_tokens
from engine.modeldir.shape import DecoderShape

SHAPE = DecoderShape(
    architecture="none",
    layers=1,
    hidden=4,
    heads=1,
    kv_heads=1,
    head_dim=1,
    intermediate=4,
    vocabulary=9,
    context=4096,
    norm_eps=1e-6,
    tied=True,
)
RUNS = st.lists(st.integers(0, 2), min_size=1, max_size=12)


def as_kv(tokens: list[int]) -> torch.Tensor:
    """Keys and values that are the tokens themselves, `[1, 2, 1, len, 1]`."""
    return torch.tensor(tokens, dtype=torch.float32).view(1, 1, 1, -1, 1).expand(1, 2, 1, -1, 1)


@given(st.integers(1, 40_000))
def test_size_classes_hold_what_they_promise(tokens):
    """A class is never too small, and wastes less than half (beyond the first)."""
    capacity = capacity_for(tokens)
    assert capacity >= tokens
    assert capacity <= max(64, 2 * tokens)
    assert capacity_for(capacity) == capacity


def test_rows_keep_their_tokens_through_growth_and_compaction():
    """Random opening, appending and closing: every open row reads back what was written to it."""
    dice, pool, written = random.Random(3), KVPool(SHAPE, 1 << 20), {}
    for _ in range(1500):
        if written and dice.random() < 0.3:
            row = dice.choice(list(written))
            del written[row]
            pool.close(row)
        elif written and dice.random() < 0.7:
            row = dice.choice(list(written))
            more = [dice.randrange(1000) for _ in range(dice.randrange(1, 60))]
            pool.grow(row, row.length + len(more))
            pool.write(row, as_kv(more))
            written[row].extend(more)
        else:
            written[pool.open(1)] = []
        if dice.random() < 0.2:
            slabs = pool.active()
            assert sorted(id(row) for slab in slabs for row in slab.rows) == sorted(map(id, written))
    for row, tokens in written.items():
        assert torch.equal(pool.read(row, 0, row.length), as_kv(tokens))


@pytest.mark.parametrize("budget", [700, 2_340, 9_000])
def test_memory_never_exceeds_the_budget_and_one_row(budget):
    """Rows whose worst cases fit together, growing, remembered and leaving: bounded after every call, settled before
    every step, and what is read back is what was written."""
    dice, pool, written, worst = random.Random(5), KVPool(SHAPE, budget), {}, {}
    most_row = pool.row_tokens(1_200)
    for number in range(4_000):
        row = dice.choice(list(written)) if written else None
        most = dice.randrange(1, min(1_200, budget))
        if row is None or (dice.random() < 0.4 and sum(worst.values()) + pool.row_tokens(most) <= budget):
            row = pool.open(1)
            written[row], worst[row] = [], pool.row_tokens(most)
        elif dice.random() < 0.4:
            pool.remember(number % 3, written[row], row, leaving=True)
            pool.close(row)
            del written[row], worst[row]
        else:
            more = min(worst[row] - row.length, dice.choice([1, 40, 300]))
            pool.grow(row, row.length + more)
            tokens = [dice.randrange(1000) for _ in range(more)]
            pool.write(row, as_kv(tokens))
            written[row].extend(tokens)
            if dice.random() < 0.2:
                pool.remember(number % 3, written[row], row, leaving=False)
        assert pool.used <= budget + most_row
        if dice.random() < 0.3:
            pool.active()
            assert pool.used <= budget
    for row, tokens in written.items():
        assert torch.equal(pool.read(row, 0, row.length), as_kv(tokens))


def test_a_large_row_is_allocated_alone_and_given_back():
    """In the shape of Qwen3-0.6B a request of 1,600 tokens takes one row, not eight; none stays once it is closed."""
    pool = KVPool(replace(SHAPE, layers=28, kv_heads=8, head_dim=128), 2_340)
    row = pool.open(1_600)
    assert pool.allocated == row.slab.capacity == 2_048
    assert sum(kv.nbytes for kv in row.slab.kv) == 2_048 * 28 * 2 * 8 * 128 * 4
    pool.close(row)
    pool.active()
    assert pool.allocated == 0
    assert pool.row_tokens(2_200) == 2_340


@given(st.lists(RUNS, max_size=12), RUNS, st.integers(0, 12))
def test_the_longest_cached_prefix_is_found(known, asked, limit):
    """The tree answers like a search through all remembered runs, with the right values in order."""
    tree = PrefixTree()
    for run in known:
        tree.insert(7, run, lambda start, stop, run=run: as_kv(run[start:stop]).clone())
    limit = min(limit, len(asked))
    found, parts = tree.match(7, asked, limit)
    common = [next((i for i in range(min(limit, len(r))) if r[i] != asked[i]), min(limit, len(r))) for r in known]
    assert found == max(common, default=0)
    if found:
        assert torch.equal(torch.cat(parts, 3), as_kv(asked[:found]))
    assert tree.match(8, asked, limit)[0] == 0
    assert tree.tokens == len({tuple(run[: i + 1]) for run in known for i in range(len(run))})


def test_the_least_recently_used_run_leaves_first():
    """Eviction frees at least what was asked and spares what was just used; a dropped adapter leaves nothing."""
    tree = PrefixTree()
    for first in range(4):
        tree.insert(1, [first] * 10, lambda start, stop: torch.zeros(1, 2, 1, stop - start, 1))
    tree.match(1, [0] * 10, 10)
    assert tree.evict(15) == 20
    assert [tree.match(1, [first] * 10, 10)[0] for first in range(4)] == [10, 0, 0, 10]
    tree.drop(1)
    assert tree.tokens == 0


def test_draws_follow_the_distribution():
    """20,000 draws at temperature 2: frequencies within sampling error, log-probabilities those of softmax(x / 2)."""
    logits = torch.tensor([[2.0, 0.0, -1.0, 1.0, -torch.inf]]).repeat(20_000, 1)
    draws = draw_tokens(logits, [SamplingParams(temperature=2.0)] * 20_000, torch.Generator().manual_seed(0))
    expected = (logits[0] / 2).log_softmax(-1)
    frequencies = torch.bincount(torch.tensor(draws.tokens), minlength=5) / 20_000
    assert torch.allclose(frequencies, expected.exp(), atol=0.015)
    assert draws.logprobs == pytest.approx([expected[token].item() for token in draws.tokens], abs=1e-5)
    assert all(draws.finite)


def test_cut_supports_and_greedy_rows_share_a_batch():
    """Each row obeys its own parameters; log-probabilities are those before the cut."""
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]]).repeat(4, 1)
    rows = [
        SamplingParams(top_k=2),
        SamplingParams(top_p=0.5),
        SamplingParams(min_p=0.3),
        SamplingParams(temperature=0.0),
    ]
    generator, seen = torch.Generator().manual_seed(1), [set() for _ in rows]
    for _ in range(200):
        draws = draw_tokens(logits.clone(), rows, generator)
        for row, token in enumerate(draws.tokens):
            seen[row].add(token)
        assert draws.logprobs == pytest.approx([logits[0].log_softmax(-1)[t].item() for t in draws.tokens], abs=1e-5)
    assert seen == [{0, 1}, {0}, {0, 1}, {0}]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_rows_that_are_not_numbers_are_marked(bad):
    """The other rows of the batch are drawn as usual."""
    logits = torch.zeros(2, 4)
    logits[0, 1] = bad
    assert draw_tokens(logits, [SamplingParams()] * 2, torch.Generator()).finite == [False, True]
