"""Cycle coarse graining for GROMACS: a coarse model, the way back to atoms, and the free energy, from the same data."""

__version__ = "0.1.0"
