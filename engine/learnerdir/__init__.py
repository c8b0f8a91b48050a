"""What a learner writes in a run directory: contracts that learner, simulated learner and readers share.

::

    learner/progress.json                  the only word to engine and supervisor: progress.LearnerProgress
    learner/steps.jsonl                    a row a step, from which `audit` recomputes it: steps.TrainedStep
    learner/checkpoint-NNNNN/state.json    what a resume continues from: checkpoint.CheckpointState
    adapters/vNNNNN/meta.json              what a published adapter is: adapter.AdapterMeta

It needs no torch. Values are read strictly: JSON of another shape is a RunError that names the file.
"""

UNUSABLE = (AttributeError, KeyError, TypeError, ValueError)
"""What reading JSON of another shape raises."""
RESTORE = "restore it from a copy, or start a new run"
