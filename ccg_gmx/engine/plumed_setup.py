"""The plug-in, built if need be and tested: what ``ccg plumed build`` does and other parts ask for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ccg_gmx.engine.plumed_build import Plugin, build, forget, plan, read_record, write_record
from ccg_gmx.engine.plumed_check import check_plugin, try_gmx


def make_plugin(
    *,
    force: bool = False,
    with_torch: bool = True,
    test: bool = True,
    log: Callable[[str], None] = lambda line: None,
) -> Plugin:
    """Return the plug-in for this PLUMED, torch and compiler; build and test it unless the cache has it.

    Args:
        force: build again.
        with_torch: link libtorch, for .pt2 and TorchScript models.
        test: run a model with a known answer through it.
        log: called with a line about each step.

    Raises:
        ToolMissingError: if PLUMED, its headers, a compiler or torch's headers are missing.
        ToolVersionError: if PLUMED is older than 2.10.
        PluginError: if the compiler, the linker, the loader or the test complains.
        StoreError: if the cache cannot be written.
    """
    chosen = plan(with_torch=with_torch)
    known = read_record(chosen.folder)
    if known is not None and not force and (known.checks or not test):
        return known
    built = known if known is not None and not force else build(chosen, log)
    # The record is what makes a build count: a plug-in that fails its test is none.
    forget(built)
    if test:
        built = replace(built, checks=check_plugin(built, try_gmx(), log))
    write_record(built)
    return built
