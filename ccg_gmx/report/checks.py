"""Key numbers against their thresholds, and the verdict in one headline.

A number that is not finite never keeps a threshold, and a number that was not measured is never counted as kept.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ccg_gmx.free_energy.diagnostics import DiagnosticSettings
from ccg_gmx.report.words import (
    Summary,
    coarse_sentence,
    count,
    delta_f_sentence,
    forward_ess_sentence,
    forward_kl_sentence,
    kish_low_sentence,
    kish_min_sentence,
    kish_sentence,
    lookup,
    number,
    pareto_sentence,
    percent,
    rmsd_sentence,
)


@dataclass(frozen=True)
class Check:
    """One line of the table of key numbers.

    Attributes:
        label: name of the number.
        value: the number, for reading.
        limit: its threshold for reading; empty when it is for information only.
        meaning: one sentence.
        passed: None when there is no threshold or the number was not measured.
    """

    label: str
    value: str
    limit: str
    meaning: str
    passed: bool | None


Limit = Callable[[Summary], float | None]


@dataclass(frozen=True)
class _Rule:
    """How one number is read: where it is, how it is shown, and the limit it must keep."""

    label: str
    value: Callable[[Summary], float | None]
    show: Callable[[float | None], str]
    meaning: Callable[[float], str]
    limit: Limit | None = None
    at_least: bool = False

    def check(self, summary: Summary) -> Check | None:
        """Return the table line, or None where neither number nor limit exist."""
        value = self.value(summary)
        if value is None:
            return None
        bound = self.limit(summary) if self.limit else None
        if bound is None:
            return Check(self.label, self.show(value), "", self.meaning(value), None)
        passed = value >= bound if self.at_least else value <= bound
        limit = f"{'≥' if self.at_least else '≤'} {self.show(bound)}"
        return Check(self.label, self.show(value), limit, self.meaning(value), bool(passed))


def _at(key: str) -> Callable[[Summary], float | None]:
    return lambda summary: lookup(summary, key)


def _fixed(value: float) -> Limit:
    return lambda summary: value


def _threshold(name: str) -> Limit:
    """Return the run's own threshold (``summary["thresholds"]``), or the default of ``DiagnosticSettings``."""

    def limit(summary: Summary) -> float:
        own = lookup(summary, f"thresholds.{name}")
        return float(getattr(DiagnosticSettings(), name)) if own is None else own

    return limit


def _with_unit(unit: str) -> Callable[[float | None], str]:
    def show(value: float | None) -> str:
        return number(value) if value is None or not math.isfinite(value) else f"{number(value)} {unit}"

    return show


def _delta_f_gap(summary: Summary) -> float | None:
    ours, theirs = lookup(summary, "reference.delta_f_kJ_mol"), lookup(summary, "reference.reference_delta_f_kJ_mol")
    return None if ours is None or theirs is None else abs(ours - theirs)


def _kl_limit(summary: Summary) -> float | None:
    floor = lookup(summary, "reference.noise_floor")
    return None if floor is None else floor + 1e-2


def _forward_ess_limit(summary: Summary) -> float | None:
    # An absolute floor, and a share of the median Kish fraction: in expectation the two fractions are equal.
    median = lookup(summary, "free_energy.kish_fraction_median")
    floor, share = (_threshold(name)(summary) or 0.0 for name in ("forward_ess_fraction", "forward_to_kish"))
    return floor if median is None else max(floor, share * median)


def _fewest_frames(summary: Summary) -> float | None:
    block = summary.get("free_energy")
    frames = block.get("held_out_frames") if isinstance(block, Mapping) else None
    numbers = [float(n) for n in frames.values() if isinstance(n, int | float)] if isinstance(frames, Mapping) else []
    return min(numbers, default=None)


