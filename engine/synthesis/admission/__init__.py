"""Admission: a task is played by scripts, and what they earn says whether it is one (docs/packs.md#admission).

admit     every test over a task: admit.admission_of gives an admit.TaskAdmission
proofs    schema, gold, forbidden, flips: the task can be solved, and each item of its rubric means one thing
floors    floor, gap, guess: nothing that an agent does without knowing what to do pays
leaks     leak: no private value is visible to somebody who does not ask
climbing  search: an agent that climbs its reward without asking does not get far
play      scripted episodes, in the task's own offline world
"""
