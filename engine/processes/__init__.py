"""Child processes: started, watched and ended (child); which recorded process still runs (alive)."""
