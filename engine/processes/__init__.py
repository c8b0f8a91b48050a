"""Child processes: started, watched and ended (child); which recorded process still runs (alive);
on which event loop ours run (event_loop)."""
