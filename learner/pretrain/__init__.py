"""Makes the tiny base model that ships with the package: corpus by a scripted actor, tokenizer, training, probes.

It is a tool of its own beside the learner: no module of the learner is imported here, and none imports this package.
"""
