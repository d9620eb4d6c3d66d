"""AOTInductor packages (``.pt2``): machine code of a traced graph, with its contract as metadata."""

from __future__ import annotations

import os
import platform
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from ccg_gmx.errors import CheckpointError, ToolMissingError

CONTRACT_KEY = "ccg_contract"
"""Key of the contract in the package's metadata."""


@dataclass(frozen=True)
class Target:
    """The kind of CPU that machine code is made for.

    Attributes:
        march: the compiler's ``-march``; None for this CPU's.
        simdlen: width of vectors in bits; None for this CPU's.
        cpu: instruction sets that the plug-in must find before it loads the code.
    """

    march: str | None
    simdlen: int | None
    cpu: tuple[str, ...]


def target(*, portable: bool) -> Target:
    """Return the CPU to compile for.

    Args:
        portable: every x86-64 CPU since 2013 (AVX2) rather than this one; without effect on other architectures.
    """
    capability = torch.backends.cpu.get_cpu_capability()
    if platform.machine() not in ("x86_64", "AMD64") or capability not in ("AVX2", "AVX512"):
        return Target(None, None, ())
    if portable:
        return Target("x86-64-v3", 256, ("avx2", "fma"))
    return Target(None, None, ("avx2", "fma", "avx512f") if capability == "AVX512" else ("avx2", "fma"))


def write(
    graph: GraphModule, example: Tensor, path: Path, contract: str, chosen: Target
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Compile a graph into a package, 10 to 20 seconds.

    Args:
        graph: ``[1, n_in] -> ([n_out], [n_out, n_in])``.
        example: one input.
        path: file to write, ``.pt2``.
        contract: JSON for its metadata.
        chosen: CPU to compile for.

    Returns:
        The package, loaded again.

    Raises:
        ToolMissingError: if there is no C++ compiler.
        CheckpointError: if torch cannot export or compile the graph.
    """
    if not (os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")):
        raise ToolMissingError(
            "a .pt2 is compiled code and there is no C++ compiler on PATH",
            remedy="install g++, or export a perceptron as .json",
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch about torch
            program = torch.export.export(graph, (example,))
            torch._inductor.aoti_compile_and_package(
                program, package_path=str(path), inductor_configs=_options(contract, chosen)
            )
        return torch._inductor.aoti_load_package(str(path), run_single_threaded=True)
    except Exception as error:  # torch's compilers raise whatever they like
        line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise CheckpointError(
            f"torch {torch.__version__} cannot compile the model: {line[:300]}",
            remedy="check the compiler (ccg doctor), or export it as .pt",
        ) from error


def _options(contract: str, chosen: Target) -> dict[str, Any]:
    options: dict[str, Any] = {
        "aot_inductor.metadata": {CONTRACT_KEY: contract},
        # As assembly the weights get a section that asks for an executable stack, which glibc >= 2.41 refuses to load.
        "aot_inductor.use_consts_asm_build": False,
        # Indices are constants of the model, seen in range when it was traced.
        "assert_indirect_indexing": False,
        # The MD engine owns the cores.
        "cpp.threads": 1,
    }
    if chosen.march:
        options["cpp.march"] = chosen.march
    if chosen.simdlen:
        options["cpp.simdlen"] = chosen.simdlen
    return options
