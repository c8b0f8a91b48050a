"""Textual's pilot waits after every key until nothing happens: looked at more often, that is noticed sooner.

To be imported by tests that press keys: they take two thirds of the time."""

from textual import _wait

_wait.SLEEP_GRANULARITY, _wait.SLEEP_IDLE = 0.005, 0.002
