"""The engine process of one run: composed, driven through its phases, and what it publishes while it works."""
