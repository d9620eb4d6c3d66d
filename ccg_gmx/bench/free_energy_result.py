"""The free energy benchmark in numbers: the JSON, and a table for people."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ccg_gmx.bench.convergence import Arrival, Point, PowerLaw, arrival, best_forward_kl, fit_one_over_n
from ccg_gmx.bench.enhanced import Curve, mean_curve
from ccg_gmx.bench.our_cycle import Seed
from ccg_gmx.bench.plain_md import MdTask, Speed, load_histograms, md_curve, pooled_transitions
from ccg_gmx.bench.two_state import Relaxation, Transitions, relaxation, short_walker_factor
from ccg_gmx.records import FloatArray

MARK = 1e-3
"""Forward KL at which published work stops."""

LONG_WALKERS = 0.8
"""Walkers are long enough for the measured law to count if their KL is this part of one long run's (five tau)."""

VISITS = 5.0
"""Expected visits of the rarer state in the smallest fitted group; with fewer, groups that miss it set the slope."""

PUBLISHED = "published (arXiv 2402.01195, ff96 + OBC1): 15.9 to 216 times fewer evaluations than MD"
HOW = {
    "forward_kl": "sum of p ln(p / q) in nats over 100 x 100 bins, p the reference; its noise is not subtracted",
    "evaluations": "all energies of a run: MD steps, minimisation, training, draws, thrown-away ones",
    "others": "each surface of MD and of the adaptive bias is smoothed so that its own forward KL is smallest (kernel "
    "width and uniform part chosen with the reference in hand); ours are scored as they are",
    "md": "walkers start in equilibrium (torsions drawn from the reference), so that MD has no burn-in",
    "wall": "ours as it was; the others' evaluations over the speed of one core times the number of cores",
    "two_state_theory": "KL = tau / T of the slowest step alone: less than MD needs",
}


@dataclass(frozen=True)
class MdResult:
    """What plain MD says about the evaluations it needs.

    Attributes:
        points: measured forward KL at doubling numbers of steps.
        law: fitted 1/N law, None with too few points.
        relaxation: of the slowest step, None if no transition was seen.
        transitions: between the cores.
        walker_steps: length of each walker.
        p_b: population of the second state.
    """

    points: list[Point]
    law: PowerLaw | None
    relaxation: Relaxation | None
    transitions: Transitions
    walker_steps: float
    p_b: float

    @property
    def walker_factor(self) -> float:
        """How much better MD looks than one long run, because walkers start in equilibrium; 1 if it does not."""
        return 1.0 if self.relaxation is None else short_walker_factor(self.walker_steps, self.relaxation.tau_steps)

    @property
    def visits(self) -> float:
        """Expected visits of the rarer state in the first point of the law; nan without a law or a relaxation time."""
        if self.law is None or self.relaxation is None:
            return math.nan
        return self.law.first * self.p_b * (1 - self.p_b) / self.relaxation.tau_steps

    @property
    def established(self) -> bool:
        """Whether the fitted 1/N law is that of MD: slope -1, long walkers, and groups that saw the rarer state.

        The starts of short walkers are independent draws from the reference: their KL falls as 1/N too, but it is
        that of the draws, not of MD.
        """
        if self.law is None or not self.law.established:
            return False
        return self.relaxation is None or (self.walker_factor >= LONG_WALKERS and self.visits >= VISITS)

    @property
    def source(self) -> str | None:
        """Which of the two extrapolations is used: the fit where it is established, else theory."""
        if self.established:
            return "fit"
        return "two-state theory" if self.relaxation is not None else None

    @property
    def c(self) -> float:
        """Constant of KL = c / N, nats times steps; nan where nothing is known."""
        if self.source == "fit" and self.law is not None:
            return self.law.c
        return self.relaxation.tau_steps if self.relaxation is not None else math.nan

    @property
    def largest(self) -> float:
        """Steps of all walkers together."""
        return self.points[-1].evaluations

    def evaluations(self, kl: float) -> float:
        """Steps at which plain MD reaches a forward KL, measured or extrapolated."""
        return self.c / kl


def measure_md(p: FloatArray, p_b: float, tasks: dict[str, list[MdTask]]) -> MdResult:
    """Score finished batches of plain MD.

    Args:
        p: ``[n, n]`` probabilities of the reference.
        p_b: population of the second state.
        tasks: ``equilibrium`` and ``rare`` batches.
    """
    points = md_curve(p, tasks["equilibrium"])
    parts = [pooled_transitions(load_histograms(batch, batch[0].segments)) for batch in tasks.values()]
    transitions = parts[0] + parts[1]
    steps = float(tasks["equilibrium"][0].segments * tasks["equilibrium"][0].segment_steps)
    return MdResult(points, fit_one_over_n(points), relaxation(transitions, p_b), transitions, steps, p_b)


