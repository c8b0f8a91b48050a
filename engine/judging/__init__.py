"""Judges asked about recorded episodes: several times, against checks and each other; or under changed rubrics.

What a judge is, and which there are, is engine.reward.judges.
"""
