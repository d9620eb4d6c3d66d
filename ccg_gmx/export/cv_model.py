"""A learned collective variable for PLUMED: TORCH_MODEL, PLUMED's own ANN, PYTORCH_MODEL, each with its input lines."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ccg_gmx.cv.data import Column
from ccg_gmx.cv.model import CvModel
from ccg_gmx.errors import CheckpointError
from ccg_gmx.export.contract import Quantity, Signature
from ccg_gmx.export.feature_perceptron import Feature, FeaturePerceptron, Features, Standardize, to_content
from ccg_gmx.export.torch_model import export_model

FORMATS = {
    "json": "TORCH_MODEL, its built-in evaluator (no libtorch)",
    "pt2": "TORCH_MODEL, machine code by AOTInductor",
    "pt": "TORCH_MODEL, TorchScript with a contract",
    "ann": "PLUMED's own ANN (module annfunc); input lines alone, no model file",
    "ptc": "PYTORCH_MODEL (module pytorch), float32 TorchScript as mlcolvar writes it",
}

REFERENCES = {
    "tica": "doi:10.1063/1.4811489",
    "deep-tica": "doi:10.1073/pnas.2113533118",
    "lda": "doi:10.1021/acs.jpclett.8b00733",
    "deep-tda": "doi:10.1021/acs.jpclett.1c02317",
}

LABEL = "learned"
"""Label of the action in the input lines."""

_FLOAT32_TOLERANCE = 2e-4


def as_perceptron(model: CvModel) -> FeaturePerceptron:
    """Return the model as a torch module ``[B, n] -> [B, k]`` in float64.

    Args:
        model: the collective variable.
    """
    items = [Feature("sincos" if column.domain else "argument", k) for k, column in enumerate(model.columns)]
    layers: list[nn.Module] = [Standardize(torch.tensor(model.mean), torch.tensor(model.std))]
    for number, (weight, bias) in enumerate(zip(model.weights, model.biases, strict=True)):
        linear = nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float64)
        with torch.no_grad():
            linear.weight.copy_(torch.tensor(weight))
            linear.bias.copy_(torch.tensor(bias))
        layers += [nn.Tanh(), linear] if number else [linear]
    return FeaturePerceptron(Features(items, len(items)), nn.Sequential(*layers)).eval()


def signature(model: CvModel) -> Signature:
    """Return the contract's side of it.

    Args:
        model: the collective variable.
    """
    reference = REFERENCES.get(model.method)
    return Signature(
        tuple(Quantity(column.name, column.unit, column.domain) for column in model.columns),
        tuple(Quantity(name) for name in model.names),
        references=(reference,) if reference else (),
    )


def export_cv(
    model: CvModel, path: Path, kind: str, *, dtype: str = "float32", examples: np.ndarray | None = None
) -> list[Path]:
    """Write a model and the PLUMED input lines that use it.

    Args:
        model: the collective variable.
        path: the files without their suffix.
        kind: a key of :data:`FORMATS`.
        dtype: ``float32`` or ``float64``, of ``pt2`` and ``pt``.
        examples: ``[T, n]`` typical columns, for the comparison after writing.

    Returns:
        The files written: the model, unless the lines hold it, and ``.plumed_KIND.dat``.

    Raises:
        CheckpointError: if there is no such format, or what was written gives other numbers.
        ToolMissingError: if a ``.pt2`` is asked for and there is no compiler.
    """
    if kind not in FORMATS:
        raise CheckpointError(f"format {kind!r}", expected=", ".join(FORMATS))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.with_name(f"{path.name}.plumed_{kind}.dat")
    if kind == "ann":
        _write(lines, input_lines(model, kind, ""))
        return [lines]
    file = path.with_name(f"{path.name}.{kind}")
    inputs = None if examples is None else torch.from_numpy(np.ascontiguousarray(examples, dtype=np.float64))
    if kind == "ptc":
        _write_ptc(model, file, inputs)
    else:
        export_model(as_perceptron(model), signature(model), file, dtype=dtype, examples=inputs)
    _write(lines, input_lines(model, kind, file.name))
    return [file, lines]


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


# ---------------------------------------------------------------- input lines


def input_lines(model: CvModel, kind: str, file: str) -> str:
    """Return PLUMED input that defines the variables and prints them.

    Args:
        model: the collective variable.
        kind: a key of :data:`FORMATS`.
        file: name of the model's file.
    """
    names = ",".join(column.name for column in model.columns)
    head = [f"# {', '.join(model.names)}: learned by {model.method}; for {FORMATS[kind]}"]
    head += _definitions(model.columns)
    if kind == "ann":
        body, outputs = _ann(model), [f"{LABEL}.node-{k}" for k in range(model.count)]
    elif kind == "ptc":
        body = [f"{LABEL}: PYTORCH_MODEL FILE={file} ARG={names}"]
        outputs = [f"{LABEL}.node-{k}" for k in range(model.count)]
    else:
        head.append("# once before: LOAD FILE=libccg_torch_model.so, the path that `ccg plumed build` prints")
        body = [f"{LABEL}: TORCH_MODEL FILE={file} ARG={names}"]
        outputs = [f"{LABEL}.{name}" for name in model.names]
    return "\n".join([*head, *body, f"PRINT ARG={','.join(outputs)} FILE=COLVAR_CV STRIDE=100", ""])


def _definitions(columns: Sequence[Column]) -> list[str]:
    known = [f"{column.name}: {column.definition}" for column in columns if column.definition]
    missing = [column.name for column in columns if not column.definition]
    words = [f"# define {', '.join(missing)} before this line, as in the run that the model was learned from"]
    return [*(words if missing else []), *known]


def _ann(model: CvModel) -> list[str]:
    """Lines of ANN: features by CUSTOM, then layers with numbers that read back to the same float64."""
    lines, arguments = [], []
    for column in model.columns:
        if not column.domain:
            arguments.append(column.name)
            continue
        base = re.sub(r"\W", "_", column.name)
        for function in ("sin", "cos"):
            label = f"{function}_{base}"
            lines.append(f"{label}: CUSTOM ARG={column.name} FUNC={function}(x) PERIODIC=NO")
            arguments.append(label)
    layers = to_content(as_perceptron(model))["layers"]
    widths = [len(arguments), *(len(layer["bias"]) for layer in layers)]
    names = {"linear": "Linear", "tanh": "Tanh"}
    parts = [
        f"{LABEL}: ANN ...",
        f"  ARG={','.join(arguments)}",
        f"  NUM_LAYERS={len(widths)} NUM_NODES={','.join(map(str, widths))}",
        f"  ACTIVATIONS={','.join(names[layer['activation']] for layer in layers)}",
    ]
    for number, layer in enumerate(layers):
        parts.append(f"  WEIGHTS{number}={','.join(map(repr, layer['weight']))}")
        parts.append(f"  BIASES{number}={','.join(map(repr, layer['bias']))}")
    return [*lines, *parts, "..."]


# ---------------------------------------------------------------- PYTORCH_MODEL


def _write_ptc(model: CvModel, path: Path, examples: Tensor | None) -> None:
    """TorchScript ``[1, n] -> [1, k]`` in float32: PYTORCH_MODEL takes the gradient itself."""
    module = as_perceptron(model).float()
    inputs = torch.zeros(2, len(model.columns)) if examples is None else examples[:4].float()
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial.ptc")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript is deprecated, and PYTORCH_MODEL reads nothing else
            torch.jit.trace(module, inputs[:1], check_trace=False).save(str(partial))
            again = torch.jit.load(str(partial))
        for x in inputs:
            wanted = model(x[None].double().numpy())
            found = again(x[None]).detach().double().numpy()
            off = np.abs(found - wanted).max() / max(1.0, np.abs(wanted).max())
            if not off <= _FLOAT32_TOLERANCE:
                raise CheckpointError(
                    f"{path.name} gives values that are off by {off:.1e}", expected="float32 accuracy"
                )
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
