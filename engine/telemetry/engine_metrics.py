"""The keys of the engine's metrics.jsonl, one row a second."""

from collections.abc import Mapping
from typing import NamedTuple

from engine.telemetry.metrics import declare
from engine.types import Outcome, Phase

RUN_S = declare("time/run_s", "s", "The run's clock, continued over resumes")
EPISODES_LIVE = declare("episodes/live_count", "1", "Training episodes in flight now")
EVAL_LIVE = declare("episodes/eval_live_count", "1", "Evaluation episodes in flight now")
EPISODES_STARTED = declare("episodes/started_count", "1", "Training episodes that this process started", "counter")
EPISODES_FINISHED = declare("episodes/finished_count", "1", "Training episodes finished so far", "counter")
EPISODES_MASKED = declare("episodes/masked_count", "1", "Training episodes that ended without a reward", "counter")
GROUPS_ADMITTED = declare("groups/admitted_count", "1", "Groups admitted over the life of the run", "total")
GROUPS_WRITTEN = declare("groups/written_count", "1", "Groups acknowledged to the stream", "total")
GROUPS_TRAINED = declare("groups/trained_count", "1", "Groups trained, as far as the budget counts them", "total")
GROUPS_DROPPED = declare("groups/dropped_count", "1", "Groups that the learner dropped", "total")
TURNS_FINISHED = declare("turns/finished_count", "1", "Turns finished so far", "counter")
TOKENS_SAMPLED = declare("tokens/sampled_count", "1", "Policy tokens of finished episodes", "counter")
TOKENS_TOTAL = declare("tokens/total_count", "1", "All tokens of finished episodes", "counter")
REWARD_MEAN = declare("reward/train_mean", "1", "Mean reward over the last 64 groups")
F_MEAN = declare("reward/F_mean", "1", "Mean of the forbidden gate over the last 64 groups")
N_MEAN = declare("reward/N_mean", "1", "Mean subgoal fraction over the last 64 groups")
I_MEAN = declare("reward/I_mean", "1", "Mean interaction fraction over the last 64 groups")
ADAPTER_VERSION = declare("adapter/version_number", "1", "The version that new episodes get")
ADAPTERS_LOADED = declare("adapter/loaded_count", "1", "Versions that the servers hold")
POLICY_QUEUE = declare("policy/queue_count", "1", "Requests that wait inside the policy servers")
POLICY_RUNNING = declare("policy/running_count", "1", "Requests that the policy servers compute now")
KV_USED = declare("policy/kv_used_share", "1", "Share of the KV cache in use, of the fullest policy server")
PROMPT_TOKENS = declare("policy/prompt_tokens_count", "1", "Prompt tokens of all turns", "counter")
CACHED_TOKENS = declare("policy/cached_tokens_count", "1", "Of these, tokens that a server had in its cache", "counter")
SERVERS_DOWN = declare("policy/servers_down_count", "1", "Policy servers that get no traffic now")
LIVE_SLOTS = declare("schedule/live_slots_count", "1", "Training episodes that may be live at once")
WAIT_ADMISSION = declare(
    "wait/admission_s", "s", "Seconds with a full budget, times the share of free slots", "counter"
)
LAG_P50 = declare("loop/lag_p50_s", "s", "Median delay of the event loop over the last minute")
LAG_P99 = declare("loop/lag_p99_s", "s", "99th percentile of the delay of the event loop over the last minute")
CPU_S = declare("process/cpu_s", "s", "CPU seconds of the engine process", "counter")
RSS = declare("process/rss_bytes", "B", "Resident memory of the engine process")
STREAM_BYTES = declare("stream/bytes_count", "B", "Bytes appended to the stream by this process", "counter")


class StageKeys(NamedTuple):
    """The keys of one stage of an episode."""

    ended: str
    p50_s: str
    p95_s: str
    p99_s: str


def _stage(stage: Phase, what: str) -> StageKeys:
    return StageKeys(
        declare(f"stage/{stage}_count", "1", f"Times that episodes {what}", "counter"),
        declare(f"stage/{stage}_p50_s", "s", f"Median seconds that episodes {what}, of the newest 512"),
        declare(f"stage/{stage}_p95_s", "s", f"95th percentile of the seconds that episodes {what}"),
        declare(f"stage/{stage}_p99_s", "s", f"99th percentile of the seconds that episodes {what}"),
    )


STAGES: Mapping[Phase, StageKeys] = {
    "queued": _stage("queued", "waited to begin"),
    "policy": _stage("policy", "waited for the policy"),
    "tool": _stage("tool", "waited for a tool"),
    "user": _stage("user", "waited for the user"),
    "scoring": _stage("scoring", "were scored"),
}
OUTCOMES: Mapping[Outcome, str] = {
    outcome: declare(f"outcome/{outcome}_count", "1", f"Training episodes that ended as {outcome}", "counter")
    for outcome in Outcome
}
