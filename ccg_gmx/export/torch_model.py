"""Export of a trained model for the PLUMED action TORCH_MODEL, in one of three formats.

The suffix chooses: ``.json``, evaluated by the plug-in itself in float64, for a
:class:`~ccg_gmx.export.feature_perceptron.FeaturePerceptron`; ``.pt2``, machine code by AOTInductor, for any model that
can be traced; ``.pt``, TorchScript, slower, and readable by other programs too. Every file carries its contract and is
read back and compared with eager torch before it gets its name.
"""

from __future__ import annotations

import copy
import json
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ccg_gmx.errors import CheckpointError
from ccg_gmx.export import aoti, feature_perceptron
from ccg_gmx.export.contract import Signature, Trial, contract_dict, from_json, to_json
from ccg_gmx.export.value_and_gradient import gradient_graph, value_and_gradient

CONTRACT_FILE = "ccg_contract.json"
"""Name of the contract inside a TorchScript archive."""

TOLERANCE = {"float64": 1e-10, "float32": 2e-4}
"""Largest difference from eager float64 in units of the largest number, or of 1."""

_DTYPES = {"float32": torch.float32, "float64": torch.float64}
_TRIALS, _SPREAD_NM = 4, 0.3

Evaluate = Callable[[Tensor], tuple[Tensor, Tensor]]
"""``[1, n_in] -> ([n_out], [n_out, n_in])``."""


def export_model(
    model: nn.Module,
    signature: Signature,
    path: Path,
    *,
    dtype: str = "float32",
    examples: Tensor | None = None,
    portable: bool = True,
) -> Path:
    """Write a model for TORCH_MODEL and check what was written.

    Args:
        model: ``[B, n_in] -> [B, n_out]``; arguments first, then x, y, z of each atom; in evaluation mode.
        signature: its inputs and outputs.
        path: file to write, ``.json``, ``.pt2`` or ``.pt``.
        dtype: ``float32`` or ``float64``, for ``.pt2`` and ``.pt``; ``.json`` is always float64.
        examples: ``[T, n_in]`` typical inputs, kept in the file with their answers; None makes some up.
        portable: machine code of a ``.pt2`` for every x86-64 CPU since 2013 instead of this one.

    Returns:
        The path.

    Raises:
        CheckpointError: if the model does not fit its signature, has numbers that are not finite, cannot be exported,
            or comes back different.
        ToolMissingError: if a ``.pt2`` is asked for and there is no compiler.
    """
    path = Path(path)
    if dtype not in _DTYPES:
        raise CheckpointError(f"dtype {dtype!r}", expected=" or ".join(_DTYPES))
    writer = _WRITERS.get(path.suffix)
    if writer is None:
        raise CheckpointError(f"{path.name} has no suffix of a model", expected=", ".join(_WRITERS))
    job = _Job(model, signature, "float64" if path.suffix == ".json" else dtype, portable, _inputs(signature, examples))
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        evaluate = writer(job, partial)
        job.compare(evaluate, path)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


