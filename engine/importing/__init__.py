"""Tasks of other projects' formats as tasks of ours: pure functions from their JSON to engine.task values and a report.

An importer invents nothing: what it cannot derive by a stated rule stays out, and the report says so, per field.
"""
