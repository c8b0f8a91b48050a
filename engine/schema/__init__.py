"""JSON from outside: one canonical form, JSON Schema, patterns in linear time, pointers, drawn values."""
