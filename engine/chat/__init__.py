"""What the model reads and writes: its chat template, the incremental prompt, and the actions in its completions."""
