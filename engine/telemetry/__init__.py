"""Logs, metrics and the loop-lag probe."""

from engine.telemetry.log import configure_logging
from engine.telemetry.looplag import LoopLag
from engine.telemetry.metrics import METRICS, Metric, MetricsFile, declare

__all__ = ["METRICS", "LoopLag", "Metric", "MetricsFile", "configure_logging", "declare"]
