"""The learner: reads finished groups from the trajectory stream, runs GRPO on a LoRA adapter, publishes versions.

One process (`python -m learner RUN_DIR`), or several ranks of it under torchrun. Reading order: loop (one step after
another), forming (which groups make a step), rows and forward (how episodes become log-probabilities), loss, step, then
checkpoint and publish; ranks and follow for several. The run directory is its only link to the engine.

Tensor suffixes are the shape legend: `_B` row, `_T` token, `_P` policy token (flattened over rows), `_V` vocabulary.
"""
