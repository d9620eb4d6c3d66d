"""Numbers into sentences: what each figure of summary.json means, and whether it is good enough.

Pure text in, text out; nothing here knows about HTML. A number that is not finite is said to be "not a number" and
never passes a threshold, and a number that was not measured is never counted as passed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Summary = Mapping[str, object]

NOT_MEASURED = "not measured"
NOT_A_NUMBER = "not a number"

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def lookup(summary: Summary, key: str) -> float | None:
    """Return the number under a dotted key, or None where it is absent, None or not a number at all.

    Args:
        summary: nested mapping, the content of summary.json.
        key: path such as ``free_energy.kish_fraction_median``.
    """
    node: object = summary
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return None
        node = node[part]
    return float(node) if isinstance(node, int | float) else None


def number(value: float | None, digits: int = 3) -> str:
    """Return a number with ``digits`` significant digits, as ``0.0123`` or ``1.2×10⁻⁵``."""
    if value is None:
        return NOT_MEASURED
    if not math.isfinite(value):
        return NOT_A_NUMBER if math.isnan(value) else ("∞" if value > 0 else "−∞")
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(float(f"{value:.{digits - 1}e}"))))
    if -4 <= exponent < 6:
        text = f"{value:,.{max(digits - 1 - exponent, 0)}f}".replace(",", "\u202f")
    else:
        text = f"{value:.{digits - 1}e}".split("e")[0] + "×10" + str(exponent).translate(_SUPERSCRIPTS)
    return "−" + text[1:] if text.startswith("-") else text


def percent(fraction: float | None, digits: int = 2) -> str:
    """Return a fraction as a percentage, ``0.45`` as ``45 %``."""
    if fraction is None or not math.isfinite(fraction):
        return number(fraction)
    return f"{number(100 * fraction, digits)} %"


def count(value: float | None) -> str:
    """Return a count for reading, ``1234567`` as ``1.23 million``."""
    if value is None or not math.isfinite(value):
        return number(value)
    for size, word in ((1e9, "billion"), (1e6, "million")):
        if abs(value) >= size:
            return f"{number(value / size)} {word}"
    return f"{value:,.0f}".replace(",", "\u202f")


def duration(seconds: float | None) -> str:
    """Return a wall-clock time for reading, ``133`` as ``2 min 13 s``."""
    if seconds is None or not math.isfinite(seconds) or seconds < 0:
        return number(seconds)
    if seconds < 10:
        return f"{number(seconds, 2)} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def plural(amount: int, noun: str) -> str:
    """Return ``1 turn`` or ``3 turns``."""
    return f"{amount} {noun}" if amount == 1 else f"{amount} {noun}s"


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


def _with_unit(unit: str) -> Callable[[float | None], str]:
    def show(value: float | None) -> str:
        return number(value) if value is None or not math.isfinite(value) else f"{number(value)} {unit}"

    return show


def kish_sentence(fraction: float) -> str:
    """Say what a median Kish fraction (kish_ess / K) means."""
    if not math.isfinite(fraction):
        return "The weights of the draws could not be judged."
    return f"An average point keeps {percent(fraction)} of its draws' worth; 100 % would be a perfect flow."


def kish_min_sentence(fraction: float) -> str:
    """Say what the smallest Kish fraction means."""
    if not math.isfinite(fraction):
        return "The weights of the worst point could not be judged."
    return f"The worst point keeps {percent(fraction)}; a small value there costs accuracy at that point only."


def forward_ess_sentence(fraction: float) -> str:
    """Say what the forward effective sample size of held-out fine frames means."""
    return (
        "The same share, asked of held-out fine frames instead of the flow's own draws. Far below the median Kish "
        "fraction it would betray a shape of the molecule that the flow never draws."
    )


def pareto_sentence(fraction: float) -> str:
    """Say what the share of points with a bad Pareto k-hat means (k-hat > 0.7, arXiv:1507.02646)."""
    if fraction == 0:
        return "At no point do a few heavy weights rule the average (Pareto k̂ above 0.7)."
    return f"At {percent(fraction)} of the points a few heavy weights rule the average (Pareto k̂ above 0.7)."


def forward_kl_sentence(summary: Summary, value: float) -> str:
    """Say how far the surface is from the reference, beside what the reference's own noise explains."""
    floor = lookup(summary, "reference.noise_floor")
    if floor is None:
        return "Forward Kullback-Leibler divergence of the reference from our surface, in nats."
    if value <= floor:
        return "Our surface is as close to the reference as the reference's own sampling noise allows to tell."
    return (
        f"Of this, {number(floor)} is the reference's own sampling noise; the remaining {number(value - floor)} nats "
        "are the difference between the two surfaces."
    )


