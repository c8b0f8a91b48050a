"""Makes the tiny base model that ships with the package: corpus by a scripted actor, tokenizer, training, probes."""