@dataclass
class _Job:
    """One export: the model in float64 for the answers, in its dtype for the file.

    Attributes:
        inputs: ``[T, n_in]``, float64, rounded to the dtype so that both see the same numbers.
    """

    model: nn.Module
    signature: Signature
    dtype: str
    portable: bool
    inputs: Tensor

    def __post_init__(self) -> None:
        self.inputs = self.inputs.to(_DTYPES[self.dtype]).double()
        exact = self.in_dtype(torch.float64)
        try:
            answers = [value_and_gradient(exact, x[None]) for x in self.inputs]
        except (RuntimeError, IndexError, TypeError) as error:
            raise CheckpointError(
                f"the model cannot be evaluated at an input [1, {self.signature.n_in}]: {first_line(error)}"
            ) from error
        if answers[0][0].shape != (self.signature.n_out,):
            raise CheckpointError(
                f"the model gives {answers[0][0].numel()} outputs",
                expected=f"{self.signature.n_out} as in its signature",
            )
        self.trials = [
            Trial(x.tolist(), values.tolist(), gradient.flatten().tolist())
            for x, (values, gradient) in zip(self.inputs, answers, strict=True)
        ]

    def in_dtype(self, dtype: torch.dtype) -> nn.Module:
        """Return a copy of the model, so that the caller's is left alone."""
        return copy.deepcopy(self.model).to("cpu", dtype).eval()

    @property
    def example(self) -> Tensor:
        """One input ``[1, n_in]`` of the file's dtype."""
        return self.inputs[:1].to(_DTYPES[self.dtype])

    def contract(self, backend: str, cpu: Sequence[str] = ()) -> str:
        """Return the contract as JSON."""
        return to_json(contract_dict(self.signature, backend, self.dtype, self.trials, cpu))

    def compare(self, evaluate: Evaluate, path: Path) -> None:
        """Compare what was written with eager torch in float64."""
        for x, trial in zip(self.inputs, self.trials, strict=True):
            found = evaluate(x[None].to(_DTYPES[self.dtype]))
            for name, got, numbers in zip(("value", "gradient"), found, (trial.values, trial.gradient), strict=True):
                wanted = torch.tensor(numbers, dtype=torch.float64)
                off = float((got.detach().double().flatten() - wanted).abs().max() / wanted.abs().max().clamp(min=1.0))
                if not off <= TOLERANCE[self.dtype]:
                    raise CheckpointError(
                        f"{path.name} gives a {name} that is off by {off:.1e}",
                        expected=f"at most {TOLERANCE[self.dtype]:.0e} in {self.dtype}",
                        remedy="export it in float64",
                    )


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _inputs(signature: Signature, examples: Tensor | None) -> Tensor:
    if examples is not None:
        if examples.ndim != 2 or examples.shape[1] != signature.n_in or not len(examples):
            raise CheckpointError(f"examples of shape {list(examples.shape)}", expected=f"[T, {signature.n_in}]")
        return examples.detach().cpu().double()[:_TRIALS]
    generator = torch.Generator().manual_seed(0)
    arguments = torch.rand(_TRIALS, len(signature.arguments), generator=generator, dtype=torch.float64)
    low = torch.tensor([q.periodic[0] if q.periodic else 0.1 for q in signature.arguments], dtype=torch.float64)
    high = torch.tensor([q.periodic[1] if q.periodic else 1.0 for q in signature.arguments], dtype=torch.float64)
    positions = torch.randn(_TRIALS, 3 * signature.atoms, generator=generator, dtype=torch.float64)
    scale = _SPREAD_NM if signature.length_unit == "nm" else 10 * _SPREAD_NM
    return torch.cat([low + arguments * (high - low), positions * scale], 1)


# ---------------------------------------------------------------- the three formats


def _write_perceptron(job: _Job, path: Path) -> Evaluate:
    content = {**feature_perceptron.to_content(job.model), "contract": json.loads(job.contract("perceptron"))}
    path.write_text(to_json(content), encoding="utf-8")
    model = read_perceptron(path)
    return lambda x: value_and_gradient(model, x)


def _write_script(job: _Job, path: Path) -> Evaluate:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, and PYTORCH_MODEL and NNPot read nothing else
        graph = gradient_graph(job.in_dtype(_DTYPES[job.dtype]), job.example, fuse=False)
        script = torch.jit.trace(graph, job.example)
        torch.jit.save(script, str(path), _extra_files={CONTRACT_FILE: job.contract("torchscript").encode()})
        return torch.jit.load(str(path))


def _write_aoti(job: _Job, path: Path) -> Evaluate:
    graph = gradient_graph(job.in_dtype(_DTYPES[job.dtype]), job.example, fuse=True)
    target = aoti.target(portable=job.portable)
    return aoti.write(graph, job.example, path, job.contract("aoti", target.cpu), target)


_WRITERS: dict[str, Callable[[_Job, Path], Evaluate]] = {
    ".json": _write_perceptron,
    ".pt2": _write_aoti,
    ".pt": _write_script,
}


def read_perceptron(path: Path) -> feature_perceptron.FeaturePerceptron:
    """Read a ``.json`` model back, in float64.

    Args:
        path: the file.

    Raises:
        CheckpointError: if it is no such model.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        from_json(json.dumps(content["contract"]), Path(path).name)
        return feature_perceptron.from_content(content)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is no perceptron of ccg_gmx: {first_line(error)}") from error
