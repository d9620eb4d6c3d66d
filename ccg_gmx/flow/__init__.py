"""The conditional normalizing flow that restores fine coordinates from coarse ones."""
