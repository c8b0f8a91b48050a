"""Mock worlds: tasks and packs, tools, the state-aware mapping, and the offline simulator and user."""
