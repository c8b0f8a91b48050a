"""The learner on several ranks: real processes, gloo; any number of them trains the same."""

import signal

import pytest
import torch
from safetensors.torch import load_file

from engine.config.load import load
from engine.errors import ConfigError
from engine.rundir.layout import read_json, read_lines
from engine.stream.segment import segment_path
from learner.__main__ import EXIT_FAILED, EXIT_OK
from learner.advantage import group_std
from learner.forming import usable_group
from learner.ranks import Order, Ranks, deal, even_budget
from learner.rows import collate
from tests.parts import learner_ranks
from tests.parts.learner_kills import check_history, finish, make_groups
from tests.parts.learner_ranks import add_gradients, gradients, learn, learn_the_rest, run_ranks
from tests.parts.learner_runs import make_group, make_model, make_policy, make_run, write_stream

pytestmark = pytest.mark.timeout(180)  # ranks are processes, and the server that forks them loads torch


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny model on disk."""
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def groups(model):
    """Ten groups; 3 and 8 have no variance."""
    return make_groups(make_policy(model), 8)


@pytest.fixture(scope="module")
def alone(tmp_path_factory, model, groups):
    """Four steps of one process on those groups."""
    return trained(tmp_path_factory.mktemp("alone") / "demo", model, groups, ranks=1)


def trained(path, model, groups, *, ranks, steps=4):
    """The run directory after that many steps of `ranks` ranks."""
    run = make_run(path, model, steps=steps, ranks=ranks)
    write_stream(run, groups)
    assert go_on(run, ranks) == [EXIT_OK] * ranks
    check_history(run, groups)
    return run


def go_on(run, ranks, steps=4, plant=None):
    """Run the learner, or resume it, with so many ranks; returns their exit codes."""
    text = run.config.read_text()
    before = load(run.config).config
    text = text.replace(f"ranks = {before.learner.ranks}\n", f"ranks = {ranks}\n")
    run.config.write_text(text.replace(f"steps = {before.run.steps}\n", f"steps = {steps}\n", 1))
    if ranks == 1:
        return [finish(run.path)]
    return run_ranks(learn, ranks, run.path, plant)


def adapters(run):
    """The published tensors of every version."""
    return [load_file(run.adapter(version) / "adapter_model.safetensors") for version in run.versions()]


def assert_close(found, wanted, limit):
    """Every tensor within `limit` of the other's norm."""
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert (found[name] - tensor).norm() <= limit * tensor.norm(), name


def test_shares_are_even_and_every_micro_batch_is_in_one():
    """The largest first, to whoever has least; a rank may get nothing."""
    tgs = [make_group(position, size=6) for position in range(5)]
    episodes = [episode for group in tgs for episode in usable_group(group, group_std, version=0).episodes]
    batches = collate(episodes, 90)
    sizes = [batch.ids_T.numel() for batch in batches]
    for count in (1, 2, 3):
        shares = deal(batches, count)
        assert sorted(index for share in shares for index in share) == list(range(len(batches)))
        assert all(share == sorted(share) for share in shares)
        loads = [sum(sizes[index] for index in share) for share in shares]
        assert max(loads) - min(loads) <= max(sizes)
    assert deal(batches[:1], 3) == [[0], [], []]


@pytest.mark.parametrize(
    ("tokens", "budget", "count", "wanted"),
    [(24_000, 8192, 2, 6000), (8000, 8192, 2, 4000), (8000, 8192, 3, 2667), (16_384, 8192, 2, 8192), (10, 64, 3, 4)],
)
def test_the_budget_cuts_a_step_evenly(tokens, budget, count, wanted):
    """As many passes for each rank, none over the budget."""
    assert even_budget(tokens, budget, count) == wanted


def test_a_rank_alone_needs_nobody():
    """Orders and sums come back as they went; nothing is joined."""
    ranks = Ranks.join(load(None).config)
    order = Order(cursor=(1, 2), step=3)
    tensor = torch.ones(2)
    assert (ranks, ranks.leads, ranks.begin(7)) == (Ranks(rank=0, count=1), True, 7)
    assert (ranks.order(order), ranks.order(None)) == (order, None)
    assert ranks.add(tensor) is tensor


