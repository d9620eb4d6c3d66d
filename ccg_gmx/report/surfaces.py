"""Sections on the free energy and the coarse model: one map for one or two torsions, a row for every pair with more."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from ccg_gmx.records import FloatArray, FreeEnergySurface
from ccg_gmx.report import plots, style, words
from ccg_gmx.report.data import ReportData, SurfaceView
from ccg_gmx.report.markup import Html, join, table, tag
from ccg_gmx.report.parts import Section, capitalised, grid_of, picture
from ccg_gmx.report.profiles import Profile, profiles
from ccg_gmx.units import BOLTZMANN_KJ_MOL_K


def same_grid(*surfaces: FreeEnergySurface | None) -> bool:
    """Say whether all surfaces that are there have the same points."""
    return len({surface.f.shape for surface in surfaces if surface is not None}) == 1


def common_cap(data: ReportData) -> float:
    """Return the top of the colour scale that all maps of this run and its reference share, kT."""
    return plots.shared_cap(*(s for view in data.views for s in (view.surface, view.reference)))


def _beside(ours: tuple[str, FreeEnergySurface], other: tuple[str, FreeEnergySurface] | None, cap: float) -> list[Html]:
    """Return maps of one surface, another on the same colour scale, and their difference."""
    name, surface = ours
    found = [
        picture(plots.free_energy_map(surface, cap), f"free energy map of {name}", f"{capitalised(name)}.",
                "Contours every 1 kT. Grey: above the colour scale. Hatched: never sampled.")
    ]  # fmt: skip
    if other is None:
        return found
    label, reference = other
    found.append(
        picture(plots.free_energy_map(reference, cap), f"free energy map of {label}", f"{capitalised(label)}.",
                "Same colours and contours.")
    )  # fmt: skip
    if same_grid(surface, reference):
        caption = "Red: the first is higher. Contours: the second at 2, 4 and 8 kT; look for colour inside them."
        title = f"{capitalised(name)} − {label}."
        found.append(picture(plots.difference_map(surface, reference, cap), "difference of both", title, caption))
    return found


def _row(ours: tuple[str, FreeEnergySurface], other: tuple[str, FreeEnergySurface] | None, cap: float) -> list[Html]:
    """Return the maps of ``_beside`` for one of many pairs: captions name the pair, the rest is said once above."""
    name, surface = ours
    pair = ", ".join(surface.names)
    found = [
        picture(plots.free_energy_map(surface, cap), f"free energy map over {pair}, {name}", f"{pair}: {name}", "")
    ]
    if other is not None:
        label, reference = other
        figure = plots.free_energy_map(reference, cap)
        found.append(picture(figure, f"free energy map over {pair}, {label}", f"{pair}: {label}", ""))
        if same_grid(surface, reference):
            figure = plots.difference_map(surface, reference, cap)
            found.append(picture(figure, f"difference over {pair}", f"{pair}: {name} − {label}", ""))
    return found


ROWS = (
    "Contours every 1 kT, all maps with the same colours; grey: above the colour scale, hatched: never sampled. In the "
    "differences red means that the first is higher, and contours are the second at 2, 4 and 8 kT: look for colour "
    "inside them."
)


def free_energy(data: ReportData) -> Section:
    """Return the surface, or its marginals over all pairs, beside the reference, and profiles."""
    first = data.views[0].surface
    kT = BOLTZMANN_KJ_MOL_K * first.temperature_K
    names = data.torsions
    over = " and ".join(names) if len(names) < 3 else f"{', '.join(names[:-1])} and {names[-1]}"
    intro = (
        f"Free energy over {over} at {first.temperature_K:g} K, flat in the torsions, lowest point 0; "
        f"1 kT = {kT:.3f} kJ/mol."
    )
    parts: list[Html] = [tag("p", intro)]
    if all(view.reference is None for view in data.views):
        parts.append(tag("p", "The workflow names no reference, so there is nothing to compare with.", class_="note"))
    cap = common_cap(data)
    parts += _marginals(data, cap) if data.several else _single(data.views[0], cap)
    parts.append(grid_of(*_profile_pictures(data, cap), kind="wide"))
    parts += _marginal_table(data)
    return Section("Free energy", join(parts))


def _single(view: SurfaceView, cap: float) -> list[Html]:
    if view.surface.f.ndim != 2:
        return []
    reference = ("reference", view.reference) if view.reference else None
    found = [grid_of(*_beside(("this run", view.surface), reference, cap))]
    return [*found, grid_of(*_raw(view, cap))] if view.raw is not None else found


def _marginals(data: ReportData, cap: float) -> list[Html]:
    intro = f"Marginals over every pair of torsions, the others integrated out. {ROWS}"
    maps = [
        _row(("this run", view.surface), ("reference", view.reference) if view.reference else None, cap)
        for view in data.views
    ]
    return [tag("p", intro, class_="note"), *_rows(maps)]


def _rows(maps: list[list[Html]]) -> list[Html]:
    """Return a row for each pair, those that have only one map together."""
    rows = [grid_of(*row) for row in maps if len(row) > 1]
    single = [row[0] for row in maps if len(row) == 1]
    return [*rows, grid_of(*single)] if single else rows


def _raw(view: SurfaceView, cap: float) -> list[Html]:
    raw = view.raw
    if raw is None:
        return []
    found = [
        picture(plots.free_energy_map(raw, cap), "map of the estimate before the fit", "Before the joint fit.",
                "The plain average of the weights at each point: the same shape with more noise. Hatched: no draw.")
    ]  # fmt: skip
    if same_grid(view.surface, raw):
        found.append(
            picture(plots.difference_map(raw, view.surface, cap), "difference of estimate and fit",
                    "Before the fit − after it.", "Should be noise without a pattern.")
        )  # fmt: skip
    return found


def _profile_pictures(data: ReportData, cap: float) -> list[Html]:
    """Return one picture along every torsion; of several marginals over it the first will do."""
    sources: list[tuple[str, str, list[FreeEnergySurface | None]]] = [
        ("this run", style.OURS, [view.surface for view in data.views]),
        ("reference", style.REFERENCE, [view.reference for view in data.views]),
        ("coarse MD", style.COARSE, [view.coarse for view in data.views]),
    ]
    along = [(label, colour, _profiles_of(surfaces)) for label, colour, surfaces in sources]
    caption = (
        "Bands: two standard errors. The curves are set to agree on average; near the minima each should lie within "
        "the others' bands."
    )
    pictures = []
    for name in data.torsions:
        curves = [(label, colour, found[name]) for label, colour, found in along if name in found]
        figure = plots.profile_figure(curves, cap)
        pictures.append(picture(figure, f"free energy along {name}", f"Along {name}.", caption))
    return pictures


def _profiles_of(surfaces: Iterable[FreeEnergySurface | None]) -> dict[str, Profile]:
    found: dict[str, Profile] = {}
    for surface in surfaces:
        if surface is not None:
            found = {**{profile.name: profile for profile in profiles(surface)}, **found}
    return found


_AGAINST = (
    ("forward_kl", "forward KL / nats"),
    ("noise_floor", "reference's own noise / nats"),
    ("js", "Jensen-Shannon / nats"),
    ("rmsd_kT", "RMSD / kT"),
    ("reference_halves_rmsd_kT", "halves of the reference / kT"),
)


def _marginal_table(data: ReportData) -> list[Html]:
    """Return how far each marginal is from the reference; nothing where the reference is one surface."""
    block = data.summary.get("reference")
    blocks = block.get("marginals") if isinstance(block, Mapping) else None
    if not isinstance(blocks, Mapping) or not blocks:
        return []
    keys = [key for key, _ in _AGAINST]
    rows = [
        [str(pair).replace(",", ", "), *(words.number(words.lookup(each, key)) for key in keys)]
        for pair, each in blocks.items()
        if isinstance(each, Mapping)
    ]
    return [tag("h3", "Distance to the reference, pair by pair"),
            table(("marginal", *(label for _, label in _AGAINST)), rows, "turns")]  # fmt: skip


def coarse_model(data: ReportData) -> Section | None:
    """Return the coarse MD's surface beside the target, and the coarse force field itself."""
    parts: list[Html] = []
    pairs = [(view.coarse, view.surface) for view in data.views if view.coarse is not None]
    maps = [(coarse, surface) for coarse, surface in pairs if coarse.f.ndim == 2]
    if maps:
        cap = plots.shared_cap(*(surface for pair in maps for surface in pair))
        parts.append(tag("p", "What the coarse force field samples in GROMACS, beside the surface it was fitted to."))
        if data.several:
            parts.append(tag("p", ROWS, class_="note"))
        beside = _row if data.several else _beside
        parts += _rows([beside(("coarse MD", coarse), ("this run", surface), cap) for coarse, surface in maps])
    elif pairs:
        parts.append(tag("p", "The coarse MD's free energy is among the profiles above."))
    if data.coarse_maps:
        caption = "The grid that GROMACS interpolates (CMAP), contours every 2 kJ/mol."
        parts.append(grid_of(*(
            picture(plots.coarse_potential_map(values, names, 40.0), f"torsion-pair potential of {', '.join(names)}",
                    f"Torsion-pair potential of {', '.join(names)}.", caption)
            for names, values in data.coarse_maps.items()
        )))  # fmt: skip
    if data.coarse_terms:
        parts.append(tag("h3", "Bonded tables"))
        parts.append(
            tag("p", "The tables that GROMACS reads. Each bond and angle should show one smooth well.", class_="note")
        )
        parts.append(grid_of(*_term_pictures(data.coarse_terms), kind="small"))
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
