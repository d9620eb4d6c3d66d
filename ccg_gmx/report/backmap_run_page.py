"""The page of a backmap run, and everything else that it leaves in its folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ccg_gmx.backmap.card_file import load_card
from ccg_gmx.backmap.checkpoint import load_model
from ccg_gmx.backmap.jobs import held_out_path
from ccg_gmx.cycle.backmap.config import BackmapWorkflow
from ccg_gmx.cycle.backmap.run import BackmapResults
from ccg_gmx.cycle.backmap.stages import MINIMISED, MODEL, RESTORED
from ccg_gmx.cycle.backmap.summary import Mark, marks
from ccg_gmx.cycle.store import write_json
from ccg_gmx.export.folder import copy_folder
from ccg_gmx.records import FloatArray
from ccg_gmx.report import sections, style, words
from ccg_gmx.report.backmap_page import card_sections, energy_section
from ccg_gmx.report.html import page, write_page
from ccg_gmx.report.markup import definitions, join, table, tag
from ccg_gmx.report.parts import Section, grid_of, picture


def write_backmap_outputs(
    results: BackmapResults, summary: dict[str, Any], manifest: dict[str, Any], folder: Path
) -> None:
    """Write the model, restored and minimised frames, summary and report; each appears whole.

    Args:
        results: folders of all stages.
        summary: content of summary.json.
        manifest: content of manifest.json.
        folder: the run folder.
    """
    for file in (held_out_path(results.model / MODEL), results.model / MODEL):
        _copy_file(file, folder / file.name)
    copy_folder(results.restored / RESTORED, folder / RESTORED)
    if results.minimised is not None:
        copy_folder(results.minimised / MINIMISED, folder / MINIMISED)
    write_json(folder / "results.json", _pack(results))
    write_json(folder / "summary.json", summary)
    write_page(render_backmap(results, summary, manifest), folder / "report.html")


def _copy_file(source: Path, target: Path) -> None:
    partial = target.with_name(f".{target.name}.partial")
    shutil.copyfile(source, partial)
    os.replace(partial, target)


def _pack(results: BackmapResults) -> dict[str, Any]:
    """Stages by name, so that the folder can be moved."""
    return {
        "kind": "backmap",
        "workflow": results.workflow.model_dump(mode="json"),
        **{name: getattr(results, name).name for name in ("model", "restored", "card")},
        **{name: [path.name for path in getattr(results, name)] for name in ("fine", "used")},
        "minimised": results.minimised and results.minimised.name,
    }


def unpack_backmap(packed: dict[str, Any], folder: Path) -> BackmapResults:
    """Undo what results.json was packed by.

    Raises:
        KeyError, TypeError, ValidationError: it is of another version.
    """
    stages = folder / "stages"
    return BackmapResults(
        workflow=BackmapWorkflow.model_validate(packed["workflow"]),
        fine=tuple(stages / name for name in packed["fine"]),
        model=stages / packed["model"],
        restored=stages / packed["restored"],
        card=stages / packed["card"],
        minimised=packed["minimised"] and stages / packed["minimised"],
        used=tuple(stages / name for name in packed["used"]),
    )


def render_backmap(results: BackmapResults, summary: dict[str, Any], manifest: Mapping[str, object]) -> str:
    """Return the report as text.

    Args:
        results: folders of all stages.
        summary: content of summary.json.
        manifest: versions, seeds, input hashes, command; shown as they are.
    """
    card = load_card(results.card / "card.json")
    with style.plot_style():
        found = [_key_numbers(results, summary), _training(results, summary["training"])]
        if results.minimised is not None:
            energies = results.minimised / MINIMISED / f"{MINIMISED}.npz"
            found.append(energy_section(summary["minimised"], energies))
        found += card_sections(card)
    found += [section for section in (sections.cost(summary), sections.provenance(summary, manifest)) if section]
    subtitle = f"Backmapping from beads: {results.workflow.beads}"
    return page(results.workflow.system, subtitle, "backmapping", sections.headline(summary), found)


def _key_numbers(results: BackmapResults, summary: dict[str, Any]) -> Section:
    """The marks, and everything else that was measured."""
    restored, card = summary["restored"], summary["card"]
    intro = (
        f"{restored['frames']} frames were restored from {restored['coarse_frames']} coarse ones "
        f"({restored['coarse']}), {_duration(restored['seconds_per_frame'])} each. For the score card, "
        f"{card['held_out_frames']} fine frames that the training never saw were restored from their own beads, "
        f"{card['samples']} times each. Of fine frames, {100 * card['clash_fraction_fine']:.2f} % have a clash."
    )
    rows = [_mark_row(mark) for mark in marks(restored, card, results.workflow.marks)]
    head = ("number", "value", "wanted", "", "where")
    groups: dict[str, object] = {
        name: summary[name] for name in ("restored", "card", "training", "minimised") if name in summary
    }
    groups["card"] = {name: value for name, value in card.items() if name != "rotamers"}
    everything = tag("details", tag("summary", "Every number of summary.json"), definitions(sections.flatten(groups)))
    return Section("Key numbers", join([tag("p", intro), table(head, rows, "numbers"), everything]))


def _duration(seconds: float) -> str:
    return f"{words.number(1e3 * seconds)} ms" if seconds < 1 else words.duration(seconds)


_VERDICTS = {
    True: tag("span", "✓ kept", class_="mark good"),
    False: tag("span", "✗ missed", class_="mark bad"),
    None: tag("span", "for information", class_="mark none"),
}


def _mark_row(mark: Mark) -> tuple[str, ...]:
    value = "not measured" if mark.value is None else mark.show(mark.value)
    limit = "–" if mark.limit is None else f"≤ {mark.show(mark.limit)}"
    return mark.label, value, limit, _VERDICTS[mark.passed], mark.note.removeprefix(", ")


def _training(results: BackmapResults, facts: dict[str, Any]) -> Section:
    """What it learned from, and its losses."""
    text = f"{facts['frames']} frames, {facts['steps']} steps, {facts['held_out_frames']} frames held out."
    if facts.get("nll_per_atom_held_out") is not None:
        text += (
            f" The held-out loss fell from {facts['nll_per_atom_start']:.3f} to {facts['nll_per_atom_held_out']:.3f} "
            "nats per placed atom; the parameters of that step are kept."
        )
    if facts.get("left_out"):
        text += f" {facts['left_out'].capitalize()}."
    losses = load_model(results.model / MODEL).info.get("losses", {})
    parts = [tag("p", text)]
    if losses.get("train"):
        every = results.workflow.training.held_out_every
        shown = picture(
            _loss_figure(np.array(losses["train"]), np.array(losses["held_out"]), every),
            "loss against step",
            "Loss.",
            "-ln q of the atoms given the beads, per placed atom. A held-out curve that rises again while the other "
            "falls means overfitting; one that still falls at its end means that more steps would help.",
        )
        parts.append(grid_of(shown, kind="wide"))
    return Section("Training", join(parts))


def _loss_figure(train: FloatArray, held_out: FloatArray, every: int) -> Figure:
    """Losses in nats per atom: of every step, and of the held-out frames every so many steps, from step 0 on."""
    figure = style.new_figure(4.8, 2.8)
    axes = style.open_axes(figure)
    width = max(1, len(train) // 60)
    mean = np.convolve(train, np.full(width, 1.0 / width), mode="valid")
    axes.plot(np.arange(1, len(train) + 1), train, color=style.OURS, lw=0.5, alpha=0.3)
    axes.plot(np.arange(width, len(train) + 1), mean, color=style.OURS, label="training")
    steps = np.minimum(every * np.arange(len(held_out)), len(train))
    axes.plot(steps, held_out, color=style.COARSE, marker=".", label="held-out frames")
    if len(held_out):
        axes.plot(steps[held_out.argmin()], held_out.min(), "o", ms=6, mfc="none", color=style.COARSE, label="kept")
    late = np.concatenate([mean[len(mean) // 20 :], held_out[1:]])
    margin = 0.06 * float(np.ptp(late)) or 0.5
    axes.set_ylim(float(late.min()) - margin, float(late.max()) + margin)
    axes.set_xlim(0, len(train))
    axes.set_xlabel("training step")
    axes.set_ylabel("loss / nats per atom")
    axes.legend(loc="best")
    return figure
