"""The screens: rollouts, learner, engine, log, episode, group, and the list of runs."""
