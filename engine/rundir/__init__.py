"""The files of a run directory: where they lie and how they are written (layout), rows in SQLite (rows)."""