def assemble(
    reference: dict[str, Any],
    seeds: Sequence[Seed],
    biased: Sequence[Curve],
    md: MdResult,
    single: dict[str, Any],
    speed: Speed,
    dt_ps: float,
    machine: dict[str, Any],
) -> dict[str, Any]:
    """Put the result together.

    Args:
        reference: system, temperature and noise floor.
        seeds: our cycles.
        biased: adaptive-bias runs.
        md: plain MD.
        single: of :func:`score_single`.
        speed: of plain MD on one core.
        dt_ps: time step.
        machine: what it ran on, with ``cores``.
    """
    cores = int(machine["cores"])
    ratios = [md.evaluations(seed.forward_kl) / seed.evaluations for seed in seeds]
    walls = [md.evaluations(seed.forward_kl) / (speed.best * cores) / seed.wall_s for seed in seeds]
    return {
        **reference,
        "seeds": [seed.row() for seed in seeds],
        **_ratio("ratio_to_md", ratios),
        **_ratio("ratio_to_md_wall", walls),
        "ratio_to_md_at_least": _at_least(seeds, md),
        "enhanced": _enhanced_block(seeds, biased, cores),
        "md": _md_block(seeds, md, single, speed, dt_ps),
        "published": PUBLISHED,
        "how": HOW,
        "machine": machine,
    }


def score_single(p: FloatArray, tasks: Sequence[MdTask]) -> dict[str, Any]:
    """Forward KL of plain MD from one structure, all walkers in one histogram.

    Args:
        p: ``[n, n]`` probabilities of the reference.
        tasks: finished batches.
    """
    counts = load_histograms(tasks, tasks[0].segments)["counts"]
    score = best_forward_kl(p, counts.sum(axis=0, dtype=np.float64))
    steps = tasks[0].segments * tasks[0].segment_steps
    return {
        "evaluations": steps * len(counts),
        "walkers": len(counts),
        "forward_kl": score.kl,
        "forward_kl_raw": score.raw,
        "kernel_degrees": score.kernel_degrees,
        "uniform_part": score.uniform_part,
    }


def _ratio(name: str, values: Sequence[float]) -> dict[str, Any]:
    """Geometric mean and range."""
    return {
        name: float(np.exp(np.mean(np.log(values)))),
        f"{name}_range": [float(min(values)), float(max(values))],
    }


def _at_least(seeds: Sequence[Seed], md: MdResult) -> float:
    """Without any extrapolation: what MD had spent when it was still worse than every cycle, over the dearest cycle."""
    best = max(seed.forward_kl for seed in seeds)
    worse = [point.evaluations for point in md.points if point.kl > best]
    return max(worse, default=0.0) / max(seed.evaluations for seed in seeds)


def _md_block(
    seeds: Sequence[Seed], md: MdResult, single: dict[str, Any], speed: Speed, dt_ps: float
) -> dict[str, Any]:
    law, relaxed = md.law, md.relaxation
    ns = dt_ps * 1e-3
    block: dict[str, Any] = {
        "slope": law.slope if law else None,
        "slope_error": law.slope_error if law else None,
        "c": law.c if law else None,
        "c_error": law.c_error if law else None,
        "fitted_from_to": [law.first, law.last] if law else None,
        "established": md.established,
        "extrapolated_by": md.source,
        "extrapolated": {
            f"{MARK:g}": md.evaluations(MARK),
            **{f"cycle seed {seed.seed}": md.evaluations(seed.forward_kl) for seed in seeds},
        },
        "largest_N": md.largest,
        "walker_ns": md.walker_steps * ns,
        "transitions": vars(md.transitions),
        "single_start": single,
        "steps_per_s_one_core": speed.row(),
        "points": [point.row() for point in md.points],
    }
    if relaxed is not None:
        block |= {
            "tau_ns": relaxed.tau_steps * ns,
            "tau_error_ns": relaxed.tau_error * ns,
            "tau_from_transitions": relaxed.transitions,
            "c_two_state": relaxed.tau_steps,
            "walker_over_tau": md.walker_steps / relaxed.tau_steps,
            "short_walker_factor": md.walker_factor,
            "visits_in_first_fitted": md.visits,
            "c_of_one_long_run": law.c / md.walker_factor if law else None,
        }
    return block


def _enhanced_block(seeds: Sequence[Seed], curves: Sequence[Curve], cores: int) -> dict[str, Any]:
    evaluations, kl = mean_curve(curves)
    speed = float(np.mean([curve.steps_per_s for curve in curves]))
    reached = [arrival(evaluations, kl, seed.forward_kl) for seed in seeds]
    ratios = [there.evaluations / seed.evaluations for there, seed in zip(reached, seeds, strict=True)]
    walls = [there.evaluations / (speed * cores) / seed.wall_s for there, seed in zip(reached, seeds, strict=True)]
    mark = arrival(evaluations, kl, MARK)
    return {
        "method": curves[0].method,
        **_ratio("ratio", ratios),
        **_ratio("ratio_wall", walls),
        "extrapolated": any(there.extrapolated for there in reached),
        f"evaluations_at_{MARK:g}": _arrival_row(mark),
        "steps_per_s_one_core": speed,
        "mean": {"evaluations": list(evaluations), "forward_kl": list(kl)},
        "seeds": [vars(curve) for curve in curves],
    }


