"""Every setting there is: one typed tree, one description per key (engine.config.keys)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from engine.config.endpoints import ENDPOINT_NAME, EndpointSection, SglangSection
from engine.config.keys import OBJECT, Modes, Section, key
from engine.types import Limits, Sampling


class RunSection(Section):
    """The run as a whole."""

    name: str = key("run", "Name of the run; its directory is <dir>/<name>", pattern=r"^[a-z0-9][a-z0-9._-]{0,40}$")
    dir: str = key("runs", "Where run directories live")
    seed: int = key(0, "Seed of the task order, of the policy server's sampler and of the learner", ge=0)
    steps: int = key(60, "Learner steps; the run ends after the last", ge=1, resumable=True)
    drain_s: float = key(30.0, "How long a stop waits for episodes in flight", gt=0, resumable=True)
    max_restarts: int = key(5, "Restarts of one process in ten minutes before the run gives up", ge=0, resumable=True)


class TasksSection(Section):
    """Where tasks come from."""

    pack: str = key("tiny", "A shipped pack by name, or the path of a .jsonl or .jsonl.zst file")


class ModelSection(Section):
    """The base model."""

    path: str = key(
        "tiny",
        "`tiny` (shipped), a directory in Hugging Face format, or a model of the Hugging Face hub by its id, such as "
        "Qwen/Qwen3-4B or Qwen/Qwen3-4B@main (a branch, a tag or a commit); a resumed run takes the same model from "
        "another place",
        resumable=True,
    )


_STARTED = ("embedded", "sglang")
STARTED: Modes = {"policy.launch": _STARTED}
"""A run starts its policy servers itself."""


class PolicySection(SglangSection):
    """Who samples the policy's tokens."""

    launch: Literal["embedded", "sglang", "none", "scripted"] = key(
        "embedded",
        "embedded: start our CPU server; sglang: start SGLang; none: use `urls`; scripted: no model at all (dry runs, "
        "load tests)",
    )
    urls: tuple[str, ...] = key(
        (), "Servers that speak SGLang's native API", only_if={"policy.launch": "none"}, resumable=True
    )
    api_key_env: str = key(
        "",
        "Environment variable that holds the API key of the servers in `urls`; empty: none is sent",
        only_if={"policy.launch": "none"},
        resumable=True,
    )
    script: str = key(
        "engine.scripted:GoldPolicy",
        "The scripted policy, as package:Object",
        only_if={"policy.launch": "scripted"},
    )
    update: Literal["pin"] = key("pin", "pin: all tokens of an episode come from one adapter version")
    system: str = key(
        "auto",
        "The system message; {rules} is replaced by the task's rules. auto: the rules alone for a model whose "
        "tokenizer has tokens for <question> and <answer>, and how to ask and how to finish for any other",
    )
    temperature: float = key(
        1.0, "Sampling temperature of training episodes and evaluations", gt=0, unless={"policy.launch": "scripted"}
    )
    servers: int = key(1, "Servers to start, each on a port of its own", ge=1, only_if=STARTED, resumable=True)
    start_s: float = key(
        600.0, "How long a server may take to get ready before the run gives up", gt=0, only_if=STARTED, resumable=True
    )
    threads: int = key(1, "Threads of each server that computes on the CPU", ge=1, only_if=STARTED, resumable=True)
    max_running: int = key(256, "Requests that one server decodes together", ge=1, only_if=STARTED)
    kv_tokens: Annotated[int, Field(ge=1)] | Literal["auto"] = key(
        "auto",
        "Tokens of each server's KV cache, at least limits.tokens; auto: a quarter of the free memory, at most 262,144 "
        "tokens (embedded), 200,000 tokens (SGLang without a GPU), or what SGLang finds room for (with one)",
        only_if=STARTED,
        resumable=True,
    )


