"""Episodes as a table: its rows, a filter, an order, and the window of it that somebody looks at.

The engine answers such questions about what is in flight, the dashboard about what is recorded: the cost is bound by
the screen, not by the run.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from engine.errors import ConfigError

PROTOCOL = 1
"""Version of what the engine and the dashboard say to each other; both refuse another."""
PHASES = ("queued", "policy", "tool", "user", "scoring", "done")
"""What an episode waits for, in the order of a turn."""
BINS = 20
"""Of a histogram of rewards from 0 to 1; the last holds 1 itself."""
NEWEST_REWARDS = 2_048
"""How many it counts."""
MOST_ROWS = 200
"""Rows of one answer."""

_LONG_S = 1e8
"""Longer than any run."""
_CONDITION = re.compile(r"([a-z]+)(<=|>=|!=|=|<|>|~)(.+)")
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "~": lambda value, part: part in value,
}


def bin_of(reward: float) -> int:
    """Its place in such a histogram; what is outside counts at the edge."""
    return min(BINS - 1, int(min(max(reward, 0.0), 1.0) * BINS))


class Seen(Protocol):
    """An episode in flight or on record, as far as a row shows it."""

    @property
    def id(self) -> str: ...  # noqa: D102
    @property
    def group_id(self) -> str: ...  # noqa: D102
    @property
    def task_id(self) -> str: ...  # noqa: D102
    @property
    def phase(self) -> str:
        """One of PHASES."""
        ...

    @property
    def turn(self) -> int:
        """Turns so far."""
        ...

    @property
    def tokens(self) -> int:
        """Ids in its ledger."""
        ...

    @property
    def start_s(self) -> float:
        """When it began, on the run's clock."""
        ...

    @property
    def phase_s(self) -> float:
        """When its phase began."""
        ...

    @property
    def version(self) -> int:
        """The adapter version that it is pinned to."""
        ...

    @property
    def reward(self) -> float | None:
        """Once it is scored."""
        ...

    @property
    def outcome(self) -> str:
        """Once it has ended, else empty."""
        ...


_Episode = TypeVar("_Episode", bound=Seen)


class WindowRow(NamedTuple):
    """One line of the table."""

    id: str
    group: str
    task: str
    phase: str
    turn: int
    tokens: int
    age_s: float
    """Seconds since it began; of one that has ended, how long it took."""
    wait_s: float
    """Seconds in its phase."""
    version: int
    reward: float | None
    outcome: str


def row(seen: Seen, now_s: float) -> WindowRow:
    """The line of an episode at `now_s` on the run's clock."""
    end_s = seen.phase_s if seen.phase == "done" else now_s
    return WindowRow(
        id=seen.id,
        group=seen.group_id,
        task=seen.task_id,
        phase=seen.phase,
        turn=seen.turn,
        tokens=seen.tokens,
        age_s=max(0.0, end_s - seen.start_s),
        wait_s=max(0.0, now_s - seen.phase_s),
        version=seen.version,
        reward=seen.reward,
        outcome=seen.outcome,
    )


class _Field(NamedTuple):
    column: Callable[[Sequence[Seen], float], list[Any]]
    """Its value in each of these episodes, at a moment on the run's clock."""
    kind: type[str | float]


def _attribute(name: str, kind: type[str | float]) -> _Field:
    get = operator.attrgetter(name)
    return _Field(lambda episodes, _: list(map(get, episodes)), kind)


def _ages(episodes: Sequence[Seen], now_s: float) -> list[float]:
    return [(seen.phase_s if seen.phase == "done" else now_s) - seen.start_s for seen in episodes]


def _waits(episodes: Sequence[Seen], now_s: float) -> list[float]:
    return [now_s - seen.phase_s for seen in episodes]


WINDOW_FIELDS = {
    "id": _attribute("id", str),
    "group": _attribute("group_id", str),
    "task": _attribute("task_id", str),
    "phase": _attribute("phase", str),
    "turn": _attribute("turn", float),
    "tokens": _attribute("tokens", float),
    "age": _Field(_ages, float),
    "wait": _Field(_waits, float),
    "version": _attribute("version", float),
    "reward": _attribute("reward", float),
    "outcome": _attribute("outcome", str),
}
"""What a table can be sorted and filtered by."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One `field op value` of a filter."""

    field: str
    op: str
    value: str | float

    def kept(self, episodes: Sequence[_Episode], now_s: float) -> list[_Episode]:
        """Those that meet it; a value that is not there yet meets nothing.

        By columns, not by episodes: ten thousand are asked while the engine waits."""
        values, compare, wanted = WINDOW_FIELDS[self.field].column(episodes, now_s), _COMPARE[self.op], self.value
        if WINDOW_FIELDS[self.field].kind is str:
            values = list(map(str.lower, values))
        pairs = zip(episodes, values, strict=True)
        return [seen for seen, value in pairs if value is not None and compare(value, wanted)]


