"""`synth-engine audit`: every invariant of a run, recomputed from what was recorded and from nothing else.

One pass over the stream feeds all checks (check.Check); each ends in one Finding. To add a check, write a class with
`see` and `finding`, and name it in run.checks.
"""
