"""Numbers into words: how they are written, and one sentence on what each figure of summary.json means."""

from __future__ import annotations

import math
from collections.abc import Mapping

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
    """Return a number with at most ``digits`` significant digits, as ``0.0123`` or ``1.2×10⁻⁵``."""
    if value is None:
        return NOT_MEASURED
    if not math.isfinite(value):
        return NOT_A_NUMBER if math.isnan(value) else ("∞" if value > 0 else "−∞")
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(float(f"{value:.{digits - 1}e}"))))
    if -4 <= exponent < 6:
        text = _trim(f"{value:,.{max(digits - 1 - exponent, 0)}f}").replace(",", "\u202f")
    else:
        text = _trim(f"{value:.{digits - 1}e}".split("e")[0]) + "×10" + str(exponent).translate(_SUPERSCRIPTS)
    return "−" + text[1:] if text.startswith("-") else text


def _trim(decimal: str) -> str:
    return decimal.rstrip("0").rstrip(".") if "." in decimal else decimal


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


def kish_sentence(fraction: float) -> str:
    """Say what a median Kish fraction (kish_ess / K) means."""
    if not math.isfinite(fraction):
        return "The weights of the draws could not be judged."
    return f"An average point keeps {percent(fraction)} of its draws' worth; 100 % would be a perfect flow."


def kish_low_sentence(fraction: float) -> str:
    """Say what the 1 % quantile of the Kish fractions means."""
    if not math.isfinite(fraction):
        return "The weights of the worst points could not be judged."
    return f"All but the worst 1 % of the points keep at least {percent(fraction)}."


def kish_min_sentence(fraction: float) -> str:
    """Say what the smallest Kish fraction means."""
    if not math.isfinite(fraction):
        return "The weights of the worst point could not be judged."
    return f"The worst point keeps {percent(fraction)}; a small value there costs accuracy at that point only."


def forward_ess_sentence(fraction: float) -> str:
    """Say what the forward effective sample size of held-out fine frames means."""
    return (
        "The same share, asked of held-out fine frames instead of the flow's own draws, but for the few of each run "
        "that weigh most. Far below the median Kish fraction it would betray a shape of the molecule that the flow "
        "never draws."
    )


def pareto_sentence(fraction: float) -> str:
    """Say what the share of points with a bad Pareto k-hat means (k-hat > 0.7, arXiv:1507.02646)."""
    if fraction == 0:
        return "At no point do a few heavy weights rule the average (Pareto k-hat above 0.7)."
    return f"At {percent(fraction)} of the points a few heavy weights rule the average (Pareto k-hat above 0.7)."


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


def rmsd_sentence(summary: Summary) -> str:
    """Say what the RMSD to the reference means, beside how far the reference's own halves are apart."""
    halves = lookup(summary, "reference.reference_halves_rmsd_kT")
    own = "" if halves is None else f"; the two halves of the reference differ by {number(halves)} kT"
    return f"Typical difference where the reference is below 8 kT{own}."


def delta_f_sentence(summary: Summary) -> str:
    """Say the free-energy difference between the two basins, ours and the reference's."""
    ours, error = lookup(summary, "reference.delta_f_kJ_mol"), lookup(summary, "reference.delta_f_error")
    theirs = lookup(summary, "reference.reference_delta_f_kJ_mol")
    spread = "" if error is None else f" ± {number(error, 2)}"
    return f"Between the two basins we find {number(ours)}{spread} kJ/mol, the reference {number(theirs)} kJ/mol."


def coarse_sentence(summary: Summary) -> str:
    """Say what the coarse MD's forward KL is taken against."""
    block = summary.get("coarse_md")
    against = block.get("against") if isinstance(block, Mapping) else None
    target = {"own surface": "the surface of this run"}.get(str(against), "the reference")
    return f"How far from {target} the coarse force field samples when GROMACS runs it."


def evaluations_sentence(summary: Summary) -> str | None:
    """Say how many energy evaluations the run took and where they went; None when not counted."""
    total = lookup(summary, "energy_evaluations.total")
    if total is None:
        return None
    fine, flow = lookup(summary, "energy_evaluations.fine_md_steps"), lookup(summary, "energy_evaluations.flow")
    parts = [f"{count(fine)} steps of fine MD"] if fine is not None else []
    parts += [f"{count(flow)} for the flow and its weights"] if flow is not None else []
    checks = lookup(summary, "energy_evaluations.checks")
    parts += [f"{count(checks)} for the test for hidden slow motions"] if checks else []
    detail = " and ".join(parts) if len(parts) < 3 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    return f"The energy was evaluated {count(total)} times" + (f": {detail}." if detail else ".")
