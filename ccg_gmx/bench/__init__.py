"""Measurements of speed against the programs that users would otherwise run: ``ccg bench``."""
