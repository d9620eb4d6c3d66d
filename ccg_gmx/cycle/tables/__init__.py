"""The tables workflow: fine MD of many molecules, beads, tabulated coarse potentials, coarse MD, exports."""