class LimitsSection(Section):
    """When an episode ends on its own."""

    turns: int = key(8, "Turns of an episode; scored on what was done", ge=1)
    tokens: int = key(1024, "Ids of an episode, prompt and observations included; scored on what was done", ge=16)
    completion_tokens: int = key(48, "Sampled tokens of one turn", ge=1)
    wall_s: float = key(300.0, "Wall clock of an episode; masked", gt=0, resumable=True)
    turn_s: float = key(60.0, "Deadline of one completion, tool call or reply", gt=0, resumable=True)

    def value(self) -> Limits:
        """The limits as the episode loop takes them."""
        return Limits(**self.model_dump())


class ScheduleSection(Section):
    """How much is in flight."""

    group_size: int = key(12, "G: episodes of one task", ge=1)
    groups_per_step: int = key(10, "Usable groups that make a learner step", ge=1)
    max_staleness: int = key(
        1,
        "Oldest adapter version a step may train on, behind the newest; "
        "at most (max_staleness + 1) x groups_per_step x group_size episodes are live",
        ge=0,
    )
    live_slots: Annotated[int, Field(ge=1)] | Literal["auto"] = key(
        "auto", "Episodes that may be live at once; auto follows the policy server's queue", resumable=True
    )


_MAPPED: Modes = {"world.kind": ("offline", "llm")}
_LLM_USER: Modes = {"user.kind": "llm"}


class EvalSection(Section):
    """Validation during the run, held-out before and after."""

    every: int = key(10, "Steps between validations; 0 turns them off", ge=0, resumable=True)
    validation_tasks: int = key(
        64, "Tasks of one validation; its best adapter becomes adapters/best", ge=1, unless={"eval.every": 0}
    )
    heldout_tasks: int = key(400, "Held-out tasks, measured on version 0 and on the last version; 0 turns it off", ge=0)
    live_slots: int = key(
        128,
        "Evaluation episodes that may be live at once, beside the training ones",
        ge=1,
        unless={"eval.every": 0, "eval.heldout_tasks": 0},
    )


class WorldSection(Section):
    """Who answers tool calls, and what goes wrong there."""

    kind: str = key(
        "offline",
        "offline (no model), llm (a language model behind the mapping), or your own as package:Object",
        pattern=rf"^(offline|llm|{OBJECT})$",
    )
    endpoint: str = key("", "The endpoint that plays the tools", only_if={"world.kind": "llm"})
    mode: Literal["grow", "frozen", "private"] = key(
        "grow",
        "grow: the episodes of a task share their answers; frozen: calls without an answer find nothing; private: each "
        "episode has a world of its own",
        only_if=_MAPPED,
    )
    mapping: str = key(
        "",
        "A file of `synth-engine world export`: the run starts from its answers; empty: from none",
        only_if={**_MAPPED, "world.mode": ("grow", "frozen")},
    )
    faults: str = key(
        "",
        "Seeded faults by tool, such as `get_order: timeout=0.01, error=0.02; *: garbage=0.01, flaky=0.1`; * is "
        "every other tool, empty turns them off",
        only_if=_MAPPED,
    )


class UserSection(Section):
    """Who answers the agent's questions."""

    kind: str = key(
        "offline",
        "offline (no model), llm (a language model), or your own as package:Object",
        pattern=rf"^(offline|llm|{OBJECT})$",
    )
    endpoint: str = key("", "The endpoint that plays the users", only_if=_LLM_USER)
    profile: Literal["mixed", "cooperative", "terse", "forgetful", "corrects", "impatient", "adversarial"] = key(
        "cooperative",
        "How users behave; mixed: one drawn for each episode; adversarial: pursues the task's escape strategy",
        only_if=_LLM_USER,
    )


class ScorerSection(Section):
    """Who makes rewards."""

    kind: str = key(
        "rubric", "rubric (executable checks), or your own as package:Object", pattern=rf"^(rubric|{OBJECT})$"
    )
    judge: str = key(
        "",
        "The endpoint that decides rubric items without a check; empty: tasks that have such items are refused",
        only_if={"scorer.kind": "rubric"},
    )
    judge_kind: str = key(
        "llm",
        "How the judge decides; llm: asked once an episode, a verdict and its evidence for each item",
        pattern=ENDPOINT_NAME,
        only_if={"scorer.kind": "rubric"},
        unless={"scorer.judge": ""},
    )


GRPO: Modes = {"learner.kind": "grpo"}


