"""Sections on numbers, weights, training, restored frames and cost: each from the data, None where they are missing."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ccg_gmx.records import FloatArray
from ccg_gmx.report import checks, multiples, plots, words
from ccg_gmx.report.data import ReportData
from ccg_gmx.report.markup import Html, definitions, join, table, tag
from ccg_gmx.report.parts import Section, capitalised, grid_of, picture
from ccg_gmx.report.profiles import Comparison, compare, weight_statistics
from ccg_gmx.report.surfaces import bare_name, kind_of

Summary = Mapping[str, object]

OPEN_ITEMS = 16
"""Longer lists of the manifest are one click away."""

OPEN_MULTIPLES = 24
"""So many distributions per class are shown at once, the worst first; the rest is one click away."""


def headline(summary: Summary) -> Html:
    """Return the verdict of a summary.json in words."""
    verdict = checks.verdict(summary)
    reasons = [tag("ul", *(tag("li", reason) for reason in verdict.reasons))] if verdict.reasons else []
    cost = words.evaluations_sentence(summary)
    extra = [tag("p", cost, class_="soft")] if cost else []
    kind = "verdict" if verdict.trusted else "verdict not-yet"
    return tag("div", tag("h2", verdict.headline), *reasons, *extra, class_=kind, id="verdict")


def key_numbers(data: ReportData) -> Section | None:
    """Return the table of key numbers with thresholds, and whether they are kept."""
    rows = checks.checks(data.summary)
    if not rows:
        return None
    marks = {
        True: tag("span", "✓ kept", class_="mark good"),
        False: tag("span", "✗ missed", class_="mark bad"),
        None: tag("span", "for information", class_="mark none"),
    }
    cells = [(row.label, row.value, row.limit or "–", marks[row.passed], row.meaning) for row in rows]
    head = ("number", "value", "wanted", "", "what it means")
    everything = tag("details", tag("summary", "Every number of summary.json"), definitions(flatten(data.summary)))
    return Section("Key numbers", join([table(head, cells, "numbers"), everything]))


def flatten(node: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    """Return a nested mapping as dotted names and values for reading."""
    items: list[tuple[str, str]] = []
    for name, value in node.items():
        label = f"{prefix}.{name}" if prefix else str(name)
        if isinstance(value, Mapping):
            items += flatten(value, label)
        elif isinstance(value, float):
            items.append((label, words.number(value, 4)))
        elif isinstance(value, list | tuple):
            between = " " if name == "command" else ", "
            items.append((label, between.join(str(item) for item in value) or "none"))
        else:
            items.append((label, words.NOT_MEASURED if value is None else str(value)))
    return items


def weights(data: ReportData) -> Section | None:
    """Return the histogram of log-weights and the Kish fraction of the points."""
    log_w = [record.log_w for record in data.draws if record.log_w.size]
    if not log_w:
        return None
    statistics = weight_statistics(log_w)
    numbers = [values.shape[1] for values in log_w]
    zero = statistics.zero_fraction
    lost = (
        f" {words.percent(zero)} of the draws have weight zero; they count among the draws all the same."
        if zero
        else ""
    )
    left = picture(
        plots.weight_histogram(statistics), "histogram of log-weights", "Log-weights.",
        "A perfect flow would put every draw on the dashed line. A long tail to the left only wastes draws; one to the "
        f"right means that few draws carry the average. The first bar holds all that lies further left.{lost}",
    )  # fmt: skip
    right = picture(
        plots.kish_figure(statistics), "Kish fraction over free energy", "Kish fraction.",
        "One dot per coarse point. Low free energies, on the left, matter most.",
    )  # fmt: skip
    each = words.count(min(numbers)) if min(numbers) == max(numbers) else f"{min(numbers)} to {max(numbers)}"
    points = words.count(len(statistics.f))
    intro = f"{points} coarse points with {each} draws each; nothing clipped or dropped."
    return Section("Weights", join([tag("p", intro), grid_of(left, right, kind="wide")]))


def training(data: ReportData) -> Section | None:
    """Return loss curves, one picture per group (a name without its last word, after a slash or space)."""
    groups: dict[str, dict[str, FloatArray]] = {}
    for name, values in data.losses.items():
        cut = max(name.rfind("/"), name.rfind(" "))
        group, rest = name[: max(cut, 0)], name[cut + 1 :].replace("_", " ")
        if rest in _OWN_AXIS:  # another scale, or a share instead of a loss
            group = f"{group}, {_OWN_AXIS[rest]}".lstrip(", ")
        if len(values):
            groups.setdefault(group or "loss", {})[rest] = np.asarray(values, dtype=np.float64)
    if not groups:
        return None
    caption = (
        "Held-out curves that rise again while training curves fall mean overfitting; curves still falling at the "
        "right end mean that more steps would help."
    )
    pictures = [
        picture(
            plots.loss_figure(curves, "share" if "clash" in curves else "loss / nats"),
            f"loss curves, {group}", f"{capitalised(group)}.", "",
        )
        for group, curves in groups.items()
    ]  # fmt: skip
    return Section("Training", join([tag("p", caption), grid_of(*pictures, kind="wide")]))


_OWN_AXIS = {"reverse": "reverse KL", "forward": "forward KL", "clash": "share of clashes"}

_TURN_LABELS = {
    "index": "turn",
    "move_kT": "surface moved / kT",
    "moved_kT": "surface moved / kT",
    "members_kT": "flows differ by / kT",
    "largest_error_kT": "largest error / kT",
    "coarse_kl": "coarse MD, forward KL / nats",
    "kish_fraction_median": "Kish fraction, median",
    "forward_kl": "forward KL / nats",
    "evaluations": "energy evaluations",
}


def turns(data: ReportData) -> Section | None:
    """Return the table of cycle turns."""
    if not data.turns:
        return None
    names = list(dict.fromkeys(name for turn in data.turns for name in turn))
    rows = [[_turn_cell(turn.get(name)) for name in names] for turn in data.turns]
    head = [_TURN_LABELS.get(name, name.replace("_", " ")) for name in names]
    outcomes = {"True": "The surface stopped moving within its tolerance.", "False": "The surface was still moving."}
    outcome = outcomes.get(str(data.summary.get("converged")), "")
    note = tag("p", f"{words.plural(len(data.turns), 'turn')}. {outcome}")
    return Section("Turns of the cycle", join([note, table(head, rows, "turns")]))


def _turn_cell(value: float | None) -> str:
    if value is None or np.isnan(value):
        return "–"
    whole = isinstance(value, int) or float(value).is_integer()
    return words.count(value) if whole else words.number(value)


def restored(data: ReportData) -> Section | None:
    """Return the distributions of restored frames against fine MD, the least alike first."""
    if not data.distributions:
        return None
    classes: dict[str, list[tuple[str, Comparison]]] = {}
    for name, (fine, values, weight) in data.distributions.items():
        kind = kind_of(name)
        comparison = compare(fine, values, weight, periodic=kind == "torsion")
        classes.setdefault(kind, []).append((bare_name(name), comparison))
    intro = (
        "Weighted restored frames should lie on fine MD. JS is the Jensen-Shannon divergence in nats, beside what as "
        f"many independent frames would show by chance; red where it is more than {multiples.FAR:g} times that. Fine "
        "MD that never left its basin may miss shapes that restored frames have: then the fault is with the fine MD."
    )
    parts: list[Html] = [tag("p", intro), multiples.key()]
    for kind, entries in classes.items():
        parts.append(tag("h3", f"{kind.capitalize()}s"))
        parts += _ranked(kind, entries)
    return Section("Restored structures", join(parts))


def _ranked(kind: str, entries: list[tuple[str, Comparison]]) -> list[Html]:
    ordered = sorted(entries, key=lambda entry: -entry[1].js)
    pictures = [multiples.multiple(name, kind, comparison) for name, comparison in ordered]
    first, rest = pictures[:OPEN_MULTIPLES], pictures[OPEN_MULTIPLES:]
    more = (
        [tag("details", tag("summary", f"{len(rest)} more, better than these"), multiples.multiples(rest))]
        if rest
        else []
    )
    return [multiples.multiples(first), *more]


_EVALUATIONS = {
    "fine_md_steps": "fine MD steps",
    "coarse_md_steps": "coarse MD steps",
    "flow": "flow and weights",
    "checks": "hidden-mode test",
    "total": "all together",
}


def cost(summary: Summary) -> Section | None:
    """Return times and counts of energy evaluations as bars."""
    parts: list[Html] = []
    times = _numbers(summary.get("wall_s"))
    if times:
        total = words.duration(sum(value for _, value in times))
        parts += [tag("h3", f"Wall-clock time, {total} in all")]
        parts.append(multiples.bars([(name.replace("_", " "), value, words.duration(value)) for name, value in times]))
    counts = _numbers(summary.get("energy_evaluations"))
    if counts:
        parts.append(tag("h3", "Energy evaluations"))
        named = [(_EVALUATIONS.get(name, name.replace("_", " ")), value, words.count(value)) for name, value in counts]
        parts.append(multiples.bars(named))
    return Section("Cost", join(parts)) if parts else None


def _numbers(node: object) -> list[tuple[str, float]]:
    if not isinstance(node, Mapping):
        return []
    return [
        (str(name), float(v)) for name, v in node.items() if isinstance(v, int | float) and np.isfinite(v) and v >= 0
    ]


def provenance(summary: Summary, manifest: Mapping[str, object]) -> Section | None:
    """Return assumptions, versions, seeds and whatever else the manifest holds."""
    parts: list[Html] = []
    assumptions = summary.get("assumptions")
    if isinstance(assumptions, list | tuple) and assumptions:
        parts.append(tag("h3", "Assumptions"))
        parts.append(tag("ul", *(tag("li", str(item)) for item in assumptions), class_="plain-list"))
    loose = [name for name in ("seed", "seeds") if name in summary and name not in manifest]
    single = {name: value for name, value in manifest.items() if not isinstance(value, Mapping)}
    run: dict[str, object] = {**single, **{name: summary[name] for name in loose}}
    nested = {name: value for name, value in manifest.items() if isinstance(value, Mapping)}
    for name, group in {"run": run, **nested}.items():
        if items := flatten(group):
            parts.append(tag("h3", capitalised(str(name).replace("_", " "))))
            long = len(items) > OPEN_ITEMS
            content = definitions(items)
            parts.append(tag("details", tag("summary", f"{len(items)} entries"), content) if long else content)
    return Section("Assumptions, versions, seeds", join(parts)) if parts else None
