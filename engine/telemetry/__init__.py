"""Metrics and the loop-lag probe; logs are in engine.telemetry.log, which a dashboard has no use for."""

from engine.telemetry.looplag import LoopLag
from engine.telemetry.metrics import METRICS, Metric, MetricsFile, declare

__all__ = ["METRICS", "LoopLag", "Metric", "MetricsFile", "declare"]