class LearnerSection(Section):
    """The learner (docs/learner.md 1 and 3 has the reasons for its defaults)."""

    kind: Literal["grpo", "simulated"] = key(
        "grpo", "grpo: train a LoRA adapter; simulated: consume groups at a set pace and publish copies"
    )
    pace_s: float = key(1.0, "Seconds per step of the simulated learner", ge=0, only_if={"learner.kind": "simulated"})
    rank: int = key(16, "LoRA rank", ge=1)
    alpha: int = key(32, "LoRA alpha; the adapter is scaled by alpha / rank", ge=1)
    lr: float = key(1e-5, "Learning rate of Adam (betas 0.9, 0.95)", gt=0, only_if=GRPO)
    schedule: Literal["constant", "linear"] = key(
        "constant", "constant, or linear to 30 % of lr at run.steps", only_if=GRPO
    )
    warmup_steps: int = key(5, "Steps of linear warm-up", ge=0, only_if=GRPO)
    advantage: str = key(
        "group_std",
        "group_std: (R - mean) / (std + 1e-4); group_mean: R - mean; or your own as package:Object",
        pattern=rf"^(group_std|group_mean|{OBJECT})$",
        only_if=GRPO,
    )
    min_group_size: int = key(0, "Scored episodes that a group needs; 0 means max(2, G / 2)", ge=0, only_if=GRPO)
    clip_low: float = key(0.2, "Lower clip of the ratio", gt=0, only_if=GRPO)
    clip_high: float = key(0.28, "Upper clip of the ratio", gt=0, only_if=GRPO)
    ratio_cap: float = key(3.0, "delta: cap of the ratio where the advantage is negative", gt=1, only_if=GRPO)
    grad_clip: float = key(1.0, "Gradient norm is clipped to this", gt=0, only_if=GRPO)
    micro_batch_tokens: int = key(
        8192, "Padded tokens of one micro-batch; at least limits.tokens", ge=64, only_if=GRPO, resumable=True
    )
    gpus: tuple[Annotated[int, Field(ge=0)], ...] = key(
        (), "GPUs that train, one rank on each; empty: the CPU", only_if=GRPO, resumable=True
    )
    ranks: int = key(
        1, "Processes that share each step on the CPU; any number trains the same", ge=1, only_if=GRPO, resumable=True
    )
    recompute: bool = key(
        False,  # noqa: FBT003 - a default
        "Compute each layer again in the backward pass instead of keeping its activations: about a third slower, in a "
        "fraction of the memory",
        only_if=GRPO,
        resumable=True,
    )
    threads: int = key(1, "Torch threads of each rank", ge=1, only_if=GRPO, resumable=True)
    warm_start: str = key("", "Directory of an adapter to start from; empty starts at zero", only_if=GRPO)


class StreamSection(Section):
    """The trajectory stream and what is kept on disk."""

    segment_mb: float = key(64.0, "Size at which a new segment is started", gt=0, resumable=True)
    low_water_mb: float = key(512.0, "The run stops cleanly when less disk than this is free", ge=0, resumable=True)
    keep_adapters_every: int = key(10, "Of the old adapters, every n-th is kept (and the best)", ge=1, resumable=True)


class MetricsSection(Section):
    """Where the metrics go, beside the run directory (docs/metrics.md)."""

    writers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = key(
        (), "Written while the run works; each is an extra: pip install 'synth-engine[tensorboard]'", resumable=True
    )
    port: int = key(
        0, "Answer with Prometheus text on this port of 127.0.0.1 (0: do not)", ge=0, le=65_535, resumable=True
    )


