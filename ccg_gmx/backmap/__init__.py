"""Backmapping: one flow for molecules of any length, shared by the kinds of their fragments."""
