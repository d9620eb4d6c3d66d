"""What an exported model says about itself, for the PLUMED action TORCH_MODEL to check against its input line."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ccg_gmx.errors import CheckpointError

FORMAT = "ccg_torch_model"
VERSION = 1
"""Version that ``plumed_plugins/src/Contract.cpp`` reads; both change together."""

ENERGY_UNITS = ("kJ/mol", "kcal/mol")
_RESERVED = frozenset({"bias", "work"})


@dataclass(frozen=True)
class Quantity:
    """One argument or output of a model.

    Attributes:
        name: for an argument the label in the PLUMED input, empty for any; for an output its component's name.
        unit: ``rad``, ``nm``, ``kJ/mol``, ...; empty for dimensionless.
        periodic: lower and upper end of its domain; None when it has none.
    """

    name: str
    unit: str = ""
    periodic: tuple[float, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain types for JSON."""
        return {"name": self.name, "unit": self.unit, "periodic": list(self.periodic) if self.periodic else None}


def torsion(name: str) -> Quantity:
    """Return the quantity that PLUMED's TORSION gives: radians from -pi to pi.

    Args:
        name: its label in the PLUMED input.
    """
    return Quantity(name, "rad", (-math.pi, math.pi))


def energy(name: str = "energy") -> Quantity:
    """Return an output in kJ/mol, which TORCH_MODEL can apply as a bias.

    Args:
        name: its component's name when it is not applied.
    """
    return Quantity(name, "kJ/mol")


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs of a model ``[B, n_in] -> [B, n_out]``.

    Attributes:
        arguments: the first inputs, PLUMED's ARG.
        outputs: the outputs.
        atoms: number of atoms whose positions (x, y, z of each) follow the arguments, PLUMED's ATOMS.
        serials: their numbers in the topology, from 1; empty when any atoms will do.
        length_unit: unit of the positions.
        temperature_K: temperature the model belongs to, a free energy's for instance; None for none.
        references: what to cite.
    """

    arguments: tuple[Quantity, ...]
    outputs: tuple[Quantity, ...]
    atoms: int = 0
    serials: tuple[int, ...] = ()
    length_unit: str = "nm"
    temperature_K: float | None = None
    references: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what the plug-in would refuse."""
        if not self.outputs or self.n_in == 0:
            raise CheckpointError("a model without inputs or without outputs cannot be exported")
        names = [output.name for output in self.outputs]
        if len(set(names)) < len(names) or not all(names):
            raise CheckpointError(f"outputs named {', '.join(map(repr, names))}", expected="one name each")
        if reserved := _RESERVED & set(names):
            raise CheckpointError(
                f"an output is named {min(reserved)!r}, which PLUMED keeps for biases",
                remedy="name it energy: with the flag BIAS its component is called bias",
            )
        if self.serials and len(self.serials) != self.atoms:
            raise CheckpointError(f"{len(self.serials)} atom numbers for {self.atoms} atoms")

    @property
    def n_in(self) -> int:
        """Width of the input: one number for each argument, three for each atom."""
        return len(self.arguments) + 3 * self.atoms

    @property
    def n_out(self) -> int:
        """Number of outputs."""
        return len(self.outputs)


@dataclass(frozen=True)
class Trial:
    """An input and what torch makes of it; the plug-in evaluates it again before the first step.

    Attributes:
        input: ``[n_in]``.
        values: ``[n_out]``.
        gradient: ``[n_out * n_in]``, row by row.
    """

    input: Sequence[float]
    values: Sequence[float]
    gradient: Sequence[float]


def contract_dict(
    signature: Signature, backend: str, dtype: str, trials: Sequence[Trial], cpu: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the contract as plain types.

    Args:
        signature: inputs and outputs.
        backend: ``perceptron``, ``aoti`` or ``torchscript``.
        dtype: ``float32`` or ``float64``, what the model computes in.
        trials: known answers.
        cpu: instruction sets that the file's machine code uses.
    """
    atoms = {"count": signature.atoms, "serials": list(signature.serials) or None, "unit": signature.length_unit}
    return {
        "format": FORMAT,
        "version": VERSION,
        "backend": backend,
        "dtype": dtype,
        "n_in": signature.n_in,
        "arguments": [argument.to_dict() for argument in signature.arguments],
        "atoms": atoms if signature.atoms else None,
        "outputs": [output.to_dict() for output in signature.outputs],
        "temperature_K": signature.temperature_K,
        "gradient_in_graph": True,
        "cpu": list(cpu),
        "references": list(signature.references),
        "trials": [{"input": list(t.input), "values": list(t.values), "gradient": list(t.gradient)} for t in trials],
    }


def to_json(content: dict[str, Any]) -> str:
    """Return JSON as the plug-in reads it: UTF-8, and no NaN.

    Args:
        content: plain types.

    Raises:
        CheckpointError: if a number is NaN or infinite.
    """
    try:
        return json.dumps(content, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise CheckpointError(
            "the model has a weight, value or gradient that is not finite", remedy="look at its training"
        ) from error


def from_json(text: str, source: str) -> dict[str, Any]:
    """Read a contract back.

    Args:
        text: JSON.
        source: file it is from, for messages.

    Raises:
        CheckpointError: if it is no contract or one of another version.
    """
    try:
        content = json.loads(text)
        found = (content["format"], content["version"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{source} holds no contract of a {FORMAT}") from error
    if found != (FORMAT, VERSION):
        raise CheckpointError(
            f"{source} is {found[0]} version {found[1]}",
            expected=f"{FORMAT} version {VERSION}",
            remedy="export it again",
        )
    return dict(content)
