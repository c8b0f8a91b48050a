"""Where tasks come from: the procedural tiny family, and the planted trajectories that prove a pack."""
