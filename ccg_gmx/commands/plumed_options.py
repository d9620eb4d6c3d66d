"""Options of ``ccg plumed input`` that are small languages, and the variables and biases they describe."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from ccg_gmx.errors import SettingsError
from ccg_gmx.export.plumed_variables import Variable, distance_variable, model_variable, torsion_variable
from ccg_gmx.molecule.plumed_table import plumed_number

T = TypeVar("T")


def parse_atoms(option: str, text: str, count: int) -> tuple[str, tuple[int, ...]]:
    """``phi=5,7,9,15`` as a name and atom numbers.

    Raises:
        SettingsError: another form.
    """
    match = re.fullmatch(rf"([A-Za-z]\w*)=(\d+(?:,\d+){{{count - 1}}})", text.replace(" ", ""))
    if match is None:
        example = {4: "phi=5,7,9,15", 2: "d=5,17"}[count]
        raise SettingsError(f"{option} {text}", expected=f"a name and {count} atom numbers, {example} for instance")
    return match[1], tuple(map(int, match[2].split(",")))


def parse_named(
    option: str, texts: Sequence[str], known: Sequence[str], parse: Callable[[str], T], form: str
) -> dict[str, T]:
    """``NAME=...`` options as a dictionary.

    Raises:
        SettingsError: another form, or a name that is no variable.
    """
    found: dict[str, T] = {}
    for text in texts:
        name, sign, body = text.partition("=")
        try:
            value = parse(body)
        except ValueError:
            raise SettingsError(f"{option} {text}", expected=form) from None
        if not sign:
            raise SettingsError(f"{option} {text}", expected=form)
        if name not in known:
            raise SettingsError(f"{option} names {name}", expected=f"one of {', '.join(known)}")
        found[name] = value
    return found


def positive(text: str) -> float:
    """A positive number as PLUMED writes them.

    Raises:
        ValueError: another text.
    """
    value = plumed_number(text)
    if not (math.isfinite(value) and value > 0):
        raise ValueError(text)
    return value


def ends(text: str) -> tuple[float, float]:
    """``MIN:MAX``.

    Raises:
        ValueError: another text.
    """
    low, high = (plumed_number(one) for one in text.split(":"))
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(text)
    return low, high


def centers(text: str) -> tuple[float, float, int]:
    """``FROM:TO:COUNT``.

    Raises:
        ValueError: another text.
    """
    low, high, count = text.split(":")
    first, last, number = plumed_number(low), plumed_number(high), int(count)
    if not (math.isfinite(first) and math.isfinite(last)) or number < 1 or (number > 1 and first == last):
        raise ValueError(text)
    return first, last, number


def collect_variables(
    torsions: Sequence[str],
    distances: Sequence[str],
    model: str | None,
    action: str,
    model_atoms: str,
    run_torsions: dict[str, tuple[int, ...]],
    *,
    bias: bool,
) -> tuple[Variable, ...]:
    """Variables in order: torsions of the run, own torsions, distances, the model that takes them.

    Raises:
        SettingsError: none at all, a name twice, or another form.
    """
    atoms = dict(run_torsions)
    listed = [parse_atoms("--torsion", text, 4) for text in torsions]
    for name, four in listed:
        if name in atoms and atoms[name] != four:
            raise SettingsError(f"two torsions named {name}", expected="names of their own")
        atoms[name] = four
    found = [torsion_variable(name, four) for name, four in atoms.items()]
    found += [distance_variable(*parse_atoms("--distance", text, 2)) for text in distances]
    if model is not None:
        name, sign, file = model.partition("=")
        if not sign or not file:
            raise SettingsError(f"--model {model}", expected="NAME=FILE, cv=encoder.json for instance")
        path = Path(file).resolve()
        found.append(model_variable(name, path, found, action=action, atoms=model_atoms, bias=bias))
    labels = [one.label for one in found]
    if not found or len(set(labels)) < len(labels):
        raise SettingsError(
            f"variables {', '.join(labels) or 'none'}",
            expected="at least one, with names of their own",
            remedy="--torsion phi=5,7,9,15, --distance d=5,17, --model cv=encoder.json or --run RUNFOLDER",
        )
    return tuple(found)


def choose_biased(variables: Sequence[Variable], names: str | None) -> tuple[Variable, ...]:
    """Variables the bias acts on: those named, else the model, else all.

    Raises:
        SettingsError: an unknown name.
    """
    if names is None:
        learned = [one for one in variables if one.action not in ("TORSION", "DISTANCE")]
        return tuple(learned or variables)
    known = {one.label: one for one in variables}
    wanted = [name.strip() for name in names.split(",")]
    if unknown := [name for name in wanted if name not in known]:
        raise SettingsError(f"--on names {unknown[0]}", expected=f"variables among {', '.join(known)}")
    return tuple(known[name] for name in wanted)
