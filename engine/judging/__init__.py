"""Judges measured (agreement, variance over repeats), and recorded episodes scored again under changed rubrics."""
