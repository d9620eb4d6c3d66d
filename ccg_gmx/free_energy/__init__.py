"""Weights, estimators and free energy surfaces."""
