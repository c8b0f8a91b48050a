"""The dashboard: live rollouts in the terminal (`python -m tui RUN`).

A process of its own, and a client: a source gives one :class:`tui.snapshot.Snapshot` per tick, screens draw it. Nothing
here can slow an engine or change a run, but for the two commands that ask first.
"""
