"""Metrics and the loop-lag probe; logs are in engine.telemetry.log, which a dashboard has no use for.

All declarations are loaded with the package, so that METRICS is the whole table in every process.
"""

from engine.telemetry import engine_metrics, learner_metrics, simulator_metrics
from engine.telemetry.looplag import LoopLag
from engine.telemetry.metrics import METRICS, Metric, MetricsFile, declare

__all__ = [
    "METRICS",
    "LoopLag",
    "Metric",
    "MetricsFile",
    "declare",
    "engine_metrics",
    "learner_metrics",
    "simulator_metrics",
]
