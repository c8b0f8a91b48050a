"""engine.telemetry.window: what a filter means, and that a window is a piece of the whole table in order."""

import random
from dataclasses import dataclass

import pytest

from engine.errors import ConfigError
from engine.telemetry.window import MOST_ROWS, PHASES, WINDOW_FIELDS, Selection, Window, bin_of, row, select

NOW_S = 100.0


@dataclass(slots=True)
class Some:
    """An episode as a table sees it."""

    id: str = "g000001.00"
    group_id: str = "g000001"
    task_id: str = "Retail/12"
    phase: str = "tool"
    turn: int = 6
    tokens: int = 300
    start_s: float = 40.0
    phase_s: float = 90.0
    version: int = 4
    reward: float | None = None
    outcome: str = ""


ONE = (Some(),)


def some(count, seed=0):
    """Episodes of all kinds, in the order in which they began, with many equal values."""
    dice = random.Random(seed)
    made = []
    for number in range(count):
        phase, start_s = dice.choice(PHASES), NOW_S * number / max(1, count)
        done = phase == "done"
        reward = dice.choice((None, 0.0, 0.5, 1.0)) if done else None
        made.append(
            Some(
                id=f"g{number // 8:06d}.{number % 8:02d}" if number % 9 else f"e00001-{number:04d}.00",
                group_id=f"g{number // 8:06d}",
                task_id=f"retail/{dice.randrange(20)}",
                phase=phase,
                turn=dice.randrange(9),
                tokens=dice.randrange(99),
                start_s=start_s,
                phase_s=dice.uniform(start_s, NOW_S),
                version=dice.randrange(4),
                reward=reward,
                outcome="" if not done else "infra_error" if reward is None else "agent_fail",
            )
        )
    return made


def ids(where="", episodes=ONE, **window):
    """Which episodes a window shows."""
    return [shown.id for shown in select(episodes, Window(where=where, **window), NOW_S).rows]


@pytest.mark.parametrize(
    ("where", "holds"),
    [
        ("turn=6", True),
        ("turn=5", False),
        ("turn!=5", True),
        ("turn!=6", False),
        ("turn>5", True),
        ("turn>6", False),
        ("turn>=6", True),
        ("turn>=7", False),
        ("turn<7", True),
        ("turn<6", False),
        ("turn<=6", True),
        ("turn<=5.5", False),
        ("task~tail", True),
        ("task~airline", False),
        ("task=retail/12", True),
        ("TASK=RETAIL/12", True),
        ("retail", True),
        ("airline", False),
        ("phase=tool", True),
        ("phase=t", True),
        ("phase=p", False),
        ("phase!=done", True),
        ("age>59", True),
        ("age>61", False),
        ("wait<=10", True),
        ("wait<9", False),
        ("tokens>299 version=4 group=g000001", True),
        ("tokens>299 version=5 group=g000001", False),
        ("reward<1", False),
        ("reward>=0", False),
        ("  ", True),
        ("turn=nan", False),
        ("turn<inf", True),
    ],
)
def test_every_operator_means_what_it_says(where, holds):
    """Also upper case, a bare word, the beginning of a phase, and a value that is not there yet."""
    assert bool(ids(where)) is holds


@pytest.mark.parametrize(
    ("where", "sentence"),
    [
        ("colour=red", "there is no field colour; there are id, group"),
        ("turn=many", "turn is a number, and 'many' is none"),
        ("turn~5", "~ looks for a part of a text, and turn is a number"),
        ("turn>", "write FIELD OP VALUE"),
        ("outcome=", "write FIELD OP VALUE"),
        (">5", "write FIELD OP VALUE"),
        ("phase=tool ((", "write FIELD OP VALUE"),
        ("turn>5 __import__('os')", "write FIELD OP VALUE"),
    ],
)
def test_what_is_no_filter_is_told(where, sentence):
    """In a sentence, and nothing is evaluated."""
    with pytest.raises(ConfigError) as caught:
        ids(where)
    assert sentence in str(caught.value)


def test_bins_of_rewards():
    """Each begins with its lower bound; the last holds 1 itself, and what is outside counts at the edge."""
    assert [bin_of(reward) for reward in (-1, 0, 0.049, 0.05, 0.5, 0.999, 1, 7)] == [0, 0, 0, 1, 10, 19, 19, 19]


def test_an_unknown_order_is_told():
    """The names are given."""
    with pytest.raises(ConfigError, match="there is no field colour to sort by; there are id, group"):
        ids(sort="colour")


