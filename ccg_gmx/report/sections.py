"""The sections of the report. Each takes the data and returns a Section, or None when there is nothing to show."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from ccg_gmx.records import FloatArray, FreeEnergySurface, ReportData
from ccg_gmx.report import checks, multiples, plots, style, words
from ccg_gmx.report.markup import Html, definitions, join, table, tag
from ccg_gmx.report.profiles import Comparison, compare, profiles, weight_statistics
from ccg_gmx.units import BOLTZMANN_KJ_MOL_K

OPEN_ITEMS = 16
"""Longer lists of the manifest are one click away."""

OPEN_MULTIPLES = 24
"""So many distributions per class are shown at once, the worst first; the rest is one click away."""


@dataclass(frozen=True)
class Section:
    """One section: its heading, which is also its line in the table of contents, and its content."""

    title: str
    body: Html


def picture(figure: Figure, alt: str, title: str, caption: str) -> Html:
    """Return a figure with its caption; the alternative text is for readers who cannot see it."""
    image = tag("img", src=style.data_uri(figure), alt=alt)
    return tag("figure", image, tag("figcaption", tag("b", title), f" {caption}"))


def _grid(*pictures: Html, kind: str = "") -> Html:
    return tag("div", *pictures, class_=f"figures {kind}".strip())


def headline(data: ReportData) -> Html:
    """Return the verdict in words."""
    verdict = checks.verdict(data.summary)
    reasons = [tag("ul", *(tag("li", reason) for reason in verdict.reasons))] if verdict.reasons else []
    cost = words.evaluations_sentence(data.summary)
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


def _title(text: str) -> str:
    return text[:1].upper() + text[1:]


def _same_grid(*surfaces: FreeEnergySurface | None) -> bool:
    return len({surface.f.shape for surface in surfaces if surface is not None}) == 1


def _beside(ours: tuple[str, FreeEnergySurface], other: tuple[str, FreeEnergySurface] | None, cap: float) -> list[Html]:
    """Return maps of one surface, another on the same colour scale, and their difference."""
    name, surface = ours
    found = [
        picture(plots.free_energy_map(surface, cap), f"free energy map of {name}", f"{_title(name)}.",
                "Contours every 1 kT. Grey: above the colour scale. Hatched: never sampled.")
    ]  # fmt: skip
    if other is None:
        return found
    label, reference = other
    found.append(
        picture(plots.free_energy_map(reference, cap), f"free energy map of {label}", f"{_title(label)}.",
                "Same colours and contours.")
    )  # fmt: skip
    if _same_grid(surface, reference):
        caption = "Red: the first is higher. Contours: the second at 2, 4 and 8 kT; look for colour inside them."
        title = f"{_title(name)} − {label}."
        found.append(picture(plots.difference_map(surface, reference, cap), "difference of both", title, caption))
    return found


def free_energy(data: ReportData) -> Section:
    """Return the surface beside the reference, its error and its profiles."""
    surface, reference = data.surface, data.reference
    cap = plots.shared_cap(surface, reference)
    kT = BOLTZMANN_KJ_MOL_K * surface.temperature_K
    intro = (
        f"Free energy over {' and '.join(surface.names)} at {surface.temperature_K:g} K, flat in the torsions, "
        f"lowest point 0; 1 kT = {kT:.3f} kJ/mol."
    )
    parts: list[Html] = [tag("p", intro)]
    if reference is None:
        parts.append(tag("p", "The workflow names no reference, so there is nothing to compare with.", class_="note"))
    if surface.f.ndim == 2:
        parts.append(_grid(*_beside(("this run", surface), ("reference", reference) if reference else None, cap)))
        parts.append(_grid(*_error_and_raw(data, cap)))
    parts.append(_grid(*_profile_pictures(data, cap), kind="wide"))
    return Section("Free energy", join(parts))


def _error_and_raw(data: ReportData, cap: float) -> list[Html]:
    found = []
    if np.isfinite(data.surface.error).any():
        found.append(
            picture(plots.error_map(data.surface, cap), "map of the standard error", "Error of this run.",
                    "One standard error, contours of the surface at 2, 4 and 8 kT. Dark spots need more draws most.")
        )  # fmt: skip
    raw = data.raw_surface
    if raw is not None and raw.f.ndim == 2:
        found.append(
            picture(plots.free_energy_map(raw, cap), "map of the estimate before the fit", "Before the joint fit.",
                    "The plain average of the weights at each point: the same shape with more noise.")
        )  # fmt: skip
        if _same_grid(data.surface, raw):
            found.append(
                picture(plots.difference_map(raw, data.surface, cap), "difference of estimate and fit",
                        "Before the fit − after it.", "Should be noise without a pattern.")
            )  # fmt: skip
    return found


def _profile_pictures(data: ReportData, cap: float) -> list[Html]:
    sources = [("this run", style.OURS, data.surface), ("reference", style.REFERENCE, data.reference),
               ("coarse MD", style.COARSE, data.coarse_surface)]  # fmt: skip
    along = [(label, colour, profiles(surface)) for label, colour, surface in sources if surface is not None]
    caption = (
        "Bands: two standard errors. The curves are set to agree on average; near the minima each should lie within "
        "the others' bands."
    )
    return [
        picture(
            plots.profile_figure([(label, colour, found[axis]) for label, colour, found in along], cap),
            f"free energy along {name}", f"Along {name}.", caption,
        )
        for axis, name in enumerate(data.surface.names)
    ]  # fmt: skip


def weights(data: ReportData) -> Section | None:
    """Return the histogram of log-weights and the Kish fraction of the points."""
    if data.log_w is None or data.log_w.size == 0:
        return None
    statistics = weight_statistics(data.log_w)
    points, draws = data.log_w.shape
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
    intro = f"{words.count(points)} coarse points with {words.count(draws)} draws each; nothing clipped or dropped."
    return Section("Weights", join([tag("p", intro), _grid(left, right, kind="wide")]))


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
            f"loss curves, {group}", f"{_title(group)}.", "",
        )
        for group, curves in groups.items()
    ]  # fmt: skip
    return Section("Training", join([tag("p", caption), _grid(*pictures, kind="wide")]))


_OWN_AXIS = {"reverse": "reverse KL", "forward": "forward KL", "clash": "share of clashes"}

_TURN_LABELS = {
    "index": "turn",
    "move_kT": "surface moved / kT",
    "moved_kT": "surface moved / kT",
    "members_kT": "flows differ by / kT",
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


def coarse_model(data: ReportData) -> Section | None:
    """Return the coarse MD's surface beside the target, and the coarse force field itself."""
    parts: list[Html] = []
    surface = data.coarse_surface
    if surface is not None and surface.f.ndim == 2:
        cap = plots.shared_cap(data.surface, surface)
        parts.append(tag("p", "What the coarse force field samples in GROMACS, beside the surface it was fitted to."))
        parts.append(_grid(*_beside(("coarse MD", surface), ("this run", data.surface), cap)))
    elif surface is not None:
        parts.append(tag("p", "The coarse MD's free energy is among the profiles above."))
    if data.coarse_map is not None:
        figure = plots.coarse_potential_map(data.coarse_map, data.surface.names, 40.0)
        caption = "The grid that GROMACS interpolates (CMAP), contours every 2 kJ/mol."
        parts.append(_grid(picture(figure, "torsion-pair potential", "Torsion-pair potential.", caption)))
    if data.coarse_terms:
        parts.append(tag("h3", "Bonded tables"))
        parts.append(
            tag("p", "The tables that GROMACS reads. Each bond and angle should show one smooth well.", class_="note")
        )
        parts.append(_grid(*_term_pictures(data.coarse_terms), kind="small"))
    return Section("Coarse model", join(parts)) if parts else None


