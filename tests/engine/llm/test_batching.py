"""engine.llm.batching: who goes next (pure), and what waiting, cancelling and failing do to a batch."""

import asyncio

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import ConfigError, PolicyError, RunError
from engine.llm.batching import Batcher, EndpointError, Queue, QueuedCall
from engine.llm.question import Completed
from tests.parts.llm_parts import prompt

pytestmark = pytest.mark.anyio
WAITING = st.lists(st.sampled_from("abc"), max_size=30)


def call(owner="a"):
    """A call of nobody: the queue never looks at the answer."""
    return QueuedCall(owner, prompt())


def waiting(owners, size=4, wait_s=1.0):
    """A queue in which calls of these owners wait since 0, 1, 2, ... s."""
    queue = Queue(size, wait_s)
    calls = [call(owner) for owner in owners]
    for at, one in enumerate(calls):
        queue.put(one, at)
    return queue, calls


def test_a_full_batch_leaves_at_once_and_a_small_one_when_its_first_call_has_waited():
    """And not a moment earlier."""
    queue, calls = waiting("ab")
    assert queue.take(0.99, 9) == []
    assert queue.due_s == 1.0
    assert queue.take(1.0, 9) == calls
    assert queue.due_s is None
    full, calls = waiting("abcd")
    assert full.take(3.0, 9) == calls


def test_a_queue_knows_how_long_its_calls_waited():
    """And its batches by size, up to the next power of two."""
    queue, _ = waiting("aaaaaaaa", size=5)
    queue.take(9, 9), queue.take(9, 1), queue.take(9, 9), queue.take(9, 9)
    assert queue.batches == {8: 1, 1: 1, 2: 1}
    assert queue.waits.count == 8
    assert queue.waits.quantiles_s(0.0, 1.0) == [2, 9]


def test_owners_take_turns():
    """One with many calls does not keep the others waiting."""
    queue, calls = waiting("aaaaab", size=2)
    assert queue.take(9, 9) == [calls[0], calls[5]]
    assert queue.take(9, 9) == calls[1:3]


def test_room_bounds_a_batch():
    """What does not fit waits on."""
    queue, calls = waiting("abc")
    assert queue.take(9, 2) == calls[:2]
    assert queue.take(9, 0) == []
    assert queue.take(9, 2) == calls[2:]


@given(WAITING, st.integers(1, 5), st.sets(st.integers(0, 29)))
def test_every_call_that_stays_leaves_once(owners, size, gone):
    """Whoever drops out is in no batch, and dropping twice changes nothing."""
    queue, calls = waiting(owners, size)
    for position in gone & set(range(len(calls))):
        queue.drop(calls[position])
        queue.drop(calls[position])
    left = []
    while batch := queue.take(99, 99):
        assert len(batch) <= size
        left += batch
    assert len(queue) == 0
    assert {id(one) for one in left} == {id(one) for at, one in enumerate(calls) if at not in gone}
    assert len(left) == len(set(map(id, left)))


@given(WAITING, st.integers(1, 5))
def test_nobody_waits_for_more_than_its_turn(owners, size):
    """Between two calls of one owner every other owner that waits has one."""
    queue, _ = waiting(owners, size)
    served = []
    while batch := queue.take(99, 99):
        served += [one.owner for one in batch]
    rounds = max((owners.count(owner) for owner in owners), default=0)
    for turn in range(rounds):
        expected = {owner for owner in owners if owners.count(owner) > turn}
        start = sum(min(owners.count(owner), turn) for owner in set(owners))
        assert set(served[start : start + len(expected)]) == expected


class Server:
    """Answers a batch when it is told to; what it was sent is in `batches`."""

    def __init__(self):
        self.batches, self.go, self.cancelled = [], anyio.Event(), 0

    async def send(self, prompts):
        """One answer each: the prompt's own text."""
        texts = [one.messages[1]["content"] for one in prompts]
        self.batches.append(texts)
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if "crash" in texts:
            raise ValueError("a bug")
        return [EndpointError("refused") if text == "bad" else Completed(text, 1, 1) for text in texts]


async def ask(batcher, text, said):
    """Ask, and note the answer."""
    try:
        said[text] = (await batcher.call(text, prompt(text))).text
    except EndpointError as error:
        said[text] = f"! {error}"


async def test_calls_that_come_together_are_one_request():
    """And each gets its own answer, or its own failure."""
    server, said = Server(), {}
    server.go.set()
    batching = Batcher(Queue(3, 0.05), server.send, concurrency=9)
    async with batching as batcher, anyio.create_task_group() as tasks:
        for text in ("one", "bad", "three", "four"):
            tasks.start_soon(ask, batcher, text, said)
    assert server.batches == [["one", "bad", "three"], ["four"]]
    assert said == {"one": "one", "bad": "! refused", "three": "three", "four": "four"}