def test_a_row_of_one_that_has_ended_says_how_long_it_took():
    """Its age stands still; one clock that is behind makes no negative seconds."""
    done = row(Some(phase="done", reward=0.5, outcome="agent_fail"), NOW_S)
    assert (done.age_s, done.wait_s, done.reward, done.outcome) == (50.0, 10.0, 0.5, "agent_fail")
    assert row(Some(), NOW_S)[:4] == ("g000001.00", "g000001", "Retail/12", "tool")
    assert row(Some(), NOW_S).age_s == 60.0
    assert row(Some(), 10.0)[6:8] == (0.0, 0.0)


@pytest.mark.parametrize("count", [0, 1, 10_000])
def test_a_window_over_any_number_of_episodes(count):
    """Its rows are bounded, its total is not, and beyond the end there is nothing."""
    episodes = some(count)
    selected = select(episodes, Window(rows=60), NOW_S)
    assert (len(selected.rows), selected.total) == (min(60, count), count)
    assert len(ids(episodes=episodes, rows=9_999)) == min(MOST_ROWS, count)
    assert ids(episodes=episodes, rows=0) == []
    assert ids(episodes=episodes, top=count) == []
    assert len(ids(episodes=episodes, top=max(0, count - 3))) == min(3, count)


@pytest.mark.parametrize("down", [True, False])
def test_rewards_that_are_not_there_stand_last(down):
    """Whichever way they are sorted; equal ones in the order in which they began."""
    episodes = [Some(id=str(place), reward=reward) for place, reward in enumerate((None, 0.0, 1.0, None, 1.0))]
    assert ids(episodes=episodes, sort="reward", down=down) == list("24103" if down else "12403")


def test_grouped_members_stand_together():
    """By id, whatever they would be sorted by."""
    episodes = some(100)
    shown = ids(episodes=episodes, grouped=True, sort="tokens", rows=200)
    assert shown == sorted(one.id for one in episodes)


VALUES = {
    "id": lambda one: one.id,
    "group": lambda one: one.group_id,
    "task": lambda one: one.task_id,
    "phase": lambda one: one.phase,
    "turn": lambda one: one.turn,
    "tokens": lambda one: one.tokens,
    "age": lambda one: row(one, NOW_S).age_s,
    "wait": lambda one: row(one, NOW_S).wait_s,
    "version": lambda one: one.version,
    "reward": lambda one: one.reward,
    "outcome": lambda one: one.outcome,
}
FILTERS = {
    "": lambda one: True,
    "phase=tool": lambda one: one.phase == "tool",
    "turn>3 phase!=done": lambda one: one.turn > 3 and one.phase != "done",
    "task~/1 reward<1": lambda one: "/1" in one.task_id and one.reward is not None and one.reward < 1,
    "age<=40": lambda one: row(one, NOW_S).age_s <= 40,
}


def in_parts(episodes, window, size):
    """What a selection finds that is shown so many episodes at a time."""
    selection = Selection(window, NOW_S)
    found = sorted(episodes, key=lambda one: one.phase == "done")
    for start in range(0, len(found), size):
        selection.add(found[start : start + size])
    return selection.rows(), selection.total


@pytest.mark.parametrize("sort", WINDOW_FIELDS)
def test_a_window_is_a_piece_of_the_sorted_whole(sort):
    """The same as a naive filter and sort, for every order and a choice of filters and places."""
    value, dice = VALUES[sort], random.Random(sort)
    for trial in range(40):
        episodes = some(dice.randrange(900), seed=trial)
        where, down = dice.choice(list(FILTERS)), dice.random() < 0.5
        top, rows = dice.randrange(30), dice.randrange(40)
        # Of equal ones those in flight stand first.
        found = sorted(filter(FILTERS[where], episodes), key=lambda one: one.phase == "done")
        known = sorted((one for one in found if value(one) is not None), key=value, reverse=down)
        if sort == "age":
            # What is in flight stands first.
            known.sort(key=lambda one: one.phase == "done")
        whole = [*known, *(one for one in found if value(one) is None)]
        window = Window(where=where, sort=sort, down=down, top=top, rows=rows)
        selected = select(episodes, window, NOW_S)
        assert selected.total == len(found)
        assert selected.rows == tuple(row(one, NOW_S) for one in whole[top : top + rows])
        assert selected == in_parts(episodes, window, dice.randrange(1, 300))
