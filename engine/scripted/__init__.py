"""Scripted implementations of the seams, for tests, benches and dry runs: no model, no torch, no simulator.

In process: `policy.launch = "scripted"` with `policy.script` naming a policy of this package; `world.kind`, `user.kind`
and `scorer.kind` may name the constant ones. As processes: ``python -m engine.scripted server`` (a mock policy server
with seeded faults), ``python -m engine.scripted endpoint`` (an LLM endpoint, OpenAI-compatible and SGLang-native: plays
tool, user and judge from rules or a cassette, with seeded faults) and ``python -m engine.scripted learner RUN_DIR``
(consumes groups at a set pace, publishes zero adapters).
"""

from engine.scripted.constant import ConstantScorer, ConstantUser, ConstantWorld
from engine.scripted.policy import GoldPolicy, SlowPolicy

__all__ = ["ConstantScorer", "ConstantUser", "ConstantWorld", "GoldPolicy", "SlowPolicy"]
