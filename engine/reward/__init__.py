"""Rewards: rubric checks over recorded events, and R = F · (N + I) / 2."""
