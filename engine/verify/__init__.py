"""Executing recorded episodes again: what the policy sampled and simulators answered is read, the rest done anew."""
