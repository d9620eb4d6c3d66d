"""``ccg bench plugin``: its arithmetic, its input files, its text, and one short run of all of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ccg_gmx.bench import plugin as bench
from ccg_gmx.bench.plugin import (
    ANN,
    BUILT_IN,
    CASES,
    PACKAGE,
    PYTORCH,
    SMALL,
    Cost,
    bench_plugin,
    bench_text,
    summarize,
)
from ccg_gmx.engine.plumed_build import Plugin
from ccg_gmx.errors import SettingsError


def test_ratios_are_of_overheads_above_the_base_of_the_same_model_and_threads() -> None:
    costs = [
        Cost(SMALL, "base", 1, 32.0, 40.0),
        Cost(SMALL, BUILT_IN, 1, 36.0, 44.0),
        Cost(SMALL, PYTORCH, 1, 132.0, 140.0),
        Cost(SMALL, "base", 2, 50.0, 20.0),
        Cost(SMALL, BUILT_IN, 2, 90.0, 27.0),
    ]
    result = {**summarize(costs), "skipped": {ANN: "the kernel has no such module"}}
    assert result["overhead_us"] == {SMALL: {BUILT_IN: 4.0, PYTORCH: 100.0}}
    assert result["ratio_to_pytorch_model"] == {SMALL: {BUILT_IN: 25.0}}
    assert result["overhead_us_by_threads"]["2"] == {SMALL: {BUILT_IN: 7.0}}  # wall-clock: waiting threads spin
    text = bench_text(result)
    assert "25.0 times cheaper than PYTORCH_MODEL (target 20)" in text
    assert "ANN: the kernel has no such module" in text


def test_every_way_gets_the_same_torsions_and_its_own_model(tmp_path: Path) -> None:
    for case in CASES:
        ways = bench._ways(case, tmp_path, False, {PYTORCH: True, ANN: True})
        assert set(ways) == {"base", BUILT_IN, PYTORCH, ANN}
        assert all(text.startswith(ways["base"]) for text in ways.values())
        assert "BIAS" in ways[BUILT_IN]
        assert ways[PYTORCH].count("DISTANCE") == (0 if case.torsions else 45)
        assert PACKAGE not in ways


def test_gromacs_own_words_are_found() -> None:
    text = "Program: gmx\nFunction:    gmx::f(int)\n\nInternal error (bug):\nno such\nmodel\n\nFor more information and"
    assert bench._reason(text) == "Internal error (bug): no such model"
    assert bench._reason("anything\nelse\n") == "anything else"


def test_too_few_steps_are_refused() -> None:
    with pytest.raises(SettingsError, match="at least 2000 steps"):
        bench_plugin(steps=10)


@pytest.mark.plumed
@pytest.mark.gmx
@pytest.mark.slow
def test_a_short_run_measures_every_way(plugin: Plugin, gmx: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "CASES", CASES[:1])
    result = bench_plugin(steps=2000, repeats=1, threads=(1,))
    ways = {cost["way"] for cost in result["costs"]}
    assert {"base", BUILT_IN} <= ways
    assert (PACKAGE in ways) is bool(plugin.torch)
    assert all(cost["cpu_us"] > 0 for cost in result["costs"])
