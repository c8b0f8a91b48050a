"""A run in flight: its files, and one question to its engine a look; once it is over, its records.

::

    engine answers ──▶ live        nobody answers, but somebody works on the run ──▶ starting
                                   nobody works on it ──▶ ended or lost: tui.replay, until an engine answers again
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import anyio
import anyio.to_thread

from engine.errors import RunError
from engine.rundir.layout import RunDir
from engine.telemetry.stages import ToolRow
from engine.telemetry.window import BINS, Window, WindowRow, conditions
from tui.files import RunFiles, Told, run_facts
from tui.followed import MALFORMED, Followed
from tui.runs import Life, engine_has_ended, last_words, life
from tui.snapshot import Conversation, RunFacts, RunState, Snapshot, SnapshotQuery
from tui.wire import NoEngineError, SocketClient, UnansweredError, WireMessage

if TYPE_CHECKING:
    from tui.replay import RecordedSource

__all__ = ["LiveSource", "SocketClient"]

_MOST_FOLLOWED = 16
_RECORDS_S = 2.0
"""Between two searches of the records for one episode."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """The last that could be read."""

    window: Window = field(default_factory=Window)
    clock_s: float = 0.0
    rows: Sequence[WindowRow] = ()
    total: int = 0
    phases: Mapping[str, int] = field(default_factory=dict)
    rewards: Sequence[int] = (0,) * BINS
    tools: Sequence[ToolRow] = ()
    lags: Sequence[int] = ()

    @classmethod
    def of(cls, message: WireMessage, window: Window) -> _Answer:
        """Raises one of MALFORMED."""
        return cls(
            window=window,
            clock_s=float(message["clock"]),
            rows=tuple(WindowRow(*values) for values in message["rows"]),
            total=int(message["total"]),
            phases={str(phase): int(count) for phase, count in message["phases"].items()},
            rewards=tuple(map(int, message["rewards"])),
            tools=tuple(ToolRow(*values) for values in message.get("tools", ())),
            lags=tuple(map(int, message.get("lag", ()))),
        )


class _Base(NamedTuple):
    """What the files gave in this look."""

    facts: RunFacts
    told: Told


class LiveSource:
    """Snapshots of a run in flight.

    Making one reads nothing. `look` raises ConfigError for a filter that cannot be understood, and ConfigError or
    RunError if the directory is no run; whatever becomes of the engine is told by state and note."""

    def __init__(self, run: RunDir) -> None:
        self._run = run
        self._files = RunFiles(run)
        self._facts: RunFacts | None = None
        self._past: RecordedSource | None = None
        self._client: SocketClient | None = None
        self._connections = 0
        self._answer = _Answer()
        self._followed: dict[str, Followed] = {}
        self._recorded: tuple[float, str, Sequence[Conversation]] = (0.0, "", ())
        """When the records were searched for which episode, and what they have."""
        self._lock = anyio.Lock()

    async def look(self, question: SnapshotQuery) -> Snapshot:
        """The state now."""
        conditions(question.window.where)
        async with self._lock:
            base = await anyio.to_thread.run_sync(self._read)
            try:
                note = await self._ask(question, base.facts)
            except NoEngineError:
                return await self._alone(question, base)
            except UnansweredError as problem:
                note = str(problem)
            return await self._snapshot(question, base, "live", note)

    async def cancel(self, episode_id: str) -> str:
        """Ask the engine to end an episode; returns what became of that."""
        if self._client is None:
            return "the engine was not found yet"
        try:
            answer = await self._client.ask({"cancel": episode_id})
        except UnansweredError as problem:
            return f"{episode_id} was not cancelled: {problem}"
        return str(answer.get("said", "the engine said nothing"))

    async def close(self) -> None:
        """Let go of files and socket."""
        async with self._lock:
            if self._client is not None:
                await self._client.close()
            await anyio.to_thread.run_sync(self._files.close)

    # --- asking -----------------------------------------------------------------------------------------------------

    def _read(self) -> _Base:
        if self._facts is None:
            self._facts = run_facts(self._run)
        if self._client is None:
            self._client = SocketClient(self._run.socket)
        self._files.read()
        return _Base(self._facts, self._files.now())

    def _records(self) -> RecordedSource:
        """The source of what is recorded; not for the event loop."""
        if self._past is None:
            # A run in flight seldom needs it, and numpy takes a sixth of the time until the first frame.
            from tui.replay import RecordedSource  # noqa: PLC0415

            self._past = RecordedSource(self._run, files=self._files)
        return self._past

    async def _ask(self, question: SnapshotQuery, facts: RunFacts) -> str:
        """Take one answer; returns a note if it cannot be read. Raises UnansweredError or NoEngineError."""
        assert self._client is not None
        await self._client.connect()
        if self._client.connections != self._connections:
            # Another engine may play an episode of the same id anew.
            self._connections = self._client.connections
            self._followed.clear()
        wanted = list(_wanted(question, facts.group_size))
        self._followed = {one: known for one, known in self._followed.items() if one in wanted}
        message = await self._client.ask(_message(question, wanted, self._followed))
        try:
            self._answer = _Answer.of(message, question.window)
            for one in wanted:
                self._merge(one, message["episodes"].get(one))
        except MALFORMED as error:
            return f"the engine's answer cannot be read: {type(error).__name__}: {error}"
        return ""

    def _merge(self, episode_id: str, delta: Mapping[str, Any] | None) -> None:
        """What is not in flight any more stays as it was told last."""
        if delta is None:
            return
        if episode_id in self._followed:
            self._followed[episode_id].add(delta)
        else:
            self._followed[episode_id] = Followed.begun(delta)

    # --- answering --------------------------------------------------------------------------------------------------

    async def _snapshot(self, question: SnapshotQuery, base: _Base, state: RunState, note: str) -> Snapshot:
        answer, told = self._answer, base.told
        whole = Snapshot(
            run=base.facts,
            state=state,
            clock_s=answer.clock_s or told.clock_s,
            phase=told.phase,
            step=told.step,
            window=answer.window,
            rows=answer.rows,
            total=answer.total,
            phases=answer.phases,
            rewards=answer.rewards,
            tools=answer.tools,
            lags=answer.lags,
            engine=told.engine,
            learner=told.learner,
            swaps=told.swaps,
            log=told.log,
            note="; ".join(filter(None, (note, told.note))),
        )
        if not question.follow:
            return whole
        shown = [self._shown(known.known) for _, known in sorted(self._followed.items())]
        episode = next((one for one in shown if one.row.id == question.follow), None)
        if episode is None:
            shown = list(await self._from_records(question.follow, whole.clock_s))
            episode = next((one for one in shown if one.row.id == question.follow), None)
        return replace(whole, episode=episode, siblings=tuple(shown) if question.siblings else ())

    def _shown(self, known: Conversation) -> Conversation:
        advantage = self._files.advantage(known.row.id)
        return known if advantage is None else replace(known, advantage=advantage)

    async def _from_records(self, episode_id: str, clock_s: float) -> Sequence[Conversation]:
        """The group of an episode that the engine does not have, as it was recorded; empty if it is not there."""
        searched_s, searched, found = self._recorded
        now_s = anyio.current_time()
        if searched != episode_id or (not found and now_s > searched_s + _RECORDS_S):
            past = await anyio.to_thread.run_sync(self._records)
            found = await anyio.to_thread.run_sync(past.recorded_group, episode_id, clock_s)
            self._recorded = now_s, episode_id, found
        return found

    async def _alone(self, question: SnapshotQuery, base: _Base) -> Snapshot:
        """The state where no engine answers."""
        state, note = await anyio.to_thread.run_sync(self._standing)
        if state != "starting":
            past = await anyio.to_thread.run_sync(self._records)
            past.state = state
            shown = await past.look(question)
            return replace(shown, note="; ".join(filter(None, (note, shown.note))))
        # The rows of an engine that is gone are of no episode any more; a conversation may still be read.
        self._answer = _Answer(window=question.window)
        return await self._snapshot(question, base, "starting", note)

    def _standing(self) -> tuple[RunState, str]:
        try:
            found, words = life(self._run), last_words(self._run)
            if found is Life.ALIVE and engine_has_ended(self._run):
                found = Life.ENDED
        except (RunError, OSError, KeyError, TypeError) as error:
            return "lost", f"nobody knows who works on this run: {error}"
        if found is Life.ALIVE and self._connections:
            return "starting", "the engine is gone; it is started again"
        states: dict[Life, RunState] = {Life.ENDED: "ended", Life.LOST: "lost"}
        return states.get(found, "starting"), words if found is Life.ENDED else ""


def _wanted(question: SnapshotQuery, group_size: int) -> Iterator[str]:
    """The episodes to ask for, the followed one first: it gets the room that there is in an answer."""
    if not question.follow:
        return
    yield question.follow
    group, _, member = question.follow.rpartition(".")
    # An evaluation plays each task once.
    if question.siblings and member.isdecimal() and not group.startswith("e"):
        first = max(0, min(int(member) - _MOST_FOLLOWED // 2, group_size - _MOST_FOLLOWED))
        others = (f"{group}.{index:02d}" for index in range(first, min(first + _MOST_FOLLOWED, group_size)))
        yield from (other for other in others if other != question.follow)


def _message(question: SnapshotQuery, wanted: Sequence[str], followed: Mapping[str, Followed]) -> WireMessage:
    nothing = dict.fromkeys(("messages", "events", "timings", "ids", "logprobs", "spans"), 0)
    window = question.window
    have = {one: followed[one].have() if one in followed else nothing for one in wanted}
    return {
        "where": window.where,
        "sort": window.sort,
        "down": window.down,
        "grouped": window.grouped,
        "top": window.top,
        "rows": window.rows,
        "stages": question.stages,
        "follow": [{"id": one, "have": counts} for one, counts in have.items()],
    }