async def test_who_is_cancelled_leaves_its_batch_unharmed():
    """In the queue it is not sent; on its way the others get their answers."""
    server, said, queue = Server(), {}, Queue(2, 30.0)
    async with Batcher(queue, server.send, concurrency=9) as batcher, anyio.create_task_group() as tasks:
        async with anyio.create_task_group() as leaving:
            leaving.start_soon(ask, batcher, "gone", said)
            tasks.start_soon(ask, batcher, "stays", said)
            await anyio.wait_all_tasks_blocked()
            leaving.cancel_scope.cancel()
        async with anyio.create_task_group() as leaving:
            leaving.start_soon(ask, batcher, "never sent", said)
            await anyio.wait_all_tasks_blocked()
            assert len(queue) == 1
            leaving.cancel_scope.cancel()
        assert len(queue) == 0
        server.go.set()
    assert said == {"stays": "stays"}
    assert server.batches == [["gone", "stays"]]


async def test_a_batch_that_everybody_left_is_given_up():
    """Its room is free again."""
    server, said = Server(), {}
    async with Batcher(Queue(1, 0), server.send, concurrency=1) as batcher:
        async with anyio.create_task_group() as leaving:
            leaving.start_soon(ask, batcher, "gone", said)
            await anyio.wait_all_tasks_blocked()
            leaving.cancel_scope.cancel()
        await anyio.wait_all_tasks_blocked()
        assert server.cancelled == 1
        server.go.set()
        await ask(batcher, "next", said)
    assert said == {"next": "next"}


async def test_no_more_calls_are_in_flight_than_the_endpoint_takes():
    """The rest waits for room."""
    server, said = Server(), {}
    batching = Batcher(Queue(2, 0), server.send, concurrency=3)
    async with batching as batcher, anyio.create_task_group() as tasks:
        for text in "abcdef":
            tasks.start_soon(ask, batcher, text, said)
        await anyio.wait_all_tasks_blocked()
        assert sum(map(len, server.batches)) == 3
        server.go.set()
    assert said == {text: text for text in "abcdef"}


async def test_a_bug_in_sending_is_its_callers_trouble_alone():
    """Other batches go on."""
    server, said = Server(), {}
    server.go.set()
    batching = Batcher(Queue(1, 0), server.send, concurrency=3)
    async with batching as batcher, anyio.create_task_group() as tasks:
        tasks.start_soon(ask, batcher, "crash", said)
        tasks.start_soon(ask, batcher, "fine", said)
    assert said == {"crash": "! endpoint: ValueError: a bug", "fine": "fine"}


@pytest.mark.parametrize(
    ("raised", "caught"),
    [
        (ConfigError("its chat template refuses the conversation"), ConfigError),
        (RunError("the disk is full"), RunError),
        (PolicyError("nobody"), EndpointError),
        (EndpointError("away"), EndpointError),
        (RecursionError("too deep"), EndpointError),
        (KeyError("content"), EndpointError),
    ],
)
async def test_whatever_sending_raises_reaches_every_caller_at_once(raised, caught):
    """What ends a run as it is; everything else as the endpoint's failure. The next batch goes on."""
    sent = []

    async def send(prompts):
        sent.append(len(prompts))
        if len(sent) == 1:
            raise raised
        return [Completed("fine", 1, 1) for _ in prompts]

    async def asked():
        with pytest.raises(caught) as error:
            await batcher.call("a", prompt())
        assert str(raised) in str(error.value)

    with anyio.fail_after(5):
        async with Batcher(Queue(2, 1.0), send, concurrency=2) as batcher:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(asked)
                tasks.start_soon(asked)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(batcher.call, "a", prompt())
                tasks.start_soon(batcher.call, "b", prompt())
    assert sent == [2, 2]


async def test_the_end_of_the_block_resolves_every_call():
    """In the queue, on its way, and too late."""
    server, said = Server(), {}
    async with anyio.create_task_group() as tasks:
        async with Batcher(Queue(1, 0), server.send, concurrency=1) as batcher:
            tasks.start_soon(ask, batcher, "flies", said)
            tasks.start_soon(ask, batcher, "waits", said)
            await anyio.wait_all_tasks_blocked()
        await ask(batcher, "late", said)
    assert server.batches == [["flies"]]
    assert server.cancelled == 1
    assert said == dict.fromkeys(("flies", "waits", "late"), "! the endpoint was closed before it answered")


async def test_a_fault_of_the_batcher_ends_its_block():
    """Loudly, and nobody is left waiting: here an answer is missing."""
    said = {}

    async def send(prompts):
        return [Completed("one", 1, 1)] * (len(prompts) - 1)

    async def block(tasks):
        async with Batcher(Queue(2, 1.0), send, concurrency=2) as batcher:
            tasks.start_soon(ask, batcher, "first", said)
            tasks.start_soon(ask, batcher, "second", said)
            await anyio.sleep_forever()

    async with anyio.create_task_group() as tasks:
        with anyio.fail_after(5), pytest.raises(ExceptionGroup) as caught:
            await block(tasks)
    assert caught.group_contains(ValueError)
    assert said == {"first": "one", "second": "! the endpoint was closed before it answered"}


async def test_an_error_of_the_block_comes_out_as_it_is():
    """Not in a group: who opens an endpoint need not know that it has tasks."""
    with pytest.raises(ConfigError, match="mine"):
        async with Batcher(Queue(1, 0), Server().send, concurrency=1):
            raise ConfigError("mine")
