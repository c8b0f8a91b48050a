"""Servers that a run starts, for its policy and its endpoints: placement, memory, commands, SGLang's environment."""