def _rules(summary: Summary) -> tuple[_Rule, ...]:
    """Return every rule, in the order of the table; sentences may look at the whole summary."""
    nats, kT, nm, kJ = _with_unit("nats"), _with_unit("kT"), _with_unit("nm"), _with_unit("kJ/mol")
    return (
        _Rule(
            "Kish fraction, median over points",
            _at("free_energy.kish_fraction_median"),
            percent,
            kish_sentence,
            _threshold("kish_fraction_median"),
            at_least=True,
        ),
        _Rule(
            "Kish fraction, 99 % of points",
            _at("free_energy.kish_fraction_low"),
            percent,
            kish_low_sentence,
            _threshold("kish_fraction_low"),
            at_least=True,
        ),
        _Rule("Kish fraction, worst point", _at("free_energy.kish_fraction_min"), percent, kish_min_sentence),
        _Rule(
            "Forward effective sample size",
            _at("free_energy.forward_ess_trimmed"),
            percent,
            forward_ess_sentence,
            _forward_ess_limit,
            at_least=True,
        ),
        _Rule(
            "The same, of all frames",
            _at("free_energy.forward_ess_fraction"),
            percent,
            lambda value: "Nothing left out. One frame in a far tail of the flow is enough to make it small.",
        ),
        _Rule(
            "Probability that fine MD has never seen",
            _at("free_energy.unseen_probability"),
            percent,
            lambda value: "There the flow extrapolates, and nothing could contradict it.",
            _threshold("unseen_probability"),
        ),
        _Rule(
            "Unseen part of a basin",
            _at("free_energy.unseen_basin_fraction"),
            percent,
            lambda value: "The named basin of which fine MD has seen least, however rare it is.",
            _threshold("unseen_basin_fraction"),
        ),
        _Rule(
            "Held-out fine frames in a basin",
            _fewest_frames,
            count,
            lambda value: "In the named basin with the fewest: too few could not contradict the flow.",
            _threshold("basin_frames"),
            at_least=True,
        ),
        _Rule(
            "Forward effective sample size, worst run",
            _at("free_energy.run_ess_fraction"),
            percent,
            lambda value: "Held-out frames of one fine run alone: small where the run is in a state the flow misses.",
            _threshold("run_ess_fraction"),
            at_least=True,
        ),
        _Rule(
            "Fine runs disagree by",
            _at("free_energy.run_disagreement_kT"),
            kT,
            lambda value: "What is certain of the largest distance of one fine run's mean log-weight from the others'.",
            _threshold("run_disagreement_kT"),
        ),
        _Rule(
            "Largest log-weight, hot walkers",
            _at("hidden_modes.hot_gap_kT"),
            kT,
            lambda value: "Mean of the worst walker of the hidden-mode test; large where the flow misses its state.",
            _threshold("hot_gap_kT"),
        ),
        _Rule(
            "Points with heavy-tailed weights",
            _at("free_energy.pareto_k_bad_fraction"),
            percent,
            pareto_sentence,
            _threshold("pareto_k_bad_fraction"),
        ),
        _Rule(
            "Sandwich gap",
            _at("free_energy.sandwich_gap_kT"),
            kT,
            lambda value: "The free energy lies between two bounds this far apart, whatever the weights do.",
            _threshold("sandwich_gap_kT"),
        ),
        _Rule(
            "Move when draws double",
            _at("free_energy.doubling_drift_kT"),
            kT,
            lambda value: "Mean move of the free energy when half of the draws become all of them.",
            _threshold("doubling_drift_kT"),
        ),
        _Rule(
            "Independent flows differ by",
            _at("free_energy.members_rmsd_kT"),
            kT,
            lambda value: (
                "Largest RMSD between the surface of one independently trained flow and that of all together."
            ),
            _at("thresholds.tolerance_kT"),
        ),
        _Rule(
            "Final draws moved the surface by",
            _at("free_energy.moved_kT"),
            kT,
            lambda value: "RMSD between what the final draws say on their own and the surface before them.",
            _at("thresholds.tolerance_kT"),
        ),
        _Rule(
            "Largest standard error",
            _at("free_energy.largest_error_kT"),
            kT,
            lambda value: "At the worst place of the surface below the cap of the diagnostics.",
        ),
        _Rule(
            "Forward KL to the reference",
            _at("reference.forward_kl"),
            nats,
            lambda value: forward_kl_sentence(summary, value),
            _kl_limit,
        ),
        _Rule(
            "Jensen-Shannon divergence",
            _at("reference.js"),
            nats,
            lambda value: "Symmetric distance to the reference; 0 is equal, 0.69 is no overlap.",
        ),
        _Rule(
            "RMSD to the reference",
            _at("reference.rmsd_kT"),
            kT,
            lambda value: rmsd_sentence(summary),
        ),
        _Rule(
            "Basin difference, ours − reference",
            _delta_f_gap,
            kJ,
            lambda value: delta_f_sentence(summary),
            _fixed(0.5),
        ),
        _Rule(
            "Coarse MD: forward KL",
            _at("coarse_md.forward_kl"),
            nats,
            lambda value: coarse_sentence(summary),
            _fixed(0.05),
        ),
        _Rule(
            "Coarse MD: Jensen-Shannon divergence",
            _at("coarse_md.js"),
            nats,
            lambda value: "The same as a symmetric distance; 0 is equal, 0.69 is no overlap.",
        ),
        _Rule(
            "Coarse MD: speed",
            _at("coarse_md.ns_per_day"),
            _with_unit("ns/day"),
            lambda value: "All copies of one mdrun together, on one core.",
        ),
        _Rule(
            "Restored frames: bead deviation",
            _at("restored.max_bead_deviation_nm"),
            nm,
            lambda value: "The largest distance between a bead and its atom in the restored frame.",
            _fixed(1e-6),
        ),
        _Rule(
            "Restored frames: wrong chirality",
            _at("restored.chirality_errors"),
            count,
            lambda value: "Restored frames with a mirrored centre.",
            _fixed(0),
        ),
        _Rule(
            "Restored frames: clashes",
            _at("restored.clash_fraction"),
            percent,
            lambda value: "Share of restored frames with overlapping atoms; their weight is next to nothing.",
        ),
    )


