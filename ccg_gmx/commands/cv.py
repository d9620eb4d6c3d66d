"""``ccg cv``: collective variables learned from simulations, and their way into PLUMED."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ccg_gmx.commands.progress import progress_bar

if TYPE_CHECKING:
    from ccg_gmx.cv.data import CvData
    from ccg_gmx.cv.train import CvSettings
    from ccg_gmx.engine.user_cv import CvRequest

METHODS = ("tica", "deep-tica", "lda", "deep-tda")
FORMATS = ("json", "pt2", "pt", "ann", "ptc")
EXAMPLES = 4
"""Frames kept in a model's file, to compare exports with."""


@click.group()
def cv() -> None:
    """Learned collective variables for PLUMED.

    Example: ccg cv train COLVAR --method tica --arg phi,psi --lag 10
    """


@cv.command("train")
@click.argument("files", nargs=-1, metavar="[FILE...]", type=click.Path(path_type=Path))
@click.option("--method", type=click.Choice(METHODS), required=True, help="Slow: tica; telling states apart: lda, tda.")
@click.option("--state", "states", multiple=True, metavar="NAME=FILE[,FILE...]", help="Files of one state; repeat it.")
@click.option("--arg", "columns", multiple=True, metavar="NAME[,NAME...]", help="Columns of COLVAR files.")
@click.option("--tpr", type=click.Path(path_type=Path), default=None, help="Run input of .xtc or .trr files.")
@click.option("--torsion", "torsions", multiple=True, metavar="NAME=I,J,K,L", help="Of trajectories; repeat it.")
@click.option("--distance", "distances", multiple=True, metavar="NAME=I,J", help="Of trajectories; repeat it.")
@click.option("--lag", type=click.FloatRange(min=0, min_open=True), default=None, help="ps, of tica and deep-tica.")
@click.option("--count", type=click.IntRange(min=1), default=1, show_default=True, help="Number of variables.")
@click.option("--bias", "biases", multiple=True, metavar="[FILE[,FILE...]:]COLUMN", help="Of a bias; repeat it.")
@click.option("--log-weights", default=None, metavar="COLUMN", help="Log-weights of frames of unbiased dynamics.")
@click.option("--energy-unit", type=click.Choice(["kJ/mol", "kcal/mol", "eV", "kT"]), default="kJ/mol")
@click.option("--temperature", type=click.FloatRange(min=0, min_open=True), default=None, help="K, for a bias.")
@click.option("--start", type=float, default=0.0, help="Leave out frames before this time, ps.")
@click.option("--stride", type=click.IntRange(min=1), default=1, help="Use every so-manyth frame.")
@click.option("--plain", is_flag=True, help="lda: the plain mean of the states' covariances.")
@click.option("--ridge", type=click.FloatRange(min=0), default=1e-6, show_default=True, help="Of linear methods.")
@click.option("--hidden", default="32,32", show_default=True, help="Widths of hidden layers.")
@click.option("--steps", type=click.IntRange(min=1), default=3000, show_default=True, help="Of a training, at most.")
@click.option("--batch", type=click.IntRange(min=8), default=4096, show_default=True, help="Frames in a step.")
@click.option("--learning-rate", type=click.FloatRange(min=0, min_open=True), default=2e-3, show_default=True)
@click.option("--held-out", type=click.FloatRange(min=0, max=0.9), default=0.2, show_default=True, help="Part of runs.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("cv"), show_default=True, help="Prefix of files.")
@click.option("--plot", is_flag=True, help="Draw it along time, per state, its time scales and the training.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def cv_train(out: Path, plot: bool, as_json: bool, quiet: bool, **options: Any) -> None:
    """Learn collective variables from COLVAR files or trajectories. Needs no PLUMED.

    tica and deep-tica find slow variables (give --lag); lda and deep-tda tell states apart (give --state for each).
    Angles enter as sine and cosine. Frames sampled under a bias (--bias) are weighted with exp(+bias/kT), and lags are
    taken in the time that the bias stretched: the bias must be static or nearly so, and the times are not physical.

    Writes PREFIX.model.pt and PREFIX.report.json, and PREFIX.training.pt, from which an interrupted training of a deep
    method goes on when the same command is given again. `ccg cv export` brings the model to PLUMED.

    Example: ccg cv train --method deep-tda --state A=A.colvar --state B=B.colvar --arg phi,psi,d1 --plot
    """
    from dataclasses import replace

    from ccg_gmx.commands.cv_text import cv_report, cv_text
    from ccg_gmx.cv.model import save_cv
    from ccg_gmx.cv.train import learn
    from ccg_gmx.cycle.store import finite
    from ccg_gmx.engine.run_files import storing
    from ccg_gmx.engine.user_cv import read_cv_data
    from ccg_gmx.report.cv_plots import plot_cv

    settings, request = _settings(options), _request(options)
    with progress_bar("frames", quiet or request.tpr is None) as bar:
        data, notes = read_cv_data(request, bar)
    with storing(out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
    with progress_bar(settings.method, quiet or not settings.deep) as bar:
        found = learn(data, settings, checkpoint=_named(out, ".training.pt") if settings.deep else None, progress=bar)
    model = replace(found.model, info={**found.model.info, "examples": _examples(data)})
    report = cv_report(found, data, settings, notes)
    written = [_named(out, ending) for ending in (".model.pt", ".report.json")]
    with storing(out):
        save_cv(model, written[0])
        _write_json(written[1], finite(report))
    if plot:
        written.append(_named(out, ".png"))
        plot_cv(found, data, written[-1])
    click.echo(json.dumps(finite(report), indent=1) if as_json else cv_text(report, [str(path) for path in written]))


def _settings(options: dict[str, Any]) -> CvSettings:
    from ccg_gmx.commands.cv_options import parse_widths
    from ccg_gmx.cv.network import NetworkSettings
    from ccg_gmx.cv.train import CvSettings
    from ccg_gmx.errors import SettingsError

    method = options["method"]
    slow = method in ("tica", "deep-tica")
    if slow and options["lag"] is None:
        raise SettingsError(f"--method {method} without --lag", expected="a lag in ps")
    if not slow and options["lag"] is not None:
        raise SettingsError(f"--lag with --method {method}", expected="tica or deep-tica")
    return CvSettings(
        method=method,
        count=options["count"],
        lag_ps=options["lag"],
        ridge=options["ridge"],
        harmonic=not options["plain"],
        held_out=options["held_out"],
        seed=options["seed"],
        network=NetworkSettings(
            hidden=parse_widths(options["hidden"]),
            steps=options["steps"],
            batch=options["batch"],
            learning_rate=options["learning_rate"],
        ),
    )


def _request(options: dict[str, Any]) -> CvRequest:
    from ccg_gmx.commands.cv_options import parse_atoms, parse_bias, parse_columns, parse_groups
    from ccg_gmx.engine.user_cv import CvRequest

    return CvRequest(
        groups=parse_groups(options["files"], options["states"]),
        columns=parse_columns(options["columns"]),
        tpr=options["tpr"],
        torsions=parse_atoms(options["torsions"], 4, "--torsion"),
        distances=parse_atoms(options["distances"], 2, "--distance"),
        biases=tuple(parse_bias(text) for text in options["biases"]),
        log_weights=options["log_weights"],
        temperature_K=options["temperature"],
        energy_unit=options["energy_unit"],
        start_ps=options["start"],
        stride=options["stride"],
    )


def _named(prefix: Path, ending: str) -> Path:
    return prefix.with_name(f"{prefix.name}{ending}")


def _examples(data: CvData) -> list[list[float]]:
    rows = data.values[:: max(1, len(data.time) // EXAMPLES)][:EXAMPLES]
    return [[float(number) for number in row] for row in rows]


def _write_json(path: Path, content: Any) -> None:
    import os

    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        partial.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@cv.command("export")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--format", "kind", type=click.Choice(FORMATS), default="json", show_default=True)
@click.option("--dtype", type=click.Choice(["float32", "float64"]), default="float32", help="Of pt2 and pt.")
@click.option("--out", type=click.Path(path_type=Path), default=None, help="Prefix of files [that of MODEL].")
def cv_export(model: Path, kind: str, dtype: str, out: Path | None) -> None:
    """Write a learned collective variable for PLUMED, with the input lines that use it; compared after writing.

    json: TORCH_MODEL, evaluated without libtorch. pt2: TORCH_MODEL, machine code. pt: TORCH_MODEL, TorchScript.
    ann: PLUMED's own ANN, lines alone. ptc: PYTORCH_MODEL, float32 TorchScript. `ccg plumed build` makes TORCH_MODEL.

    Example: ccg cv export cv.model.pt --format ann
    """
    import numpy as np

    from ccg_gmx.cv.model import load_cv
    from ccg_gmx.engine.run_files import storing
    from ccg_gmx.export.cv_model import export_cv

    learned = load_cv(model)
    prefix = out or model.with_name(model.name.removesuffix(".pt").removesuffix(".model"))
    examples = learned.info.get("examples")
    with storing(prefix):
        files = export_cv(learned, prefix, kind, dtype=dtype, examples=np.array(examples) if examples else None)
    click.echo(files[-1].read_text(encoding="utf-8") if kind != "ann" else f"{learned.count} variables as lines of ANN")
    click.echo(f"written: {', '.join(str(file) for file in files)}")