def _delta_f_gap(summary: Summary) -> float | None:
    ours, theirs = lookup(summary, "reference.delta_f_kJ_mol"), lookup(summary, "reference.reference_delta_f_kJ_mol")
    return None if ours is None or theirs is None else abs(ours - theirs)


def delta_f_sentence(summary: Summary) -> str:
    """Say the free-energy difference between the two basins, ours and the reference's."""
    ours, error = lookup(summary, "reference.delta_f_kJ_mol"), lookup(summary, "reference.delta_f_error")
    theirs = lookup(summary, "reference.reference_delta_f_kJ_mol")
    spread = "" if error is None else f" ± {number(error, 2)}"
    return f"Between the two basins we find {number(ours)}{spread} kJ/mol, the reference {number(theirs)} kJ/mol."


def _kl_limit(summary: Summary) -> float | None:
    floor = lookup(summary, "reference.noise_floor")
    return None if floor is None else floor + 1e-2


def _forward_ess_limit(summary: Summary) -> float | None:
    # In expectation 1/E_p[w/Z] and kish_fraction are the same number; a factor of two is beyond their noise.
    median = lookup(summary, "free_energy.kish_fraction_median")
    return None if median is None else median / 2


def _rules(summary: Summary) -> tuple[_Rule, ...]:
    """Return every rule, in the order of the table; sentences may look at the whole summary."""
    nats, kT, nm, kJ = _with_unit("nats"), _with_unit("kT"), _with_unit("nm"), _with_unit("kJ/mol")
    return (
        _Rule(
            "Kish fraction, median over points",
            _at("free_energy.kish_fraction_median"),
            percent,
            kish_sentence,
            _fixed(0.3),
            at_least=True,
        ),
        _Rule("Kish fraction, worst point", _at("free_energy.kish_fraction_min"), percent, kish_min_sentence),
        _Rule(
            "Forward effective sample size",
            _at("free_energy.forward_ess_fraction"),
            percent,
            forward_ess_sentence,
            _forward_ess_limit,
            at_least=True,
        ),
        _Rule(
            "Points with heavy-tailed weights",
            _at("free_energy.pareto_k_bad_fraction"),
            percent,
            pareto_sentence,
            _fixed(0.05),
        ),
        _Rule(
            "Sandwich gap",
            _at("free_energy.sandwich_gap_kT"),
            kT,
            lambda value: "The free energy lies between two bounds this far apart, whatever the weights do.",
            _fixed(2.0),
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
            lambda value: "Typical difference where the reference is below 8 kT.",
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
            lambda value: "How far what the coarse force field samples in GROMACS is from the reference.",
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
            lambda value: "Speed that mdrun reported, per walker.",
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
        sentences = tuple(str(reason) for reason in reasons) if isinstance(reasons, list | tuple) else ()
        return _headline(bool(given["trusted"]), sentences)
    return _judge(summary)


def _judge(summary: Summary) -> Verdict:
    measured = [check for check in checks(summary) if check.passed is not None]
    failed = [_reason(check) for check in measured if not check.passed]
    if summary.get("converged") is False:
        failed.insert(0, "the cycle stopped before the surface moved less than its tolerance")
    if lookup(summary, "free_energy.kish_fraction_median") is None:
        failed.insert(0, "the quality of the weights was not measured")
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


def evaluations_sentence(summary: Summary) -> str | None:
    """Say how many energy evaluations the run took and where they went; None when not counted."""
    total = lookup(summary, "energy_evaluations.total")
    if total is None:
        return None
    fine, flow = lookup(summary, "energy_evaluations.fine_md_steps"), lookup(summary, "energy_evaluations.flow")
    parts = [
        f"{count(fine)} steps of fine MD" if fine is not None else "",
        f"{count(flow)} in the flow" if flow else "",
    ]
    detail = " and ".join(part for part in parts if part)
    return f"The energy was evaluated {count(total)} times" + (f": {detail}." if detail else ".")
