"""The processes of one run, started, restarted and drained (supervisor), also without a terminal (background)."""
