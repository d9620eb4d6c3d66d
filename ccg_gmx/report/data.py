"""What the report shows, loaded and ready to be drawn."""

from __future__ import annotations

from dataclasses import dataclass, field

from ccg_gmx.cycle.stages.hidden_modes import HiddenModeReport
from ccg_gmx.free_energy.coverage import Coverage
from ccg_gmx.free_energy.hidden_modes import WalkerSeries
from ccg_gmx.records import FloatArray, FreeEnergySurface, WeightedDraws


@dataclass(frozen=True)
class SurfaceView:
    """A free energy over one or two torsions, and what to show it beside; all over the same torsions.

    Attributes:
        surface: this run's, with errors.
        reference: to compare with, or None.
        coarse: of the coarse MD's histogram, or None.
        raw: estimate of every point before the joint fit, or None.
    """

    surface: FreeEnergySurface
    reference: FreeEnergySurface | None = None
    coarse: FreeEnergySurface | None = None
    raw: FreeEnergySurface | None = None


@dataclass(frozen=True)
class HiddenCheck:
    """The test for slow motions that the coarse torsions do not show.

    Attributes:
        report: its outcome.
        series: its walkers.
    """

    report: HiddenModeReport
    series: WalkerSeries


@dataclass(frozen=True)
class ReportData:
    """Everything the HTML report shows.

    Attributes:
        summary: content of summary.json.
        views: the free energy itself with one or two torsions, its marginals over all pairs with more; at least one.
        losses: name -> ``[steps]`` loss curve.
        draws: the final draws, points of different K in different records.
        fine_s: ``[T, n_s]`` radians, coarse torsions of all fine frames, or None.
        coverage: what of the surface fine MD has never seen, or None.
        hidden: the test for hidden slow motions, or None where the run has none.
        distributions: "class/name" -> (fine values ``[T]``, restored values ``[R]``, their normalised weights
            ``[R]``); class is bond, angle or torsion; nm or radians.
        turns: one dict per cycle turn (index, moved_kT, kish_fraction_median, forward_kl, ...).
        coarse_terms: name -> (grid ``[G]``, potential in kJ/mol ``[G]``) of the coarse model's bonded tables.
        coarse_maps: torsions -> ``[n, n]`` kJ/mol, every torsion-pair grid of the coarse model.
    """

    summary: dict[str, object]
    views: tuple[SurfaceView, ...]
    losses: dict[str, FloatArray] = field(default_factory=dict)
    draws: tuple[WeightedDraws, ...] = ()
    fine_s: FloatArray | None = None
    coverage: Coverage | None = None
    hidden: HiddenCheck | None = None
    distributions: dict[str, tuple[FloatArray, FloatArray, FloatArray]] = field(default_factory=dict)
    turns: list[dict[str, float]] = field(default_factory=list)
    coarse_terms: dict[str, tuple[FloatArray, FloatArray]] = field(default_factory=dict)
    coarse_maps: dict[tuple[str, ...], FloatArray] = field(default_factory=dict)

    @property
    def torsions(self) -> tuple[str, ...]:
        """The coarse torsions in the order of the columns of s: all views in turn name them in that order."""
        return tuple(dict.fromkeys(name for view in self.views for name in view.surface.names))

    @property
    def several(self) -> bool:
        """Whether the views are marginals of a surface that cannot be shown as a whole."""
        return len(self.views) > 1
