"""A source of the dashboard that says what a test wants: one group of four episodes, among many others."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from engine.errors import ConfigError
from engine.telemetry import engine_metrics as keys
from engine.telemetry.stages import ToolRow
from engine.telemetry.window import PHASES, WindowRow, conditions
from engine.types import Event, EventKind, Outcome, Reward, Span, TurnTiming, Verdict
from tui.snapshot import Conversation, LogLine, RunFacts, RunState, Snapshot, SnapshotQuery

HOSTILE = "[red]x[/] \x1b[2J\x1b]0;owned\x07 \u202egnp.exe \u2066 \ud800 end"
FACTS = RunFacts(
    path=Path("/runs/demo"),
    id="demo-1f0c2a9b",
    model="tiny-model",
    steps=50,
    group_size=4,
    groups_per_step=2,
    max_staleness=1,
    live_most=64,
    most_turns=8,
    most_tokens=1024,
)


def row(number: int, *, phase: str = "policy", reward: float | None = None) -> WindowRow:
    """One line of the table."""
    group, index = divmod(number, 4)
    return WindowRow(
        id=f"g{group:06d}.{index:02d}",
        group=f"g{group:06d}",
        task=f"retail/{group}",
        phase=phase,
        turn=number % 9,
        tokens=100 + number,
        age_s=float(number % 50),
        wait_s=1.5,
        version=3,
        reward=reward,
        outcome="agent_ok" if phase == "done" else "",
    )


def talk(number: int, *, ended: bool = False, text: str = "Your order is #17.") -> Conversation:
    """An episode of two turns: a call, then words; the odd ones ask the user first."""
    call = Event(
        number=0, turn=0, kind=EventKind.CALLED, text='{"order":17}', tool="get_order", arguments={"id": number}
    )
    words = Event(number=1, turn=1, kind=EventKind.ANSWERED, text=text)
    if number % 2:
        call = Event(number=0, turn=0, kind=EventKind.SAID, text="Which order?", revealed=("order",))
    items = (
        Verdict(id="s1", part="subgoal", met=not number % 2, evidence=0),
        Verdict(id="f1", part="forbidden", met=False),
    )
    reward = Reward(value=1.0 - number % 2, F=1.0, N=1.0 - number % 2, I=1.0, items=items) if ended else None
    return Conversation(
        row=row(number, phase="done" if ended else "tool", reward=reward.value if reward else None),
        messages=(
            {"role": "system", "content": "Follow the rules."},
            {"role": "user", "content": "Look up my order."},
            {"role": "assistant", "content": "<tool_call>…</tool_call>"},
            {"role": "tool", "content": '{"order":17}'},
            {"role": "assistant", "content": text},
        ),
        events=(call, words),
        timings=(
            TurnTiming(turn=0, phase="policy", start_s=1.0, end_s=2.5),
            TurnTiming(turn=0, phase="tool", start_s=2.5, end_s=3.0),
            TurnTiming(turn=1, phase="policy", start_s=3.0, end_s=4.0),
        ),
        ids=tuple(range(40)),
        logprobs=(-0.1,) * 12,
        spans=(Span(start=10, length=6, version=3), Span(start=24, length=6, version=4)),
        most_turns=8,
        most_tokens=1024,
        stop="answer" if ended else "",
        reward=reward,
        advantage=0.5 if ended else None,
        instruction="Look up my order.",
        rubric={("subgoal", "s1"): "Looks the order up.", ("forbidden", "f1"): "Tells a secret."},
    )


@dataclass
class Canned:
    """Answers every question; `asked` keeps them."""

    rows: list[WindowRow] = field(
        default_factory=lambda: [row(number, phase=PHASES[number % 5]) for number in range(400)]
    )
    state: RunState = "live"
    text: str = "Your order is #17."
    ended: bool = True
    note: str = ""
    asked: list[SnapshotQuery] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    closed: bool = False

    async def look(self, question: SnapshotQuery) -> Snapshot:
        """As a source does."""
        self.asked.append(question)
        if "boom" in question.window.where:
            raise ConfigError("filter 'boom': there is no such thing")
        conditions(question.window.where)
        window = question.window
        shown = self.rows[window.top : window.top + window.rows]
        number = int(question.follow.removeprefix("g").replace(".", "")) if question.follow else 0
        group, index = divmod(number, 100)
        episode = talk(4 * group + index, ended=self.ended, text=self.text) if question.follow else None
        siblings = [talk(4 * group + one, ended=self.ended, text=self.text) for one in range(4)]
        return Snapshot(
            run=FACTS,
            state=self.state,
            clock_s=754.0,
            phase="training",
            step=7,
            window=window,
            rows=shown,
            total=len(self.rows),
            phases=dict.fromkeys(PHASES, 80),
            rewards=(5, *(0,) * 18, 9),
            engine=tuple(engine_row(second) for second in range(60)),
            learner=tuple(learner_row(step) for step in range(7)),
            swaps=({"event": "load", "server": "http://a", "version": 3, "start_s": 9.0, "end_s": 9.4, "ok": True},),
            tools=(ToolRow("get_order", 1_234, 5, 1, 0.012, 0.4), ToolRow("[red]x[/]\x1b[2J", 1, 0, 0, 0.0, 0.0)),
            lags=(2_950, 40, 8, 2, 0),
            log=(
                LogLine("12:00:01", "info", "engine", "phase", {"phase": "training"}),
                LogLine("12:00:02", "warning", "engine", "slow", {"episode": "g000003.01", "why": self.text}),
            ),
            episode=episode,
            siblings=siblings if question.siblings else (),
            note=self.note,
        )

    async def cancel(self, episode_id: str) -> str:
        """As a source does."""
        self.cancelled.append(episode_id)
        return f"{episode_id} ends"

    async def close(self) -> None:
        """As a source does."""
        self.closed = True


@dataclass
class CannedReplay(Canned):
    """The same with a clock."""

    speed: float = 1.0
    clock_s: float = 100.0
    state: RunState = "replay"

    def seek(self, clock_s: float) -> None:
        """Show this moment."""
        self.clock_s = clock_s

    async def look(self, question: SnapshotQuery) -> Snapshot:
        """As a source does, at its moment."""
        return replace(await super().look(question), clock_s=self.clock_s, span_s=(0.0, 1000.0))


def engine_row(second: int) -> dict[str, float]:
    """A row of metrics.jsonl."""
    return {
        keys.RUN_S: 700.0 + second,
        keys.EPISODES_FINISHED: 2.0 * second,
        keys.TURNS_FINISHED: 10.0 * second,
        keys.TOKENS_SAMPLED: 500.0 * second,
        keys.REWARD_MEAN: second / 100,
        keys.F_MEAN: 1.0,
        keys.N_MEAN: 0.5,
        keys.I_MEAN: 0.25,
        keys.LAG_P99: 0.005,
        keys.CPU_S: 0.3 * second,
        keys.RSS: 2e8,
        keys.ADAPTER_VERSION: 7,
        keys.GROUPS_ADMITTED: 20,
        keys.GROUPS_WRITTEN: 17,
        keys.GROUPS_TRAINED: 14,
        keys.GROUPS_DROPPED: 1,
        keys.LIVE_SLOTS: 64,
        keys.PROMPT_TOKENS: 1_000 * second,
        keys.CACHED_TOKENS: 750 * second,
        keys.STAGES["tool"].ended: 40 * second,
        keys.STAGES["tool"].p50_s: 0.012,
        keys.STAGES["tool"].p95_s: 0.4,
        keys.STAGES["tool"].p99_s: 61.0,
        keys.OUTCOMES[Outcome.TOOL_FAULT]: 3,
        "endpoint.sim/batch_8_count": 3 * second,
        "endpoint.sim/batch_16_count": second,
        "endpoint.judge/batch_8_count": second,
    }


def learner_row(step: int) -> dict[str, float]:
    """A row of learner/metrics.jsonl."""
    return {
        "learner/step_count": step + 1,
        "learner/reward_mean": step / 10,
        "learner/loss_mean": 0.01,
        "learner/forward_s": 2.0,
        "learner/backward_s": 3.0,
        "learner/staleness_0_tokens": 300,
        "learner/staleness_1_tokens": 100,
    }
