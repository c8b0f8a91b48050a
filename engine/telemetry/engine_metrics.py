"""The keys of the engine's metrics.jsonl, one row a second."""

from engine.telemetry.metrics import declare

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
