"""The static bias through the Colvars library inside GROMACS (2024 and later), where there is no PLUMED.

What it can express, found by trial with GROMACS 2025.2 (no Lepton, hence no ``customFunction``; no total forces, hence
no running ABF; no ``defaultInputStateFile``, hence no metadynamics from a grid): an ``abf`` bias that reads mean
gradients through ``inputPrefix`` and is told ``updateBias off``. Its force is constant within a bin. In one torsion
that is the exact force of a piecewise linear bias; in two it differs from the intended force by the variation within a
bin, 2 % rms at one degree, and the energy of the bias is not in the energy file. Colvars refuses ``inputPrefix``
together with the state in a checkpoint: ``mdrun -cpi`` fails, and a run goes on only by ``gmx grompp -t``.

AWH cannot hold a static bias: it changes its estimate in every update of a run, whatever ``awh1-user-data`` starts it
with, and smooths it by its force constant.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ccg_gmx.errors import SettingsError
from ccg_gmx.export.static_bias import StaticBias

PREFIX = "static_bias"
"""Stem of the two grid files that the configuration names."""

BINS = {1: 1440, 2: 360}
"""Bins per torsion for biases on one and on two."""

MDP_LINES = "colvars-active     = yes\ncolvars-configfile = {name}\n"

_COUNT = 1_000_000  # anything above fullSamples: the gradient then acts in full


def colvars_files(
    bias: StaticBias, torsions: Mapping[str, tuple[int, ...]], name: str = "colvars.dat"
) -> dict[str, str]:
    """Everything Colvars reads.

    Args:
        bias: the bias.
        torsions: name -> four atom numbers from 1, each torsion of the bias among them.
        name: of the configuration file.

    Returns:
        File name -> text: the configuration, gradients and counts.

    Raises:
        SettingsError: if a torsion of the bias has no atoms.
    """
    missing = [one for one in bias.names if one not in torsions]
    if missing:
        raise SettingsError(f"the bias is on {', '.join(bias.names)}", expected=f"four atoms for {missing[0]}")
    bins = BINS[len(bias.names)]
    gradients, counts = _grids(bias, bins)
    text = _configuration(bias, {one: torsions[one] for one in bias.names}, bins, name)
    return {name: text, f"{PREFIX}.grad": gradients, f"{PREFIX}.count": counts}


def _configuration(bias: StaticBias, torsions: Mapping[str, tuple[int, ...]], bins: int, name: str) -> str:
    lines = [
        f"# Static bias -f({', '.join(bias.names)}), capped at {bias.cap_kT:g} kT of {bias.temperature_K:g} K,",
        f"# written by ccg_gmx. It reads {PREFIX}.grad and {PREFIX}.count in the folder where mdrun runs. In the .mdp:",
        *(f"#   {line}" for line in MDP_LINES.format(name=name).splitlines()),
        "# A run cannot go on by mdrun -cpi: make a new .tpr with gmx grompp -t RUN.cpt instead.",
        "colvarsTrajFrequency 100",
        "",
    ]
    for one, atoms in torsions.items():
        lines += [
            "colvar {",
            f"  name {one}",
            f"  width {360 / bins:.12g}",
            "  lowerBoundary -180",
            "  upperBoundary 180",
        ]
        lines += ["  dihedral {", *(f"    group{k} {{ atomNumbers {atom} }}" for k, atom in enumerate(atoms, 1))]
        lines += ["  }", "}", ""]
    # `integrate off` would be natural here, but GROMACS 2025.2 then ends with a segmentation fault in grompp
    lines += ["abf {", "  name static", f"  colvars {' '.join(torsions)}", "  updateBias off", "  applyBias on"]
    return "\n".join([*lines, f"  inputPrefix {PREFIX}", "}", ""])


def _grids(bias: StaticBias, bins: int) -> tuple[str, str]:
    """Texts of the gradient and the count file: bins from -180 degrees, the last torsion fastest."""
    width, dims = 360 / bins, len(bias.names)
    header = f"# {dims}\n" + f"# -180 {width:.12g} {bins} 1\n" * dims + "\n"
    middles = -180 + width * (np.arange(bins) + 0.5)
    points = np.stack([axis.ravel() for axis in np.meshgrid(*(middles,) * dims, indexing="ij")], axis=-1)
    # the gradient of a free energy, of which abf applies the opposite as a bias
    slopes = np.stack([-np.radians(part).ravel() for part in bias.mean_gradients(bins)], axis=-1)
    at = [" ".join(f"{x:.6f}" for x in row) for row in points]
    gradients = [f"{where} {' '.join(f'{x:.8f}' for x in row)}" for where, row in zip(at, slopes, strict=True)]
    counts = [f"{where} {_COUNT}" for where in at]
    return header + _blocks(gradients, bins), header + _blocks(counts, bins)


def _blocks(rows: list[str], bins: int) -> str:
    return "\n\n".join("\n".join(rows[i : i + bins]) for i in range(0, len(rows), bins)) + "\n"
