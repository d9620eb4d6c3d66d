"""Internal coordinates of any bonded system on given beads: many molecules, rings, bridges, centre beads."""