def checks(summary: Summary) -> list[Check]:
    """Return the table of key numbers; numbers the summary lacks are left out.

    Args:
        summary: content of summary.json (keys as in the README).
    """
    return [check for rule in _rules(summary) if (check := rule.check(summary)) is not None]


@dataclass(frozen=True)
class Verdict:
    """The headline.

    Attributes:
        trusted: whether the numbers can be used.
        headline: one line.
        reasons: why, one sentence each.
    """

    trusted: bool
    headline: str
    reasons: tuple[str, ...]


_OPENING = re.compile(r"^\s*(not yet|these numbers can be trusted),? because:?\s*", re.IGNORECASE)


def _bare(reason: str) -> str:
    """Return a reason without the opening that the headline says once for all, as a sentence."""
    text = _OPENING.sub("", reason).strip().rstrip(".")
    return text[:1].upper() + text[1:] + "." if text else text


TRUSTED = "These numbers can be trusted, because"
NOT_YET = "Not yet, because"


def verdict(summary: Summary) -> Verdict:
    """Return the run's own verdict; where the summary holds none, judge by the thresholds of ``checks``.

    Args:
        summary: content of summary.json; ``verdict {trusted, reasons}`` is used when there.
    """
    given = summary.get("verdict")
    if isinstance(given, Mapping) and isinstance(given.get("trusted"), bool):
        reasons = given.get("reasons")
        sentences = tuple(_bare(str(reason)) for reason in reasons) if isinstance(reasons, list | tuple) else ()
        return _headline(bool(given["trusted"]), sentences)
    return _judge(summary)


def _judge(summary: Summary) -> Verdict:
    measured = [check for check in checks(summary) if check.passed is not None]
    failed = [_reason(check) for check in measured if not check.passed]
    if summary.get("converged") is False:
        failed.insert(0, "The cycle stopped before the surface moved less than its tolerance.")
    if lookup(summary, "free_energy.kish_fraction_median") is None:
        failed.insert(0, "The quality of the weights was not measured.")
    if failed:
        return _headline(False, tuple(failed))
    return _headline(True, tuple(_reason(check) for check in measured))


def _reason(check: Check) -> str:
    return f"{check.label}: {check.value} (wanted {check.limit}). {check.meaning}"


def _headline(trusted: bool, reasons: tuple[str, ...]) -> Verdict:
    if reasons:
        return Verdict(trusted, f"{TRUSTED if trusted else NOT_YET}:", reasons)
    bare = "These numbers can be trusted." if trusted else "These numbers cannot be trusted yet."
    return Verdict(trusted, bare, ())
