"""JSON values: what a record can hold."""
