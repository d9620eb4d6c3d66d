"""Which engine can run a coarse model, and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ccg_gmx.engine.coarse_settings import EngineName
from ccg_gmx.engine.gromacs import Gmx
from ccg_gmx.engine.plumed_build import Plugin
from ccg_gmx.engine.plumed_setup import make_plugin
from ccg_gmx.errors import CcgError, SettingsError, ToolMissingError
from ccg_gmx.export.openmm_system import import_openmm
from ccg_gmx.molecule.coarse_topology import CoarseTopology
from ccg_gmx.potential.model import CoarseModel

MOST_LISTED_PAIRS = 20_000
"""Pairs of one molecule that GROMACS gets as bonds: it computes all of them in every step, far ones too."""


@dataclass(frozen=True)
class Choice:
    """An engine and the reason for it.

    Attributes:
        engine: its name.
        why: one sentence.
        plugin: the PLUMED plug-in, where it is used.
    """

    engine: EngineName
    why: str
    plugin: Plugin | None = None


def choose_engine(model: CoarseModel, topology: CoarseTopology, wanted: str = "auto") -> Choice:
    """Choose an engine that computes every term of a model.

    Args:
        model: the potentials.
        topology: the beads.
        wanted: ``auto`` or an engine's name.

    Raises:
        SettingsError: if the engine that is asked for cannot run this model.
        ToolMissingError: if the program it needs is missing, or no engine is left.
    """
    native = _native(model, topology)
    if wanted == "gromacs":
        if native is None:
            raise SettingsError(
                f"engine: gromacs for pairs between {_molecules(topology)} molecules of {topology.n_beads} beads",
                expected="no pairs, or those of one small molecule: GROMACS has no tables for others",
                remedy="use engine: auto, gromacs+plumed or openmm",
            )
        return Choice("gromacs", native)
    if wanted == "gromacs+plumed":
        if not model.pairs:
            raise SettingsError("engine: gromacs+plumed for a model without pairs", remedy="use engine: gromacs")
        return Choice("gromacs+plumed", "asked for", _plugin())
    if wanted == "openmm":
        import_openmm()
        return Choice("openmm", "asked for")
    return _automatic(native)


def _automatic(native: str | None) -> Choice:
    no_gmx, _ = _missing(Gmx.find)
    if native is not None and no_gmx is None:
        return Choice("gromacs", native)
    no_plugin, plugin = (no_gmx, None) if no_gmx is not None else _missing(_plugin)
    if native is None and plugin is not None:
        why = "GROMACS has no tables for pairs between molecules; PAIR_TABLE of our PLUMED plug-in adds them"
        return Choice("gromacs+plumed", why, plugin)
    no_openmm, _ = _missing(import_openmm)
    lacking = f"GROMACS: {no_gmx}" if no_gmx else f"PLUMED plug-in: {no_plugin}"
    if no_openmm is None:
        return Choice("openmm", f"OpenMM computes every term, and for GROMACS something is missing ({lacking})")
    remedy = "install GROMACS" if native is not None else "run `ccg plumed build`"
    raise ToolMissingError(
        f"no engine for this coarse model ({lacking}; OpenMM: {no_openmm})",
        remedy=f"{remedy}, or `pip install ccg_gmx[openmm]`",
    )


def _native(model: CoarseModel, topology: CoarseTopology) -> str | None:
    """Why GROMACS alone can run it; None if it cannot."""
    if not model.pairs:
        return "all terms are bonded, and GROMACS has tables and CMAPs for them"
    listed = topology.n_beads * (topology.n_beads - 1) // 2
    if _molecules(topology) == 1 and listed <= MOST_LISTED_PAIRS:
        return (
            "all pairs are within one molecule, and GROMACS takes them as tabulated bonds without exclusions (type 9)"
        )
    return None


def _molecules(topology: CoarseTopology) -> int:
    return sum(count for _, count in topology.molecules)


def _plugin() -> Plugin:
    """The plug-in, built if need be. `ccg plumed build` also tests its other action, which takes longer."""
    return make_plugin(test=False)


def _missing(find: Callable[[], object]) -> tuple[str | None, Plugin | None]:
    """What is missing, in words, or None; and what was found if that is a plug-in."""
    try:
        found = find()
    except CcgError as error:
        return error.found, None
    return None, found if isinstance(found, Plugin) else None
