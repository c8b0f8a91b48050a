"""synth-engine: an asynchronous streaming agent-simulation engine that trains small agentic models in mock worlds."""
