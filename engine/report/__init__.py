"""What a run says about itself: progress while it works, then summary, charts and report.

Reads files only (docs/architecture.md), so every part of it also works on a run of another machine.
"""
