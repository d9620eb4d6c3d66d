"""Iterations of Boltzmann inversion and of relative entropy: run, compare, improve, until within the tolerance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ccg_gmx.cycle.table_measure import measure_run
from ccg_gmx.cycle.table_request import ModelRun, Runner, TableFolder, TableRequest
from ccg_gmx.engine.run_files import storing
from ccg_gmx.errors import TrajectoryError
from ccg_gmx.molecule.coarse_topology import CoarseTopology
from ccg_gmx.potential.distributions import Distributions
from ccg_gmx.potential.distributions_file import load_distributions
from ccg_gmx.potential.inversion import (
    UpdateSettings,
    direct_inversion,
    finished_model,
    iterative_step,
)
from ccg_gmx.potential.layout import ModelLayout
from ccg_gmx.potential.model import CoarseModel
from ccg_gmx.potential.npz_file import load_arrays, save_arrays
from ccg_gmx.potential.pressure import Pressure, correct_pressure, pressure_response
from ccg_gmx.potential.relative_entropy import Features, FeatureSampler, NewtonSettings, newton_step, sample_features

_FEATURES = ("ccg features", 1)


@dataclass
class TableLoop:
    """The iterations of one job.

    Iteration 0 is a run with the direct inversion: the start that errors are measured against. The best model is the
    last one if it converged, else that of the smallest error.

    Attributes:
        request: the job.
        topology: the beads.
        store: its folder.
        target: distributions wanted.
        blank: the basis.
        runner: runs a model.
        log: gets a line for every iteration.
    """

    request: TableRequest
    topology: CoarseTopology
    store: TableFolder
    target: Distributions
    blank: CoarseModel
    runner: Runner
    log: Callable[[str], None]
    _foreseen: float | None = None
    _drift: float = 0.0

    def run(self) -> tuple[CoarseModel, bool, dict[str, Any]]:
        """Iterate; gives the model, whether it is within all tolerances, and what the summary says of it."""
        model = direct_inversion(self.target, self.blank, self.request.basis)
        records: list[dict[str, Any]] = []
        for number in range(self.request.iterations + 1):
            model = self._model(number, model)
            record = self.store.record(number) or self._iterate(number, model)
            record |= self._judged(record, records)
            records.append(record)
            self.log(_line(record))
            if record["done"] or number == self.request.iterations:
                break
            model = self._next(number, model, record)
        best = records[-1] if records[-1]["done"] else min(records, key=_badness)
        chosen = CoarseModel.load(self.store.iteration(best["iteration"]) / "model.npz")
        return chosen, bool(best["done"]), self._summary(best, records)

    def _model(self, number: int, model: CoarseModel) -> CoarseModel:
        """Model of an iteration, as its file has it if there is one."""
        path = self.store.iteration(number) / "model.npz"
        if path.exists():
            return CoarseModel.load(path)
        with storing(self.store.root):
            model.save(path)
        return model

    def _iterate(self, number: int, model: CoarseModel) -> dict[str, Any]:
        """Run a model, measure it, write the record."""
        folder, seed = self.store.iteration(number), self.request.seed + number
        run = self.runner(model, folder / "run", seed)
        record: dict[str, Any] = {"iteration": number, "seed": seed, "run": run.info}
        record |= self._measure(folder, model, run)
        self.store.finish(number, record)
        return record

    def _measure(self, folder: Path, model: CoarseModel, run: ModelRun) -> dict[str, Any]:
        features = FeatureSampler(self._layout) if self.request.method == "re" else None
        measured = measure_run(self.request, self.topology, self.target, model, run, folder, features)
        if features is not None:
            with storing(folder):
                _save_features(features.result(), folder / "features.npz")
        return measured

    def _judged(self, record: dict[str, Any], before: list[dict[str, Any]]) -> dict[str, Any]:
        """Ratios to the start, and which tolerances are met; the start itself never is the end."""
        start = before[0] if before else record
        pairs = record["rdf_squared_error"] is not None
        name = "rdf_squared_error" if pairs else "bonded_error"
        ratio = record[name] / start[name] if start[name] else 0.0
        noise = record["rdf_noise"] if pairs else record["bonded_noise"]
        structure = ratio <= self.request.tolerance or (record[name] or 0.0) <= (noise or 0.0)
        if pairs:
            structure &= abs(record["first_peak_ratio"] - 1.0) <= self.request.peak_tolerance
        wanted = self.request.pressure_bar
        level = wanted is None or abs(record["pressure_bar"] - wanted) <= (record["pressure_error"] or 0.0)
        return {"ratio": ratio, "structure": structure, "level": level, "done": bool(before) and structure and level}

    def _next(self, number: int, model: CoarseModel, record: dict[str, Any]) -> CoarseModel:
        """Improve the structure where it is off, and the pressure where that is."""
        folder, request = self.store.iteration(number), self.request
        found = load_distributions(folder / "distributions.npz")
        for key, part in found.pairs.items():
            if not part.counts.any():
                raise TrajectoryError(
                    f"the run of iteration {number} has no pairs of {'-'.join(key)} within {request.range:g} nm",
                    expected="a radial distribution function that is not empty",
                    remedy="run longer, or start from a better model",
                )
        moved = not record["structure"] or number == 0
        if moved:
            model = self._improved(folder, model, found)
        if request.pressure_bar is not None:
            model = self._levelled(model, found, record, moved)
        return model

    def _improved(self, folder: Path, model: CoarseModel, found: Distributions) -> CoarseModel:
        """Take a step of the method."""
        request = self.request
        if request.method == "ibi":
            return iterative_step(model, found, self.target, request.basis, UpdateSettings(request.damping))
        features, settings = _load_features(folder / "features.npz"), NewtonSettings(request.damping)
        step = newton_step(self._layout, model, features, self._target_features, settings)
        return finished_model(step.model, self.target, request.basis)

    def _levelled(self, model: CoarseModel, found: Distributions, record: dict[str, Any], moved: bool) -> CoarseModel:
        """Correct the pressure that is to be expected.

        A step of the method moves the pressure too, time after time in the same direction. What the last steps did
        beyond their ramps, averaged with halving weights, is what the next one is expected to do; without that the
        pressure settles off its target.
        """
        assert self.request.pressure_bar is not None
        present, before = record["pressure_bar"], self._foreseen
        if before is not None:
            self._drift = 0.5 * (self._drift + present - before)
        expected = Pressure(present + (self._drift if moved else 0.0), record["pressure_error"] or 0.0)
        model, height = correct_pressure(model, found, expected, self.request.pressure_bar)
        self._foreseen = present + height * pressure_response(model, found) if moved else None
        return model

    @cached_property
    def _layout(self) -> ModelLayout:
        return ModelLayout(self.blank, self.topology)

    @cached_property
    def _target_features(self) -> Features:
        """Features of the target, from the folder if they are there."""
        path = self.store.root / "target_features.npz"
        if path.exists():
            return _load_features(path)
        found = sample_features(self._layout, self.request.frames(self.topology.n_beads))
        with storing(self.store.root):
            _save_features(found, path)
        return found

    def _summary(self, best: dict[str, Any], records: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "tables": {
                "iterations": len(records) - 1,
                "best_iteration": best["iteration"],
                "rdf_error_ratio": best["ratio"],
                "rdf_squared_error": best["rdf_squared_error"],
                "bonded_error": best["bonded_error"],
                "bonded_noise": best["bonded_noise"],
                "rdf_noise": best["rdf_noise"],
                "rdf_noise_limit": best["rdf_noise_limit"],
                "first_peak_ratio": best["first_peak_ratio"],
                "pressure_bar": best["pressure_bar"],
                "pressure_error": best["pressure_error"],
                "pressure_target_bar": self.request.pressure_bar,
            },
            "iterations": records,
        }


def _badness(record: dict[str, Any]) -> tuple[bool, float]:
    return not record["level"], record["ratio"]


def _line(record: dict[str, Any]) -> str:
    text = f"iteration {record['iteration']:3d}: error / start {record['ratio']:.4f}"
    if record["first_peak_ratio"] is not None:
        text += f", first peak {record['first_peak_ratio']:.3f}"
    if record["pressure_bar"] is not None:
        text += f", {record['pressure_bar']:.0f} +- {record['pressure_error'] or 0.0:.0f} bar"
    return text


def _save_features(found: Features, path: Path) -> None:
    header = {"format": _FEATURES[0], "version": _FEATURES[1], "frames": found.frames}
    save_arrays(path, header, {"mean": found.mean, "covariance": found.covariance, "error": found.error})


def _load_features(path: Path) -> Features:
    header, arrays = load_arrays(path, *_FEATURES)
    return Features(arrays["mean"], arrays["covariance"], arrays["error"], int(header["frames"]))
