"""The AgenticQwen task format: a JSON array of tasks, each a prompt, prose and expected calls (docs/agenticqwen.md)."""
