"""Running GROMACS and finding the tools around it."""