def conditions(where: str) -> tuple[Condition, ...]:
    """The conditions of a filter: words like `phase=tool turn>5 task~retail reward<1`, all of which must hold.

    A word without an operator is a part of the task's name. Raises ConfigError for what cannot be understood."""
    return tuple(map(_condition, where.lower().split()))


def _condition(word: str) -> Condition:
    found = _CONDITION.fullmatch(word)
    if found is None:
        if word.isascii() and not word.replace("-", "").replace("_", "").replace("/", "").isalnum():
            raise ConfigError(f"filter {word!r}: write FIELD OP VALUE without spaces, like phase=tool or turn>5")
        return Condition("task", "~", word)
    name, op, text = found.groups()
    if name not in WINDOW_FIELDS:
        raise ConfigError(f"filter {word!r}: there is no field {name}; there are {', '.join(WINDOW_FIELDS)}")
    if WINDOW_FIELDS[name].kind is str:
        return Condition(name, op, _phase(text) if name == "phase" else text)
    if op == "~":
        raise ConfigError(f"filter {word!r}: ~ looks for a part of a text, and {name} is a number")
    try:
        return Condition(name, op, float(text))
    except ValueError:
        raise ConfigError(f"filter {word!r}: {name} is a number, and {text!r} is none") from None


def _phase(text: str) -> str:
    """A phase by its name, or by its beginning, as the table shows it."""
    return next((phase for phase in PHASES if phase.startswith(text)), text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Which rows are looked at."""

    where: str = ""
    sort: str = "age"
    """One of FIELDS; what an episode has not got yet stands last."""
    down: bool = True
    """Largest first."""
    grouped: bool = False
    """Members of a group stand together, whatever `sort` says."""
    top: int = 0
    rows: int = 60

    @property
    def end(self) -> int:
        """The row behind the last."""
        return self.top + min(self.rows, MOST_ROWS)

    @property
    def by_age(self) -> bool:
        """Whether it shows all, the oldest first."""
        return self.sort == "age" and self.down and not (self.grouped or self.where.strip())


class Selected(NamedTuple):
    """What a window shows."""

    rows: tuple[WindowRow, ...]
    total: int
    """Rows that pass the filter."""


class Selection(Generic[_Episode]):
    """The rows of a window, found part by part, so that whoever has a loop to serve can let it run in between.

    Added are those in flight, in the order in which they began, then those that have ended."""

    def __init__(self, window: Window, now_s: float) -> None:
        """Raises ConfigError for a filter that cannot be understood, and for an unknown field to sort by."""
        if window.sort not in WINDOW_FIELDS:
            raise ConfigError(f"there is no field {window.sort} to sort by; there are {', '.join(WINDOW_FIELDS)}")
        self.total = 0
        """Of those added, how many pass the filter."""
        self._window, self._now_s, self._conditions = window, now_s, conditions(window.where)
        self._down = window.down and not window.grouped
        self._first: list[tuple[Any, _Episode]] = []
        """What stands first of all that were added, with what it is sorted by."""
        self._playing: set[str] = set()
        """Groups with a member in flight."""

    def add(self, part: Sequence[_Episode]) -> None:
        """Look at some more."""
        for condition in self._conditions:
            part = condition.kept(part, self._now_s)
        self.total += len(part)
        found = list(zip(self._values(part), part, strict=True))
        if len(self._first) == self._window.end > 0:
            # Of ten thousand few come before the hundred that are first so far.
            edge = self._first[-1][0]
            found = [one for one in found if (one[0] > edge if self._down else one[0] < edge)]
        if found:
            ordered = sorted([*self._first, *found], key=operator.itemgetter(0), reverse=self._down)
            self._first = ordered[: self._window.end]

    def rows(self) -> tuple[WindowRow, ...]:
        """What the window shows."""
        return tuple(row(seen, self._now_s) for _, seen in self._first[self._window.top :])

    def _values(self, part: Sequence[_Episode]) -> Sequence[Any]:
        """What they are sorted by; equal ones stay as they were added."""
        if self._window.grouped:
            self._playing.update(seen.group_id for seen in part if seen.phase != "done")
            # "~" sorts behind every id.
            return [seen.id if seen.group_id in self._playing else f"~{seen.id}" for seen in part]
        values = WINDOW_FIELDS[self._window.sort].column(part, self._now_s)
        if self._window.sort == "age":
            # What has ended stands behind. To the microsecond: what took as long is equal, however floats are rounded.
            behind = -_LONG_S if self._down else _LONG_S
            return [round(age + behind * (seen.phase == "done"), 6) for age, seen in zip(values, part, strict=True)]
        absent = float("-inf") if self._down else float("inf")
        return [absent if value is None else value for value in values]


def select(episodes: Sequence[Seen], window: Window, now_s: float) -> Selected:
    """The rows of a window over `episodes`, which are in the order in which they began.

    Raises ConfigError as Selection does."""
    selection: Selection[Seen] = Selection(window, now_s)
    selection.add([seen for seen in episodes if seen.phase != "done"])
    selection.add([seen for seen in episodes if seen.phase == "done"])
    return Selected(selection.rows(), selection.total)
