"""Typed values of facts: what a draft's `type` means, how a value is drawn again, and how people write it."""