def _arrival_row(there: Arrival) -> dict[str, Any]:
    return {"evaluations": there.evaluations, "extrapolated": there.extrapolated}


def result_text(result: dict[str, Any]) -> str:
    """Format the result as a table for people.

    Args:
        result: of ``Bench.run``.
    """
    machine, floor = result["machine"], result["noise_floor"]
    load = machine["load_average"]
    lines = [
        f"{result['system']}, {result['temperature_K']:g} K; noise floor of the reference {floor:.1e} nats",
        f"{machine['processor']}, {machine['cores']} cores, GROMACS {machine['gmx']}, load {load['before']:.1f} to "
        f"{load['after']:.1f}",
        f"{'our cycle':<12} {'forward KL':>10} {'RMSD / kT':>10} {'delta_f / kJ/mol':>18} {'evaluations':>12} "
        f"{'wall / s':>9}",
    ]
    for row in result["seeds"]:
        difference = f"{row['delta_f_kJ_mol']:.2f} +- {row['delta_f_error']:.2f}"
        lines.append(
            f"seed {row['seed']:<7} {row['forward_kl']:>10.2e} {row['rmsd_kT']:>10.3f} {difference:>18} "
            f"{row['evaluations']:>12.3g} {row['wall_s']:>9.0f}"
        )
    lines += _md_text(result) + _enhanced_text(result)
    lines.append(result["published"])
    return "\n".join(lines + [f"{name}: {how}" for name, how in result["how"].items()])


def readable(value: float) -> str:
    """Three digits, and thousands with commas."""
    if not math.isfinite(value) or abs(value) < 1000:
        return f"{value:.3g}"
    return f"{float(f'{value:.3g}'):,.0f}"


def span(block: dict[str, Any], name: str) -> str:
    """A ratio with its range over the seeds."""
    low, high = block[f"{name}_range"]
    return f"{readable(block[name])} ({readable(low)} to {readable(high)})"


def _md_text(result: dict[str, Any]) -> list[str]:
    md = result["md"]
    single, lines = md["single_start"], []
    raw = "infinite" if not math.isfinite(single["forward_kl_raw"]) else f"{single['forward_kl_raw']:.2g}"
    lines.append(
        f"plain MD from one structure, {single['evaluations']:.3g} steps: forward KL {single['forward_kl']:.2g} "
        f"smoothed, {raw} as it is"
    )
    last = md["points"][-1]
    lines.append(f"plain MD from equilibrium, {md['largest_N']:.3g} steps: forward KL {last['kl']:.2g}")
    if md["slope"] is not None:
        first, end = md["fitted_from_to"]
        word = "established" if md["established"] else "NOT established"
        lines.append(
            f"  slope {md['slope']:.2f} +- {md['slope_error']:.2f} from {first:.2g} to {end:.2g} steps; 1/N is {word}; "
            f"c = {md['c']:.3g} +- {md['c_error']:.2g} steps"
        )
    if "tau_ns" in md:
        lines.append(
            f"  two states: tau {md['tau_ns']:.3g} +- {md['tau_error_ns']:.2g} ns from {md['tau_from_transitions']} "
            f"transitions, so c = {md['c_two_state']:.3g} steps"
        )
        lines.append(
            f"  walkers are {md['walker_over_tau']:.2g} tau long and start in equilibrium: their KL is "
            f"{md['short_walker_factor']:.2g} of one long run's; the smallest fitted group visits the rarer state "
            f"{md['visits_in_first_fitted']:.2g} times"
        )
    lines.append(f"  ratio without extrapolation: more than {readable(result['ratio_to_md_at_least'])}")
    if md["extrapolated_by"] is None:
        return [*lines, "  too short to say how many steps MD needs: give more --md-steps"]
    lines.append(
        f"  forward KL {MARK:g} after {md['extrapolated'][f'{MARK:g}']:.3g} steps, by {md['extrapolated_by']}",
    )
    lines.append(f"ratio to MD at equal forward KL: {span(result, 'ratio_to_md')} by evaluations")
    lines.append(f"                                 {span(result, 'ratio_to_md_wall')} by wall-clock time")
    return lines


def _enhanced_text(result: dict[str, Any]) -> list[str]:
    block = result["enhanced"]
    there = block[f"evaluations_at_{MARK:g}"]
    how = "extrapolated" if there["extrapolated"] else "measured"
    return [
        f"{block['method']}: forward KL {block['mean']['forward_kl'][-1]:.2g} after "
        f"{block['mean']['evaluations'][-1]:.3g} steps; {MARK:g} after {there['evaluations']:.3g} ({how})",
        f"ratio to {block['method']} at equal forward KL: {span(block, 'ratio')} by evaluations",
        f"                                 {span(block, 'ratio_wall')} by wall-clock time",
    ]
