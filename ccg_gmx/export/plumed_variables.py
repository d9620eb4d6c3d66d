"""Collective variables as lines of a PLUMED input, each with what the biases on it need: width, period, stiffness."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ccg_gmx.errors import SettingsError

MODEL_ACTIONS = ("auto", "torch", "pytorch", "ann")
_ANN_SUFFIXES = (".ann", ".dat", ".txt")
_LABEL = re.compile(r"[A-Za-z]\w*")
_RESERVED = frozenset({"opes", "metad", "umbrella", "static"})
"""Labels of the biases that are written."""


@dataclass(frozen=True)
class Variable:
    """One collective variable.

    Attributes:
        label: label of its action.
        value: name of its value, ``phi`` or ``cv.node-0``; the column of the COLVAR file.
        lines: lines of the input that define it.
        action: PLUMED action.
        unit: of the value; empty for none.
        period: lower and upper end as PLUMED writes them; None when it has none.
        sigma: usual width of a kernel or hill, for OPES and for METAD; None where nobody can know.
        atoms: largest atom number, 0 for none.
    """

    label: str
    value: str
    lines: tuple[str, ...]
    action: str
    unit: str = ""
    period: tuple[str, str] | None = None
    sigma: tuple[float, float] | None = None
    atoms: int = 0


def torsion_variable(name: str, atoms: Sequence[int]) -> Variable:
    """A torsion of four atoms, numbered from 1.

    Raises:
        SettingsError: if the name is no label, or atoms are no four different positive numbers.
    """
    listed = _atoms(name, atoms, 4)
    line = f"{_checked(name)}: TORSION ATOMS={listed}"
    return Variable(name, name, (line,), "TORSION", "rad", ("-pi", "pi"), (0.15, 0.3), max(atoms))


def distance_variable(name: str, atoms: Sequence[int]) -> Variable:
    """A distance of two atoms, numbered from 1; nearest periodic image.

    Raises:
        SettingsError: as for :func:`torsion_variable`.
    """
    line = f"{_checked(name)}: DISTANCE ATOMS={_atoms(name, atoms, 2)}"
    return Variable(name, name, (line,), "DISTANCE", "nm", None, (0.01, 0.02), max(atoms))


def model_variable(
    name: str,
    file: Path,
    arguments: Sequence[Variable],
    *,
    action: str = "auto",
    atoms: str = "",
    bias: bool = False,
) -> Variable:
    """A learned variable, or with ``bias`` a learned energy that acts.

    Args:
        name: label.
        file: a model that TORCH_MODEL reads, a TorchScript for PYTORCH_MODEL, or a text with one ANN action.
        arguments: inputs, in order; of a model with a contract, those it names are taken.
        action: one of ``MODEL_ACTIONS``; auto: ANN for a text (.ann, .dat, .txt), PYTORCH_MODEL for
            a .ptc, else TORCH_MODEL.
        atoms: PLUMED list of the atoms of a model on positions; the contract's own when it is empty.
        bias: let TORCH_MODEL apply its output.

    Raises:
        SettingsError: if the file is missing, or names other inputs than there are.
    """
    if not file.is_file():
        raise SettingsError(f"no model {file}", remedy="check the path")
    label = _checked(name)
    if action == "auto":
        action = "ann" if file.suffix in _ANN_SUFFIXES else "pytorch" if file.suffix == ".ptc" else "torch"
    given = ",".join(one.value for one in arguments)
    if action == "pytorch":
        return Variable(label, f"{label}.node-0", (f"{label}: PYTORCH_MODEL FILE={file} ARG={given}",), "PYTORCH_MODEL")
    if action == "ann":
        return Variable(label, f"{label}.node-0", _ann_lines(label, file, given), "ANN")
    return _torch_model(label, file, arguments, atoms, bias)


def _torch_model(label: str, file: Path, arguments: Sequence[Variable], atoms: str, bias: bool) -> Variable:
    contract = read_contract(file) or {}
    outputs = contract.get("outputs") or [{"name": "node-0", "unit": ""}]
    inputs = ""
    wanted = [one.get("name") for one in contract.get("arguments", ())]
    if not contract and not atoms:
        inputs = f" ARG={','.join(one.value for one in arguments)}"
    elif wanted:
        inputs = f" ARG={','.join(_inputs(file, wanted, arguments))}"
    positions = contract.get("atoms") or {}
    count = int(positions.get("count", 0))
    atoms = atoms or ",".join(map(str, positions.get("serials") or ()))
    if count and not atoms:
        raise SettingsError(
            f"{file} is a model on the positions of {count} atoms", remedy="name them: --model-atoms 1-10"
        )
    inputs += f" ATOMS={atoms}" if atoms else ""
    domain = outputs[0].get("periodic")
    line = f"{label}: TORCH_MODEL FILE={file}{inputs}{' BIAS' * bias}"
    value = f"{label}.bias" if bias else f"{label}.{outputs[0]['name']}"
    period = (f"{domain[0]:.12g}", f"{domain[1]:.12g}") if domain and not bias else None
    return Variable(label, value, (line,), "TORCH_MODEL", str(outputs[0].get("unit", "")), period)


def _inputs(file: Path, wanted: Sequence[str | None], arguments: Sequence[Variable]) -> list[str]:
    """Values of the arguments that a contract names; unnamed ones in order."""
    known = {one.label: one.value for one in arguments} | {one.value: one.value for one in arguments}
    if not any(wanted) and len(arguments) == len(wanted):
        return [one.value for one in arguments]
    if missing := [str(name) for name in wanted if name not in known]:
        raise SettingsError(
            f"{file} takes {', '.join(map(str, wanted))}",
            expected=f"variables of these names; there are {', '.join(known) or 'none'}",
            remedy=f"define {missing[0]} with --torsion or --distance",
        )
    return [known[str(name)] for name in wanted]


def read_contract(file: Path) -> dict[str, Any] | None:
    """The contract in a .json, TorchScript or .pt2 model; None when it has none that can be found without torch."""
    try:
        if file.suffix == ".json":
            return dict(json.loads(file.read_text(encoding="utf-8"))["contract"])
        with zipfile.ZipFile(file) as archive:
            for member in archive.namelist():
                if member.endswith("ccg_contract.json"):
                    return dict(json.loads(archive.read(member)))
                if member.endswith("metadata.json") and b"ccg_contract" in (raw := archive.read(member)):
                    return dict(json.loads(json.loads(raw)["ccg_contract"]))
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        return None
    return None


def _ann_lines(label: str, file: Path, given: str) -> tuple[str, ...]:
    """The ANN action of a text under our label; its own ARG is kept, else ours is added."""
    text = file.read_text(encoding="utf-8", errors="replace")
    lines = [line.rstrip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    starts = [i for i, line in enumerate(lines) if re.match(r"(\S+:\s*)?ANN(\s|$)", line.lstrip())]
    if len(starts) != 1:
        raise SettingsError(
            f"{file} has {len(starts)} ANN actions", expected="one", remedy="see PLUMED's manual of ANN"
        )
    # features of the network's inputs; definitions of variables are the user's own
    before = [line for line in lines[: starts[0]] if re.match(r"\S+:\s*(CUSTOM|MATHEVAL|COMBINE)\s", line)]
    body = [lines[starts[0]]]
    if body[0].endswith("..."):  # "... ANN" would have to name our label; a bare end needs nothing
        inner = lines[starts[0] + 1 :]
        ends = [i for i, line in enumerate(inner) if line.lstrip().startswith("...")]
        body += [*inner[: ends[0] if ends else len(inner)], "..."]
    body[0] = re.sub(r"^.*?\bANN\b", f"{label}: ANN", body[0])
    body = [line for line in (re.sub(r"\bLABEL=\S+\s?", "", line) for line in body) if line.strip()]
    if not any(re.search(r"\bARG=", line) for line in body):
        body[0] = body[0].replace(": ANN", f": ANN ARG={given}", 1)
    return (*before, *body)


def _checked(name: str) -> str:
    if not _LABEL.fullmatch(name) or name in _RESERVED:
        raise SettingsError(f"a variable named {name!r}", expected="a letter, then letters, digits and _")
    return name


def _atoms(name: str, atoms: Sequence[int], count: int) -> str:
    if len(atoms) != count or len(set(atoms)) != count or min(atoms) < 1:
        raise SettingsError(f"{name} of atoms {', '.join(map(str, atoms))}", expected=f"{count} different ones, from 1")
    return ",".join(map(str, atoms))