_KIND = re.compile(r"(bond|angle|torsion|dihedral)s?[/ _]+(?=.)", re.IGNORECASE)


def kind_of(name: str) -> str:
    """Return bond, angle or torsion from a name such as ``angle/C-N-CA`` or ``angle C-N-CA``; bond if it has none."""
    found = _KIND.match(name)
    return "bond" if found is None else found[1].lower().replace("dihedral", "torsion")


def bare_name(name: str) -> str:
    """Return a name without the kinds in front of it, ``bond/bond C5-O6`` as ``C5-O6``."""
    while found := _KIND.match(name):
        name = name[found.end() :]
    return name


def _term_pictures(terms: Mapping[str, tuple[FloatArray, FloatArray]]) -> Iterable[Html]:
    for name, (grid, potential) in terms.items():
        figure = plots.term_figure(grid, potential, kind_of(name))
        yield picture(figure, f"potential of {name}", f"{kind_of(name).capitalize()} {bare_name(name)}", "")


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


_EVALUATIONS = {"fine_md_steps": "fine MD steps", "flow": "flow and weights", "total": "all together"}


def cost(data: ReportData) -> Section | None:
    """Return times and counts of energy evaluations as bars."""
    parts: list[Html] = []
    times = _numbers(data.summary.get("wall_s"))
    if times:
        total = words.duration(sum(value for _, value in times))
        parts += [tag("h3", f"Wall-clock time, {total} in all")]
        parts.append(multiples.bars([(name.replace("_", " "), value, words.duration(value)) for name, value in times]))
    counts = _numbers(data.summary.get("energy_evaluations"))
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


def provenance(data: ReportData, manifest: Mapping[str, object]) -> Section | None:
    """Return assumptions, versions, seeds and whatever else the manifest holds."""
    parts: list[Html] = []
    assumptions = data.summary.get("assumptions")
    if isinstance(assumptions, list | tuple) and assumptions:
        parts.append(tag("h3", "Assumptions"))
        parts.append(tag("ul", *(tag("li", str(item)) for item in assumptions), class_="plain-list"))
    loose = [name for name in ("seed", "seeds") if name in data.summary and name not in manifest]
    single = {name: value for name, value in manifest.items() if not isinstance(value, Mapping)}
    run: dict[str, object] = {**single, **{name: data.summary[name] for name in loose}}
    nested = {name: value for name, value in manifest.items() if isinstance(value, Mapping)}
    for name, group in {"run": run, **nested}.items():
        if items := flatten(group):
            parts.append(tag("h3", _title(str(name).replace("_", " "))))
            long = len(items) > OPEN_ITEMS
            content = definitions(items)
            parts.append(tag("details", tag("summary", f"{len(items)} entries"), content) if long else content)
    return Section("Assumptions, versions, seeds", join(parts)) if parts else None
