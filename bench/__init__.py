"""One question per file; each prints one table and writes one JSON (`python -m bench NAME`)."""
