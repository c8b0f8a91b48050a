"""The errands family: splits, what the agent is shown, and the rewards of scripted trajectories in the real world."""

from pathlib import Path

import engine
from engine.packs.pack import load_pack, task_json
from engine.synthesis.errand_words import DETAILS, ERRANDS
from engine.synthesis.errands import COUNTS, ERRANDS_SEED, HEADER, make_errand
from engine.synthesis.pack import write_family
from engine.synthesis.tiny_actor import answer_text, call_text
from engine.task import Split, Task
from engine.types import Json
from engine.world import offline_user
from tests.parts.worlds import reward_of

PACK = Path(engine.__file__).parent / "assets/packs/errands.jsonl.zst"
TASKS = [make_errand(ERRANDS_SEED, split, index) for split in Split for index in range(40)]


def asked(task: Task) -> str:
    """A question about what the instruction leaves out."""
    return f"<question>What is the {task.meta['private'].replace('_', ' ')}?</question>"


def called(task: Task, **changes: Json) -> str:
    """The errand's call, with some arguments replaced."""
    return call_text(task.tools[0].name, {**task.meta["wanted"], **changes})


def guess(task: Task) -> dict[str, Json]:
    """Another value for what the instruction leaves out."""
    key = task.meta["private"]
    return {key: next(value for value in DETAILS[key].values if value != task.meta["wanted"][key])}


def test_no_errand_is_in_two_splits() -> None:
    """What is held out is whole errands: their tools and words."""
    for part in ("tool", "does", "details"):
        every = [getattr(errand, part) for split in Split for errand in ERRANDS[split]]
        assert len(every) == len(set(every))


def test_shipped_pack_holds_the_generated_tasks() -> None:
    """The shipped pack is valid and is what the generator makes."""
    tasks = load_pack(PACK).tasks
    made = [make_errand(ERRANDS_SEED, split, index) for split, count in COUNTS.items() for index in range(count)]
    assert [task_json(task) for task in tasks] == [task_json(task) for task in made]


def test_instruction_leaves_out_the_private_detail_alone() -> None:
    """The agent sees two of the three details; the third is nowhere in what it is shown."""
    for task in TASKS:
        shown = f"{task.instruction} {task.rules}".replace(",", " ").replace(".", " ").split()
        hidden = [key for key, value in task.meta["wanted"].items() if str(value) not in shown]
        assert hidden == [task.meta["private"]]


def test_user_understands_a_plain_question_about_each_detail() -> None:
    """Asked by its name for a detail, the user tells it, also one that the instruction gave."""
    for task in TASKS:
        assert task.user is not None
        for key, value in task.meta["wanted"].items():
            reply = offline_user.offline_reply(task.user, f"What is the {key.replace('_', ' ')}?")
            assert key in reply.revealed
            assert str(value) in reply.text


async def test_asking_and_calling_earns_one_and_a_guess_nothing() -> None:
    """Gold is 1; asking alone is a half; a guess is 0 before a question, after it, and corrected by a right call."""
    for task in TASKS:
        right, wrong = called(task), called(task, **guess(task))
        assert (await reward_of(task, [asked(task), right, answer_text("Done.")])).value == 1
        assert (await reward_of(task, [asked(task), answer_text("Done.")])).value == 0.5
        assert (await reward_of(task, [answer_text("Done.")])).value == 0
        for guessing in ([wrong], [asked(task), wrong], [asked(task), right, wrong], [wrong, asked(task), right]):
            assert (await reward_of(task, guessing)).value == 0


async def test_a_refused_call_is_no_guess() -> None:
    """A call that the tool refuses gets nothing done, so that it costs nothing."""
    for task in TASKS:
        wanted = task.meta["wanted"]
        partly = call_text(task.tools[0].name, {key: wanted[key] for key in wanted if key != task.meta["private"]})
        assert (await reward_of(task, [partly, asked(task), called(task)])).value == 1


async def test_lucky_guess_does_not_pay_like_asking() -> None:
    """The right call without the question misses the interaction."""
    for task in TASKS:
        assert (await reward_of(task, [called(task)])).value == 0.5


def test_family_is_written_to_one_path(tmp_path, capsys) -> None:
    """The command line of a family writes its pack, and explains itself without a path."""
    path = tmp_path / "some.jsonl.zst"
    assert write_family([str(path)], HEADER, {Split.TRAIN: 3}, lambda split, index: make_errand(7, split, index)) == 0
    assert load_pack(path).tasks == tuple(make_errand(7, Split.TRAIN, index) for index in range(3))
    assert write_family([], HEADER, {}, lambda split, index: make_errand(7, split, index)) == 2
    assert "OUT.jsonl.zst" in capsys.readouterr().err
