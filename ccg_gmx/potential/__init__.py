"""Coarse potentials in a linear basis and their fit."""
