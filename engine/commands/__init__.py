"""The commands of `synth-engine`, one per file; each module holds `command`. engine.cli imports them when called."""
