"""Exported models and their contracts; everything here runs without PLUMED."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from plumed_tools import torsion_model, torsion_signature
from torch import nn

from ccg_gmx.errors import CheckpointError, ToolMissingError
from ccg_gmx.export import aoti, torch_model
from ccg_gmx.export.contract import Quantity, Signature, energy, from_json, torsion
from ccg_gmx.export.feature_perceptron import (
    ACTIVATIONS,
    Feature,
    FeaturePerceptron,
    Features,
    Standardize,
    all_distances,
    to_content,
)
from ccg_gmx.export.torch_model import CONTRACT_FILE, export_model, read_perceptron
from ccg_gmx.export.value_and_gradient import SMALL, gradient_graph, value_and_gradient


def script_contract(path: Path) -> dict[str, object]:
    extra = {CONTRACT_FILE: ""}
    torch.jit.load(str(path), _extra_files=extra)
    return from_json(extra[CONTRACT_FILE], path.name)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_built_in_format_gives_eager_torchs_numbers(tmp_path: Path, activation: str) -> None:
    torch.manual_seed(1)
    items = [Feature("sincos", 1), Feature("argument", 0), *all_distances(4), Feature("sincos", 0)]
    model = FeaturePerceptron.build(items, 2, [7, 5, 3], activation)
    outputs = tuple(Quantity(name) for name in "abc")
    signature = Signature((Quantity("d"), torsion("t")), outputs, atoms=4)
    path = export_model(model, signature, tmp_path / "m.json")
    x = torch.randn(20, 14, dtype=torch.float64)
    again = read_perceptron(path)
    assert torch.equal(again(x), model.double()(x))  # every weight to the last bit
    content = json.loads(path.read_text())["contract"]
    assert (content["dtype"], content["n_in"], content["backend"]) == ("float64", 14, "perceptron")
    assert len(content["trials"]) == 4


def test_standardization_is_folded_into_the_next_layer(tmp_path: Path) -> None:
    torch.manual_seed(2)
    scale = Standardize(torch.tensor([0.3, -1.0]), torch.tensor([0.1, 5.0]))
    layers = nn.Sequential(scale, nn.Linear(2, 6), nn.SiLU(), nn.Linear(6, 1, bias=False))
    model = FeaturePerceptron(Features([Feature("argument", 0), Feature("argument", 1)], 2), layers)
    path = export_model(model, Signature((Quantity("a"), Quantity("b")), (energy(),)), tmp_path / "m.json")
    x = torch.randn(9, 2, dtype=torch.float64)
    torch.testing.assert_close(read_perceptron(path)(x), model.double()(x), rtol=1e-12, atol=1e-12)
    assert len(json.loads(path.read_text())["layers"]) == 2


@pytest.mark.parametrize(
    ("layers", "what"),
    [
        (nn.Sequential(nn.Linear(4, 1), nn.GELU()), "GELU"),
        (nn.Sequential(nn.Linear(4, 1), nn.Softplus(beta=2)), "Softplus"),
        (nn.Sequential(nn.Tanh(), nn.Linear(4, 1)), "no linear layer before it"),
    ],
)
def test_layers_that_the_evaluator_does_not_know_are_refused(tmp_path: Path, layers: nn.Sequential, what: str) -> None:
    features = Features([Feature("sincos", 0), Feature("sincos", 1)], 2)
    with pytest.raises(CheckpointError, match=what):
        export_model(FeaturePerceptron(features, layers), torsion_signature(), tmp_path / "m.json")
    with pytest.raises(CheckpointError, match=r"a Linear cannot be written as \.json"):
        to_content(nn.Linear(2, 1))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_torchscript_needs_no_autograd(tmp_path: Path, dtype: str) -> None:
    model = torsion_model(outputs=2)
    outputs = (Quantity("cv1"), Quantity("cv2", "rad", (-math.pi, math.pi)))
    path = export_model(model, torsion_signature(*outputs), tmp_path / "m.pt", dtype=dtype)
    contract = script_contract(path)
    assert (contract["dtype"], contract["gradient_in_graph"], contract["temperature_K"]) == (dtype, True, 300.0)
    script = torch.jit.load(str(path))
    x = torch.randn(1, 2, dtype=torch.float64)
    with torch.inference_mode():  # where autograd is off for good
        values, gradient = script(x.to(getattr(torch, dtype)))
    wanted = value_and_gradient(model.double(), x)
    bound = 1e-10 if dtype == "float64" else 1e-5
    torch.testing.assert_close(values.double(), wanted[0], rtol=bound, atol=bound)
    torch.testing.assert_close(gradient.double(), wanted[1], rtol=bound, atol=bound)


def test_the_callers_model_is_left_alone(tmp_path: Path) -> None:
    model = torsion_model().train()
    export_model(model, torsion_signature(), tmp_path / "m.pt", dtype="float64")
    assert model.training
    assert all(p.requires_grad and p.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("width", [8, SMALL])
def test_the_graph_has_forward_and_backward_and_no_small_products(width: int) -> None:
    model = FeaturePerceptron.build([Feature("argument", 0), Feature("argument", 1)], 2, [width, 1]).double()
    x = torch.randn(1, 2, dtype=torch.float64)
    graph = gradient_graph(model, x, fuse=True)
    products = [node.target for node in graph.graph.nodes if "mm" in str(node.target)]
    assert bool(products) is (width == SMALL)
    for got, wanted in zip(graph(x), value_and_gradient(model, x), strict=True):
        torch.testing.assert_close(got, wanted)
    # torch.export accepts the graph, which it does not of a forward with autograd.grad inside.
    torch.export.export(graph, (x,))


def test_an_output_that_depends_on_nothing_has_a_gradient_of_zero() -> None:
    class Constant(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([x.sum(1, keepdim=True), torch.ones_like(x[:, :1]).requires_grad_(True)], 1)

    _, gradient = value_and_gradient(Constant(), torch.zeros(1, 3))
    assert gradient.tolist() == [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]


class Wrong(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :1].log()


@pytest.mark.parametrize(
    ("model", "signature", "name", "message"),
    [
        (torsion_model(outputs=2), torsion_signature(), "m.json", "gives 2 outputs; expected 1"),
        (torsion_model(), torsion_signature(), "m.onnx", "no suffix of a model"),
        (nn.Linear(5, 1), torsion_signature(), "m.pt", r"cannot be evaluated at an input \[1, 2\]"),
        (Wrong(), Signature((torsion("t"),), (energy(),)), "m.pt", "not finite"),
    ],
    ids=["outputs", "suffix", "width", "nan"],
)
def test_what_does_not_fit_is_one_line_and_leaves_no_file(
    tmp_path: Path, model: nn.Module, signature: Signature, name: str, message: str
) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        export_model(model, signature, tmp_path / name)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_comes_back_different_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_model, "read_perceptron", lambda path: torsion_model(seed=5).double())
    with pytest.raises(CheckpointError, match="gives a value that is off by"):
        export_model(torsion_model(), torsion_signature(), tmp_path / "m.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"outputs": (energy("bias"),)}, "PLUMED keeps for biases"),
        ({"outputs": (energy("a"), energy("a"))}, "one name each"),
        ({"outputs": ()}, "without inputs or without outputs"),
        ({"outputs": (energy(),), "atoms": 2, "serials": (1,)}, "1 atom numbers for 2 atoms"),
    ],
)
def test_signatures_that_plumed_would_refuse(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        Signature((torsion("t"),), **arguments)  # type: ignore[arg-type]


def test_contracts_of_another_version_are_refused(tmp_path: Path) -> None:
    path = export_model(torsion_model(), torsion_signature(), tmp_path / "m.json")
    content = json.loads(path.read_text())
    content["contract"]["version"] = 99
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="version 99; expected ccg_torch_model version 1"):
        read_perceptron(path)
    path.write_text("{}")
    with pytest.raises(CheckpointError, match="is no perceptron of ccg_gmx"):
        read_perceptron(path)


def test_options_that_make_a_package_load() -> None:
    """glibc >= 2.41 refuses objects that ask for an executable stack; machine code must not outrun its machine."""
    options = aoti._options("{}", aoti.Target("x86-64-v3", 256, ("avx2",)))
    assert options["aot_inductor.use_consts_asm_build"] is False
    assert (options["cpp.threads"], options["cpp.march"], options["cpp.simdlen"]) == (1, "x86-64-v3", 256)


def test_a_package_needs_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch itself would end in a traceback from deep inside."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ToolMissingError, match=r"no C\+\+ compiler on PATH; install g\+\+, or export a perceptron"):
        export_model(torsion_model(), torsion_signature(), tmp_path / "m.pt2")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="a .pt2 needs a C++ compiler")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_aotinductor_gives_eager_torchs_numbers(tmp_path: Path, dtype: str) -> None:
    model = FeaturePerceptron.build([*all_distances(3), Feature("sincos", 0)], 1, [9, 2], "silu")
    signature = Signature((torsion("t"),), (energy("a"), Quantity("b")), atoms=3)
    path = export_model(model, signature, tmp_path / "m.pt2", dtype=dtype)
    assert [file.name for file in tmp_path.iterdir()] == ["m.pt2"]
    package = torch._inductor.aoti_load_package(str(path), run_single_threaded=True)
    contract = from_json(package.get_metadata()[aoti.CONTRACT_KEY], path.name)
    assert (contract["backend"], contract["dtype"], contract["n_in"]) == ("aoti", dtype, 10)
    x = torch.randn(1, 10, dtype=torch.float64)
    values, gradient = package(x.to(getattr(torch, dtype)))
    wanted = value_and_gradient(model.double(), x)
    bound = 1e-10 if dtype == "float64" else 1e-5
    torch.testing.assert_close(values.double(), wanted[0], rtol=bound, atol=bound)
    torch.testing.assert_close(gradient.double(), wanted[1], rtol=bound, atol=bound)
