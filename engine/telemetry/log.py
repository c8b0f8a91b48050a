"""Structured logs: JSON lines in the run directory, nothing on the terminal (that is for progress and summaries)."""

from __future__ import annotations

import logging
from pathlib import Path

import structlog


def configure_logging(path: Path, process: str) -> None:
    """Send structlog and the standard library's warnings to `path`, one JSON object a line, marked with `process`.

    A line is written where it is said, on the event loop too: there are few, and the last one before a crash counts."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(path.open("a", buffering=1, encoding="utf-8")),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(process=process)
