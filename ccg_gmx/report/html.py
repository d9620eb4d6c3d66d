"""One self-contained page: no script, no file beside it, nothing fetched from anywhere."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from ccg_gmx.report import evidence, sections, surfaces
from ccg_gmx.report.data import ReportData
from ccg_gmx.report.markup import Html, join, slug, tag
from ccg_gmx.report.parts import Section
from ccg_gmx.report.style import plot_style
from ccg_gmx.report.stylesheet import CSS


def build_report(data: ReportData, manifest: Mapping[str, object], path: Path) -> None:
    """Write the report of a cycle.

    Args:
        data: everything shown; a section whose data are None or empty is left out.
        manifest: versions, seeds, input hashes, command; shown as they are.
        path: the HTML file; it appears whole or not at all.

    Raises:
        OSError: if the file cannot be written.
    """
    write_page(render(data, manifest), path)


def render(data: ReportData, manifest: Mapping[str, object]) -> str:
    """Return the report as text; arguments as in ``build_report``."""
    with plot_style():
        found = _sections(data, manifest)
    system = str(data.summary.get("system", "run"))
    subtitle = f"Cycle coarse graining with GROMACS, {data.views[0].surface.temperature_K:g} K"
    return page(system, subtitle, "cycle coarse graining", sections.headline(data.summary), found)


def page(system: str, subtitle: str, what: str, headline: Html, found: Sequence[Section]) -> str:
    """Put a page together.

    Args:
        system: its heading.
        subtitle: the line below.
        what: kind of run, for the title of the window.
        headline: the verdict, above all sections.
        found: sections in their order.
    """
    content = tag(
        "div",
        tag("header", tag("h1", system), tag("p", subtitle), _contents(found)),
        tag("main", headline, *(_section(section) for section in found)),
        tag("footer", "Written by ccg_gmx. Idea of the method: arXiv 2305.01243."),
        class_="page",
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", f"{system}: {what}"),
        tag("style", Html(CSS)),
    )
    return "<!DOCTYPE html>\n" + tag("html", head, tag("body", content), lang="en") + "\n"


def write_page(text: str, path: Path) -> None:
    """Write a page; it appears whole or not at all.

    Raises:
        OSError: if the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _sections(data: ReportData, manifest: Mapping[str, object]) -> list[Section]:
    found = [
        sections.key_numbers(data),
        surfaces.free_energy(data),
        evidence.fine_coverage(data),
        evidence.hidden_modes(data),
        evidence.draws(data),
        sections.weights(data),
        surfaces.coarse_model(data),
        sections.restored(data),
        sections.training(data),
        sections.turns(data),
        sections.cost(data.summary),
        sections.provenance(data.summary, manifest),
    ]
    return [section for section in found if section is not None]


def _section(section: Section) -> Html:
    return tag("section", tag("h2", section.title), section.body, id=slug(section.title))


def _contents(found: Sequence[Section]) -> Html:
    links = [tag("li", tag("a", section.title, href=f"#{slug(section.title)}")) for section in found]
    return tag("nav", tag("ol", join(links)), aria_label="Contents")
