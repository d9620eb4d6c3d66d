"""Stage of the rare-event-free test: is there a slow motion that the coarse torsions do not show?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import minimum_filter

from ccg_gmx.cycle.stages.fine import load_split
from ccg_gmx.cycle.stages.hidden_walkers import WalkerRun, make_seeds, run_walkers
from ccg_gmx.cycle.store import Work, read_json, write_json
from ccg_gmx.cycle.system import System
from ccg_gmx.errors import CcgError
from ccg_gmx.flow.checkpoint import load_flow
from ccg_gmx.free_energy.diagnostics import HiddenEvidence
from ccg_gmx.free_energy.hidden_modes import (
    HiddenMode,
    HiddenModeSettings,
    ModeState,
    WalkerSeries,
    find_hidden_modes,
    hot_gap_kT,
    mode_words,
)
from ccg_gmx.free_energy.surface_files import load_surface, read_npz, write_npz
from ccg_gmx.free_energy.surface_fit import SurfaceFit
from ccg_gmx.free_energy.torsion_grid import grid
from ccg_gmx.records import CoarseSplit, FloatArray, FreeEnergySurface

VERSION = 1
LOW_CAP_KT = 8.0
"""Lows of the surface above this are not looked at."""
SPREAD_FACTOR = 2.0
"""Points beyond the lows are drawn from exp(-f / this)."""


@dataclass(frozen=True)
class HiddenModeReport:
    """Outcome of the test.

    Attributes:
        torsions: names of the coarse torsions.
        points_degrees: the coarse points.
        walkers: walkers that were compared, per point.
        modes: at most one per point; empty when walkers agree everywhere.
        r_hat_max: largest split R-hat of all coordinates; slow, single-peaked coordinates raise it.
        walker_ps: time compared, per walker.
        left: assumption -> walkers that left it (handedness, cis/trans); they were not compared.
        hot_gap_kT: largest mean of ln w + f of a walker, kT, over all flows; nan without flows.
        relevant_kT: states higher than this above the lowest were not counted.
        evaluations: energies computed.
    """

    torsions: tuple[str, ...]
    points_degrees: tuple[tuple[float, ...], ...]
    walkers: tuple[int, ...]
    modes: tuple[HiddenMode, ...]
    r_hat_max: float
    walker_ps: float
    left: dict[str, int]
    hot_gap_kT: float
    relevant_kT: float
    evaluations: int

    @property
    def compared(self) -> bool:
        """Whether every point had walkers to compare."""
        return min(self.walkers) >= 2

    @property
    def passed(self) -> bool:
        """No hidden mode, and every point could be judged."""
        return self.compared and not self.modes

    def words(self) -> list[str]:
        """The outcome in sentences, for people."""
        lines = [mode_words(mode, self.torsions) for mode in self.modes]
        if not self.modes:
            exchange = self.walker_ps * min(self.walkers)
            lines.append(
                f"walkers at {len(self.walkers)} coarse points agree in every other coordinate: no slow motion is "
                f"hidden (states that exchange within about {exchange:.0f} ps count as fast)"
            )
        lines += [
            f"{count} walker{'s' if count > 1 else ''} left the assumed state of {name} and took no part"
            for name, count in self.left.items()
        ]
        if not self.compared:
            lines.append("at some points fewer than two walkers were left to compare: raise hidden_modes.walkers")
        if np.isfinite(self.hot_gap_kT):
            lines.append(f"the walkers' mean log-weights with the flow: at most {self.hot_gap_kT:.1f} kT")
        return lines

    def evidence(self) -> HiddenEvidence:
        """What the verdict needs."""
        sentences = tuple(mode_words(mode, self.torsions) for mode in self.modes)
        return HiddenEvidence(sentences, self.compared, self.hot_gap_kT)

    def as_json(self) -> dict[str, Any]:
        """The content of hidden_modes.json."""
        return {"version": VERSION, "passed": self.passed, "words": self.words(), **asdict(self)}


Progress = Callable[[int, int], object]


def check_hidden_modes(work: Work) -> None:
    """Run the test in a cycle; a killed one starts again, it takes seconds.

    Inputs: system, and where they exist: surface, split, flow0, flow1, ... Settings: hidden_modes (the block of the
    workflow), starts (torsions in degrees, used without a surface). Writes hidden_modes.json, hidden_modes.npz.
    """
    system = System.load(work.inputs["system"])
    settings = HiddenModeSettings(**work.settings.get("hidden_modes", {}))
    split, surface, f = None, None, None
    if "split" in work.inputs:
        split = load_fine_frames(work.inputs["split"])
    if "surface" in work.inputs:
        surface = load_surface(work.inputs["surface"] / "surface.npz")
        f = SurfaceFit.load(work.inputs["surface"] / "fit.npz").values
    flows = [load_flow(folder / "flow.pt") for name, folder in work.inputs.items() if name.startswith("flow")]
    points = choose_points(system.torsion_names, settings.points, work.seed, surface, work.settings.get("starts", []))
    report, run = run_check(system, points, settings, work.seed, split=split, flows=flows, f=f, progress=work.progress)
    save_check(work.folder, report, run.series)
    work.count(checks=report.evaluations)


def load_fine_frames(folder: Path) -> CoarseSplit:
    """Read all fine frames that the ``split`` stage wrote, training and held-out ones."""
    parts = [load_split(folder / f"{name}.npz") for name in ("split", "held_out")]
    return CoarseSplit(*(np.concatenate([getattr(p, key) for p in parts]) for key in ("s", "b", "y", "u", "run")))


def choose_points(
    names: Sequence[str],
    count: int,
    seed: int,
    surface: FreeEnergySurface | None = None,
    starts: Sequence[dict[str, float]] = (),
) -> FloatArray:
    """Coarse points ``[count, n_s]`` radians to hold walkers at.

    With a surface: its lows, lowest first, for up to half of them, then draws from exp(-f / 2). Without: the starts of
    the fine runs, then points spread evenly over the torsions at random (stratified in the first torsion).

    Args:
        names: the coarse torsions.
        count: points.
        seed: of the draws.
        surface: free energy as known so far.
        starts: torsion name -> degrees.
    """
    rng = np.random.default_rng([seed, 2])
    if surface is not None:
        lows = _lows(surface)[: max(1, count // 2)]
        p = np.exp(-(surface.f.ravel() - surface.f.min()) / SPREAD_FACTOR)
        drawn = rng.choice(p.size, size=count - len(lows), p=p / p.sum())
        return np.concatenate([lows, grid(len(surface.f), surface.f.ndim)[drawn]])
    given = np.radians([[start[name] for name in names] for start in starts]).reshape(-1, len(names))[:count]
    more = rng.uniform(-np.pi, np.pi, (count - len(given), len(names)))
    if len(more):
        more[:, 0] = -np.pi + 2 * np.pi * (np.arange(len(more)) + rng.random(len(more))) / len(more)
    return np.concatenate([given, more])


def _lows(surface: FreeEnergySurface) -> FloatArray:
    """Local minima ``[m, n_s]`` of the surface below the cap, lowest first; at most one per 10th of the circle."""
    width = max(3, len(surface.f) // 10)
    lowest = (surface.f == minimum_filter(surface.f, size=width, mode="wrap")) & (surface.f < LOW_CAP_KT)
    rows = np.flatnonzero(lowest.ravel())
    return grid(len(surface.f), surface.f.ndim)[rows[np.argsort(surface.f.ravel()[rows])]]


def run_check(
    system: System,
    points: FloatArray,
    settings: HiddenModeSettings,
    seed: int,
    *,
    split: CoarseSplit | None = None,
    flows: Sequence[Any] = (),
    f: Callable[[FloatArray], FloatArray] | None = None,
    progress: Progress | None = None,
) -> tuple[HiddenModeReport, WalkerRun]:
    """Run the walkers and compare them.

    Args:
        system: the molecule.
        points: ``[P, n_s]`` radians.
        settings: see there.
        seed: of everything random.
        split: fine frames, for cold seeds and to say which states fine MD knows; None: the starting structure.
        flows: conditional flows to be tried on the walkers' frames.
        f: free energy in kT at ``s [T, n_s]``, any offset; needed with flows.
        progress: called with (done, total).

    Raises:
        CcgError: if flows are given without f.
    """
    if flows and f is None:
        raise CcgError("flows without a free energy", expected="the surface they belong to")
    seeds = make_seeds(system, points, split, settings, seed)
    run = run_walkers(system, points, seeds, settings, seed, progress)
    walkers = np.bincount(run.series.point, minlength=len(points))
    fine = None if split is None else (split.s, np.concatenate([split.b, split.y], axis=1))
    modes, r_hat = find_hidden_modes(run.series, settings, fine)
    seen = float("nan")
    if flows and f is not None and len(run.frames.s):
        seen = hot_gap_kT(flows, run.frames, f(run.frames.s))
    report = HiddenModeReport(
        torsions=system.torsion_names,
        points_degrees=tuple(tuple(float(x) for x in row) for row in np.degrees(points)),
        walkers=tuple(int(x) for x in walkers),
        modes=tuple(modes),
        r_hat_max=r_hat,
        walker_ps=run.series.total_ps,
        left=run.left,
        hot_gap_kT=seen,
        relevant_kT=settings.relevant_kT,
        evaluations=run.evaluations,
    )
    return report, run


def save_check(folder: Path, report: HiddenModeReport, series: WalkerSeries) -> None:
    """Write hidden_modes.json, and hidden_modes.npz with what the plot shows."""
    write_npz(
        folder / "hidden_modes.npz",
        version=np.array(VERSION),
        values=series.values,
        energy=series.energy,
        names=np.array(series.names),
        periods=series.periods,
        points=series.points,
        point=series.point,
        hot=series.hot,
        total_ps=np.array(series.total_ps),
    )
    write_json(folder / "hidden_modes.json", report.as_json())


def load_check(folder: Path) -> tuple[HiddenModeReport, WalkerSeries]:
    """Read what ``save_check`` wrote."""
    content = read_json(folder / "hidden_modes.json")
    modes = tuple(
        HiddenMode(
            **{
                **mode,
                "s0_degrees": tuple(mode["s0_degrees"]),
                "states": tuple(ModeState(**state) for state in mode["states"]),
            }
        )
        for mode in content["modes"]
    )
    nan = float("nan")
    report = HiddenModeReport(
        torsions=tuple(content["torsions"]),
        points_degrees=tuple(tuple(row) for row in content["points_degrees"]),
        walkers=tuple(content["walkers"]),
        modes=modes,
        r_hat_max=content["r_hat_max"] if content["r_hat_max"] is not None else nan,
        walker_ps=content["walker_ps"],
        left=content["left"],
        hot_gap_kT=nan if content["hot_gap_kT"] is None else content["hot_gap_kT"],
        relevant_kT=content["relevant_kT"],
        evaluations=content["evaluations"],
    )
    keys = ("version", "values", "energy", "names", "periods", "points", "point", "hot", "total_ps")
    data = read_npz(folder / "hidden_modes.npz", keys, VERSION)
    series = WalkerSeries(
        values=data["values"],
        energy=data["energy"],
        names=tuple(str(name) for name in data["names"]),
        periods=data["periods"],
        points=data["points"],
        point=data["point"],
        hot=data["hot"],
        total_ps=float(data["total_ps"]),
    )
    return report, series
