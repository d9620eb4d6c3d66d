"""PLUMED inputs: OPES, well-tempered metadynamics, umbrella windows, static biases; commented, always the same text.

References: OPES, M. Invernizzi, M. Parrinello, doi:10.1021/acs.jpclett.0c00497; well-tempered metadynamics,
A. Barducci, G. Bussi, M. Parrinello, doi:10.1103/PhysRevLett.100.020603; umbrella sampling,
G. M. Torrie, J. P. Valleau, doi:10.1016/0021-9991(77)90121-8.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ccg_gmx.errors import SettingsError
from ccg_gmx.export.plumed_variables import Variable
from ccg_gmx.molecule.plumed_table import plumed_number
from ccg_gmx.units import thermal_energy

WINDOWS_PER_TURN = 24
MOST_WINDOWS = 5000


@dataclass(frozen=True)
class Bias:
    """What acts on which variables.

    Attributes:
        method: ``opes``, ``metad``, ``umbrella`` or ``static``.
        pace: steps between kernels or hills.
        barrier: OPES: highest barrier to cross, kJ/mol.
        height: METAD: first height of a hill, kJ/mol.
        biasfactor: METAD.
        sigmas: label -> width, units of the variable.
        ranges: label -> ends of the grid of METAD, for variables without a period.
        centers: umbrella: label -> (from, to, count), units of the variable.
        kappas: umbrella: label -> stiffness in kJ/mol over the unit squared.
        grid: static: file that EXTERNAL reads; None for a model that applies itself.
        note: static: what the bias is, a line of comment.
    """

    method: str
    pace: int = 500
    barrier: float = 40.0
    height: float = 1.2
    biasfactor: float = 10.0
    sigmas: Mapping[str, float] = field(default_factory=dict)
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    centers: Mapping[str, tuple[float, float, int]] = field(default_factory=dict)
    kappas: Mapping[str, float] = field(default_factory=dict)
    grid: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Plan:
    """All of an input.

    Attributes:
        variables: in order of definition.
        biased: those the bias acts on.
        bias: the bias.
        temperature_K: temperature.
        stride: steps between rows of COLVAR.
        load: plug-in to load; empty for none.
    """

    variables: tuple[Variable, ...]
    biased: tuple[Variable, ...]
    bias: Bias
    temperature_K: float
    stride: int = 100
    load: str = ""


@dataclass(frozen=True)
class Window:
    """One umbrella window: its center in each variable."""

    centers: tuple[float, ...]


def required_actions(plan: Plan) -> tuple[str, ...]:
    """Every PLUMED action of the input, once."""
    own = {"opes": ["OPES_METAD"], "metad": ["METAD"], "umbrella": ["RESTRAINT"], "static": []}[plan.bias.method]
    if plan.bias.method == "static":
        own = ["EXTERNAL"] if plan.bias.grid else _value_biases(plan)
    return tuple(dict.fromkeys([*(one.action for one in plan.variables), *own, "PRINT"]))


def input_text(plan: Plan, window: Window | None = None, colvar: str = "COLVAR") -> str:
    """The text of one plumed.dat.

    Args:
        plan: what to write.
        window: umbrella: the window.
        colvar: file of the values.

    Raises:
        SettingsError: if the bias lacks a number that has no default.
    """
    names = ", ".join(one.value for one in plan.biased)
    lines = [f"# {_TITLES[plan.bias.method]} on {names} at {plan.temperature_K:g} K, written by ccg plumed input"]
    lines += ["# rad, nm, ps, kJ/mol; atoms are numbered from 1", "UNITS LENGTH=nm TIME=ps ENERGY=kj/mol"]
    lines += ["", f"LOAD FILE={plan.load}"] if plan.load else []
    lines += ["", *itertools.chain.from_iterable(one.lines for one in plan.variables), ""]
    action, value = _action(plan, window)
    lines += action
    printed = [one.value for one in plan.variables]
    lines += ["", f"PRINT ARG={','.join(dict.fromkeys([*printed, value]))} STRIDE={plan.stride} FILE={colvar}", ""]
    return "\n".join(lines)


def windows(plan: Plan) -> tuple[Window, ...]:
    """Umbrella windows: all combinations of the centers, the last variable fastest.

    Raises:
        SettingsError: if a variable without a period has no centers, or there are too many windows.
    """
    axes = [_centers(one, plan.bias) for one in plan.biased]
    if math.prod(map(len, axes)) > MOST_WINDOWS:
        raise SettingsError(f"{math.prod(map(len, axes))} windows", expected=f"at most {MOST_WINDOWS}")
    return tuple(Window(centers) for centers in itertools.product(*axes))


def window_table(plan: Plan, files: Sequence[str], chosen: Sequence[Window]) -> str:
    """Lines ``COLVAR CV:AT:KAPPA,...``, which ``ccg fes colvar --windows`` reads."""
    kappas = [_kappa(one, plan) for one in plan.biased]
    rows = [
        f"{name} "
        + ",".join(
            f"{one.value}:{at:.9g}:{kappa:.9g}"
            for one, at, kappa in zip(plan.biased, window.centers, kappas, strict=True)
        )
        for name, window in zip(files, chosen, strict=True)
    ]
    return "\n".join(["# COLVAR CV:AT:KAPPA, for ccg fes colvar --windows", *rows, ""])


def colvar_path(index: int) -> str:
    """Name of the COLVAR file of a window."""
    return f"COLVAR_{index:03d}"


def input_path(folder: Path, index: int) -> Path:
    """Name of the input of a window."""
    return folder / f"plumed_{index:03d}.dat"


_TITLES = {
    "opes": "OPES_METAD",
    "metad": "Well-tempered metadynamics",
    "umbrella": "Umbrella window",
    "static": "Static bias",
}


def _action(plan: Plan, window: Window | None) -> tuple[list[str], str]:
    """Lines of the bias, and the name of its energy."""
    bias, args = plan.bias, ",".join(one.value for one in plan.biased)
    if bias.method == "opes":
        return _opes(plan, args), "opes.bias"
    if bias.method == "metad":
        return _metad(plan, args), "metad.bias"
    if bias.method == "umbrella":
        if window is None:
            raise SettingsError("an umbrella without its window", expected="one file for each window")
        at = ",".join(f"{x:.9g}" for x in window.centers)
        kappa = ",".join(f"{_kappa(one, plan):.9g}" for one in plan.biased)
        return [f"umbrella: RESTRAINT ARG={args} AT={at} KAPPA={kappa}"], "umbrella.bias"
    return _static(plan, args)


def _opes(plan: Plan, args: str) -> list[str]:
    bias = plan.bias
    sigmas = [bias.sigmas.get(one.label, one.sigma[0] if one.sigma else None) for one in plan.biased]
    known = None not in sigmas
    sigma = ",".join(f"{x:.9g}" for x in sigmas if x is not None) if known else "ADAPTIVE"
    words = "widths of kernels" if known else "ADAPTIVE: widths are measured in the first steps; start in a basin"
    return [
        f"# SIGMA: {words}. BARRIER: what the bias may compensate, kJ/mol.",
        f"opes: OPES_METAD ARG={args} SIGMA={sigma} PACE={bias.pace} BARRIER={bias.barrier:.9g} "
        f"TEMP={plan.temperature_K:.9g} FILE=KERNELS",
    ]


def _metad(plan: Plan, args: str) -> list[str]:
    bias, sigmas = plan.bias, []
    for one in plan.biased:
        width = bias.sigmas.get(one.label, one.sigma[1] if one.sigma else None)
        if width is None:
            raise SettingsError(
                f"no width of hills on {one.label}",
                expected="about half its fluctuation in a basin",
                remedy=f"give --sigma {one.label}=WIDTH, or use --method opes, which measures it",
            )
        sigmas.append(width)
    ends = [one.period or _range(bias, one) for one in plan.biased]
    grid = ""
    if None not in ends:  # without a grid the cost of a step grows with the number of hills
        low, high = zip(*(end for end in ends if end is not None), strict=True)
        grid = f" GRID_MIN={','.join(low)} GRID_MAX={','.join(high)}"
    note = "" if grid else " No grid, since a variable has no known range (--range): every step sums all hills."
    return [
        f"# HEIGHT in kJ/mol, PACE in steps.{note}",
        f"metad: METAD ARG={args} SIGMA={','.join(f'{x:.9g}' for x in sigmas)} HEIGHT={bias.height:.9g} "
        f"PACE={bias.pace} BIASFACTOR={bias.biasfactor:.9g} TEMP={plan.temperature_K:.9g}{grid} FILE=HILLS",
    ]


def _range(bias: Bias, one: Variable) -> tuple[str, str] | None:
    given = bias.ranges.get(one.label)
    return None if given is None else (f"{given[0]:.9g}", f"{given[1]:.9g}")


def _value_biases(plan: Plan) -> list[str]:
    return [] if all(one.value.endswith(".bias") for one in plan.biased) else ["BIASVALUE"]


def _static(plan: Plan, args: str) -> tuple[list[str], str]:
    note = [f"# {plan.bias.note}"] if plan.bias.note else []
    if plan.bias.grid:
        return [*note, f"static: EXTERNAL ARG={args} FILE={plan.bias.grid}"], "static.bias"
    if not _value_biases(plan):
        return [*note, "# The model above applies its own output as an energy."], plan.biased[-1].value
    return [*note, "# The output of the model is an energy in kJ/mol.", f"static: BIASVALUE ARG={args}"], "static.bias"


def _centers(one: Variable, bias: Bias) -> list[float]:
    given = bias.centers.get(one.label)
    if given is not None:
        low, high, count = given
        spacing = (high - low) / (count - 1) if count > 1 else 0.0
        return [low + spacing * k for k in range(count)]
    if one.period is None:
        raise SettingsError(
            f"no centers of windows on {one.label}",
            remedy=f"give --centers {one.label}=FROM:TO:COUNT, both ends included",
        )
    low, high = map(plumed_number, one.period)
    return [low + (high - low) / WINDOWS_PER_TURN * k for k in range(WINDOWS_PER_TURN)]


def _kappa(one: Variable, plan: Plan) -> float:
    """Stiffness: by default windows are half as wide as they are apart, so that neighbours overlap."""
    if one.label in plan.bias.kappas:
        return plan.bias.kappas[one.label]
    centers = _centers(one, plan.bias)
    if len(centers) < 2:
        raise SettingsError(f"one window on {one.label}", remedy=f"give --kappa {one.label}=K")
    return thermal_energy(plan.temperature_K) / (0.5 * abs(centers[1] - centers[0])) ** 2
