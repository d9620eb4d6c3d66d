"""The backmap workflow: fine frames, a model that puts atoms on beads, restored frames, score card."""
