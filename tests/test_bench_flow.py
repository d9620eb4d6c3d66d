"""``ccg bench flow``: its arithmetic, its text, and one short run of all of it."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest
import torch
from click.testing import CliRunner

from ccg_gmx.bench.flow import BY_ENERGY, DRAWN, EAGER, HOW, OURS, WEIGHTED, ZUKO, Rate, bench_flow, bench_text, compare
from ccg_gmx.commands.bench_flow import bench_flow as command
from ccg_gmx.errors import SettingsError


def rate(task: str, program: str, per_s: float, per_cpu_s: float) -> Rate:
    return Rate(task, program, "float64", 2, per_s, per_s / 2, per_cpu_s)


def test_ratios_are_ours_over_theirs():
    rates = [
        *(rate(WEIGHTED, OURS, 100.0, 60.0), rate(WEIGHTED, EAGER, 40.0, 20.0)),
        *(rate(DRAWN, OURS, 90.0, 90.0), rate(DRAWN, ZUKO, 9.0, 10.0)),
    ]
    assert compare(rates) == {
        WEIGHTED: {EAGER: {"wall": 2.5, "processor": 3.0}},
        DRAWN: {ZUKO: {"wall": 10.0, "processor": 9.0}},
    }


def test_text_names_every_rate_ratio_and_omission():
    rates = [rate(WEIGHTED, OURS, 123_400.0, 1.0), rate(WEIGHTED, EAGER, 61_700.0, 1.0)]
    result = {
        "rates": [vars(row) for row in rates],
        "ratios": compare(rates),
        "how": HOW,
        "skipped": {"cuda": "torch finds no CUDA device"},
        "flow": {"coordinates": 58, "couplings": 2, "bins": 5, "kish_fraction_median": 0.1},
        "load_average": {"before": 0.0, "after": 1.0},
    }
    text = bench_text(result)
    assert "123.4" in text
    assert f"{WEIGHTED}: 2.0 x {EAGER}" in text
    assert "left out: cuda: torch finds no CUDA device" in text


def test_unknown_device_is_refused():
    with pytest.raises(SettingsError, match="device 'tpu'"):
        bench_flow(device="tpu")


@pytest.mark.gmx
@pytest.mark.slow
def test_a_short_run_of_everything():
    result = CliRunner().invoke(command, ["--json", "--repeats", "1", "--device", "cuda"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    programs = {row["program"] for row in found["rates"]}
    assert programs >= {OURS, EAGER}
    assert (ZUKO in programs) is (find_spec("zuko") is not None)
    assert {row["task"] for row in found["rates"]} == set(HOW)
    assert all(row["per_s"] > 0 for row in found["rates"])
    assert found["ratios"][BY_ENERGY][EAGER]["wall"] > 0
    assert found["flow"]["coordinates"] == 58
    assert 0 < found["flow"]["kish_fraction_median"] <= 1
    assert ("cuda" in found["skipped"]) is not torch.cuda.is_available()
    assert f"x {EAGER}" in bench_text(found)
