"""Measuring a policy: the splits of a pack here; benchmarks, one suite per file, beside it."""