class Config(Section):
    """The whole configuration."""

    run: RunSection = RunSection()
    tasks: TasksSection = TasksSection()
    model: ModelSection = ModelSection()
    policy: PolicySection = PolicySection()
    limits: LimitsSection = LimitsSection()
    schedule: ScheduleSection = ScheduleSection()
    eval: EvalSection = EvalSection()
    world: WorldSection = WorldSection()
    user: UserSection = UserSection()
    scorer: ScorerSection = ScorerSection()
    learner: LearnerSection = LearnerSection()
    stream: StreamSection = StreamSection()
    metrics: MetricsSection = MetricsSection()
    endpoints: dict[Annotated[str, StringConstraints(pattern=ENDPOINT_NAME)], EndpointSection] = key(
        {}, "Language models that play users, tools and judges, by name"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if self.policy.launch == "none" and not self.policy.urls:
            raise ValueError("policy.launch = 'none' needs policy.urls: name at least one server")
        if self.policy.launch == "scripted" and self.learner.kind == "grpo":
            raise ValueError("a scripted policy has no weights to train: set learner.kind = 'simulated'")
        if self.learner.kind == "grpo" and self.schedule.group_size < 2:
            raise ValueError("schedule.group_size must be at least 2: a group of one has no advantage")
        if self.learner.min_group_size > self.schedule.group_size:
            raise ValueError("learner.min_group_size is more than schedule.group_size: every group would be dropped")
        if self.learner.kind == "grpo" and self.learner.micro_batch_tokens < self.limits.tokens:
            raise ValueError(
                f"learner.micro_batch_tokens = {self.learner.micro_batch_tokens} cannot hold an episode of "
                f"limits.tokens = {self.limits.tokens}: raise the first or lower the second"
            )
        if self.learner.gpus and self.learner.ranks > 1:
            raise ValueError("learner.ranks is for the CPU: there is one rank on each of learner.gpus; remove it")
        if self.policy.system != "auto" and "{rules}" not in self.policy.system:
            raise ValueError("policy.system must contain {rules}, or the agent never sees its task's rules")
        return self

    @model_validator(mode="after")
    def _endpoints_named(self) -> Config:
        used = self.endpoint_of
        for who, name in used.items():
            if name not in self.endpoints:
                there = ", ".join(sorted(self.endpoints)) or "none"
                raise ValueError(f"{who} = {name!r}: there is no [endpoints.{name or 'NAME'}] (there: {there}); add it")
        if idle := sorted(set(self.endpoints) - set(used.values())):
            raise ValueError(
                f"[endpoints.{idle[0]}] has no effect: nobody names it in world.endpoint, user.endpoint or scorer.judge"
            )
        return self

    @property
    def endpoint_of(self) -> dict[str, str]:
        """The endpoint that each key names: tools, users and judges, as far as a language model plays them."""
        used = {"world.endpoint": self.world.endpoint} if self.world.kind == "llm" else {}
        used |= {"user.endpoint": self.user.endpoint} if self.user.kind == "llm" else {}
        return used | ({"scorer.judge": self.scorer.judge} if self.scorer.judge else {})

    @property
    def started_endpoints(self) -> dict[str, EndpointSection]:
        """Endpoints whose server a run starts itself, by name."""
        return {name: endpoint for name, endpoint in self.endpoints.items() if endpoint.launch == "sglang"}

    @property
    def group_budget(self) -> int:
        """Groups that may be admitted and not yet trained or dropped (docs/architecture.md)."""
        return (self.schedule.max_staleness + 1) * self.schedule.groups_per_step

    @property
    def max_live(self) -> int:
        """Most training episodes that can be live at once."""
        return self.group_budget * self.schedule.group_size

    @property
    def most_adapters(self) -> int:
        """Versions loaded at once: max_staleness of them, the current, the next, one evaluated, one draining."""
        return self.schedule.max_staleness + 4

    @property
    def adapter_slots(self) -> int:
        """Adapters that a server has room for: a spare beyond those, so that none is evicted."""
        return self.most_adapters + 1

    @property
    def started_servers(self) -> int:
        """Policy servers that a run starts itself."""
        return self.policy.servers if self.policy.launch in _STARTED else 0

    @property
    def sampling(self) -> Sampling:
        """How episodes are sampled."""
        return Sampling(temperature=self.policy.temperature)

    @property
    def learner_ranks(self) -> int:
        """Processes that train."""
        return len(self.learner.gpus) or self.learner.ranks

    @property
    def min_group_size(self) -> int:
        """Scored episodes that a group needs to be trained."""
        return self.learner.min_group_size or max(2, self.schedule.group_size // 2)