def test_ranks_that_nobody_started_are_a_configuration_error(monkeypatch):
    """`python -m learner` on a run with two ranks says how to start them."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(ConfigError, match="torchrun --nproc-per-node 2 -m learner"):
        Ranks.join(load(None, ["learner.ranks=2"]).config)


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize(
    ("count", "sizes", "budget"), [(2, [6, 5], 10_000), (2, [6, 5], 60), (3, [6, 5, 4], 80), (3, [2], 10_000)]
)
def test_any_number_of_ranks_gives_the_same_gradient(tmp_path, model, count, sizes, budget, double):
    """Gradients, loss and metrics of a step against one rank's: 1e-9 relative in float64, 1e-5 in float32; all ranks
    have the same bits, also where one is dealt nothing (acceptance 4)."""
    wanted = gradients(model, sizes, 100_000, Ranks(), double=double)
    arguments = (model, tmp_path, sizes, budget)
    assert run_ranks(double_gradients if double else add_gradients, count, *arguments) == [0] * count
    first, *others = (load_file(tmp_path / f"rank-{rank}.safetensors") for rank in range(count))
    seen, wanted_seen = first.pop("seen"), wanted.pop("seen")
    assert_close(first, wanted, 1e-9 if double else 1e-5)
    # The tokens come in the order of the micro-batches, which the budget decides.
    assert_close({"": seen.sort(dim=1)[0]}, {"": wanted_seen.sort(dim=1)[0]}, 1e-5)
    for other in others:
        assert all(torch.equal(other[name], tensor) for name, tensor in {**first, "seen": seen}.items())


def double_gradients(*arguments):
    """In float64."""
    add_gradients(*arguments, double=True)


@pytest.mark.parametrize("count", [2, 3])
def test_a_run_on_several_ranks_trains_what_one_does(tmp_path, model, groups, alone, count):
    """The same steps from the same stream, adapters within rounding; on every rank the same bits, those published."""
    run = trained(tmp_path / "demo", model, groups, ranks=count)
    published = adapters(run)
    for found, wanted in zip(published, adapters(alone), strict=True):
        assert_close(found, wanted, 1e-4)
    for rank in range(count):
        held = load_file(run.path / f"rank-{rank}.safetensors")
        assert all(torch.equal(held[name], tensor) for name, tensor in published[-1].items())
    rows, wanted_rows = ([*read_lines(each.learner / "metrics.jsonl")] for each in (run, alone))
    for row, wanted in zip(rows, wanted_rows, strict=True):
        assert row.keys() == wanted.keys()
        told = [key for key in row if not key.endswith("_s") and key != "learner/computed_tokens"]
        assert {key: row[key] for key in told} == pytest.approx({key: wanted[key] for key in told}, rel=1e-3, abs=1e-6)


def test_a_run_is_resumed_with_another_number_of_ranks(tmp_path, model, groups, alone):
    """Two, then one, then three: every group once, the adapters of one rank within rounding."""
    run = make_run(tmp_path / "demo", model, steps=1, ranks=2)
    write_stream(run, groups)
    for count, steps in ((2, 1), (1, 2), (3, 4)):
        assert go_on(run, count, steps) == [EXIT_OK] * count
    check_history(run, groups)
    for found, wanted in zip(adapters(run), adapters(alone), strict=True):
        assert_close(found, wanted, 1e-4)


def test_a_follower_reads_what_rank_0_read(tmp_path, model, groups):
    """A torn tail, a segment that begins in a step, one with nothing in it, and groups left over that are flushed."""
    run = make_run(tmp_path / "demo", model, steps=9, ranks=2)
    write_stream(run, groups[:3], closed=False)
    with segment_path(run.trajectories, 0).open("ab") as file:
        file.write(b"half a frame")
    write_stream(run, groups[3:8], number=1, closed=False)
    write_stream(run, [], number=2)
    assert run_ranks(learn_the_rest, 2, run.path) == [EXIT_OK, EXIT_OK]
    check_history(run, groups)
    steps = list(read_lines(run.learner / "steps.jsonl"))
    assert [[row["id"] for row in step["groups"]] for step in steps] == [
        ["g000000", "g000001"],
        ["g000002", "g000004"],
        ["g000005", "g000006"],
        ["g000007"],
    ]
    assert [step["flushed"] for step in steps] == [False, False, False, True]
    held = load_file(run.path / "rank-1.safetensors")
    assert all(torch.equal(held[name], tensor) for name, tensor in adapters(run)[-1].items())


def stopped_in_the_second_step(tmp_path, model, groups, plant):
    """A run whose ranks are disturbed by `plant` in step 2: exit codes, and its directory."""
    run = make_run(tmp_path / "demo", model, steps=1, ranks=2)
    write_stream(run, groups)
    assert go_on(run, 2, 1) == [EXIT_OK, EXIT_OK]
    codes = go_on(run, 2, 4, plant)
    assert run.versions() == [0, 1]
    assert [row["step"] for row in read_lines(run.learner / "steps.jsonl")] == [1]
    return codes, run


def test_a_gradient_that_is_not_finite_on_one_rank_stops_all(tmp_path, model, groups):
    """Every rank sees it in the sum; nothing is published, and rank 0 names tensor and groups."""
    codes, run = stopped_in_the_second_step(tmp_path, model, groups, learner_ranks.poison)
    assert codes == [EXIT_FAILED, EXIT_FAILED]
    progress = read_json(run.progress)
    assert progress["state"] == "failed"
    assert "layers.1.mlp.up_proj.lora_B.weight is not finite; nothing was published" in progress["error"]
    assert "g000002, g000004" in progress["error"]
    for rank in range(2):
        held = load_file(run.path / f"rank-{rank}.safetensors")
        assert all(torch.equal(held[name], tensor) for name, tensor in adapters(run)[1].items())


def test_a_step_that_one_rank_gives_up_is_given_up_by_all(tmp_path, model, groups, alone):
    """All end with 0 and without a trace of the step; it is trained after a resume."""
    codes, run = stopped_in_the_second_step(tmp_path, model, groups, learner_ranks.abandon)
    assert codes == [EXIT_OK, EXIT_OK]
    assert read_json(run.progress)["state"] == "running"
    assert go_on(run, 2) == [EXIT_OK, EXIT_OK]
    check_history(run, groups)
    assert_close(adapters(run)[-1], adapters(alone)[-1], 1e-4)


@pytest.mark.parametrize(("plant", "code"), [(learner_ranks.crash, EXIT_FAILED), (learner_ranks.die, -signal.SIGKILL)])
def test_a_rank_that_ends_in_a_step_ends_the_others(tmp_path, model, groups, alone, plant, code):
    """An error in its micro-batch or a kill, while the other waits in the sum: nobody hangs, the run is not failed,
    and a new start loses and repeats nothing."""
    codes, run = stopped_in_the_second_step(tmp_path, model, groups, plant)
    assert codes == [EXIT_FAILED, code]
    assert read_json(run.progress)["state"] == "running"
    assert go_on(run, 2) == [EXIT_OK, EXIT_OK]
    check_history(run, groups)
    assert_close(adapters(run)[-1], adapters(alone)[-1], 1e-4)


def test_what_rank_0_refuses_ends_all_with_its_sentence(tmp_path, model, groups):
    """A configuration error is told in progress.json: torchrun's exit code does not tell it."""
    run = make_run(tmp_path / "demo", model, ranks=2, advantage="no_such_package:thing")
    write_stream(run, groups)
    codes = go_on(run, 2, 3)
    assert EXIT_OK not in codes
    progress = read_json(run.progress)
    assert progress["state"] == "failed"
    assert progress["error"].startswith("learner.advantage = 'no_such_package:thing'")
