"""Parallel tasks: order, failure, threads, and nothing left behind after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ccg_gmx.engine import parallel
from ccg_gmx.engine.gromacs import Gmx
from ccg_gmx.engine.parallel import report, run_all
from ccg_gmx.errors import MdrunError, ToolError

two_cores = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")


def square(number: int) -> tuple[int, int]:
    time.sleep(0.02 * (3 - number % 4))
    return number**2, os.getpid()


def fail_on_one(number: int) -> int:
    if number == 1:
        raise MdrunError("gmx mdrun", "it blew up", log=Path("run.out"), remedy="shorter step")
    time.sleep(30 if number < 4 else 0)
    return number


def die(number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return number


def threads(use_torch: bool) -> tuple[bool, str, int]:
    loaded = "torch" in sys.modules
    count = 0
    if use_torch:
        import torch

        count = torch.get_num_threads()
    return loaded, os.environ["OMP_NUM_THREADS"], count


def reporting(number: int) -> int:
    for step in range(5):
        report(step / 4)
        time.sleep(0.1)
    return number


def short_run(arguments: tuple[Gmx, Path, Path]) -> float:
    gmx, tpr, folder = arguments
    return gmx.mdrun(tpr, folder, progress=parallel.report_steps).ns_per_day


@two_cores
@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_the_tasks(workers: int) -> None:
    results = run_all(square, range(7), workers)
    assert [value for value, _ in results] == [n**2 for n in range(7)]
    assert len({pid for _, pid in results}) == workers
    assert (os.getpid() in {pid for _, pid in results}) == (workers == 1)


def test_no_tasks_is_no_work() -> None:
    assert run_all(square, [], 2) == []


@two_cores
def test_first_failure_stops_the_rest_and_comes_back_as_itself() -> None:
    start = time.monotonic()
    with pytest.raises(MdrunError, match=r"^gmx mdrun failed: it blew up") as caught:
        run_all(fail_on_one, range(6), 2, label="runs")
    assert caught.value.remedy == "shorter step"
    assert caught.value.log == Path("run.out")
    assert time.monotonic() - start < 20


@two_cores
def test_killed_worker_is_one_clear_line() -> None:
    with pytest.raises(ToolError, match=r"worker process for draws failed: it died without a message; .*memory"):
        run_all(die, range(2), 2, label="draws")


@two_cores
def test_workers_use_one_thread_and_load_torch_only_when_asked() -> None:
    assert run_all(threads, [False, True], 2) == [(False, "1", 0), (False, "1", 1)]


@two_cores
@pytest.mark.parametrize("workers", [1, 2])
def test_progress_counts_parts_of_tasks_and_never_goes_back(workers: int) -> None:
    seen: list[tuple[str, float, int]] = []
    run_all(reporting, range(3), workers, lambda *state: seen.append(state), "blocks")
    done = [value for _, value, _ in seen]
    assert done == sorted(done)
    assert done[-1] == 3
    assert any(value % 1 for value in done)
    assert {(label, total) for label, _, total in seen} == {("blocks", 3)}


def test_report_outside_of_a_task_does_nothing() -> None:
    report(0.5)


@pytest.mark.gmx
@two_cores
def test_two_runs_at_once(gmx: Gmx, alanine_tpr: Path, tmp_path: Path) -> None:
    tasks = [(gmx, alanine_tpr, tmp_path / name) for name in "ab"]
    speeds = run_all(short_run, tasks, 2)
    assert all(speed > 10 for speed in speeds)
    first, second = ((folder / "run.trr").read_bytes() for _, _, folder in tasks)
    assert first == second


PATIENCE_S = 120.0
POOL = """
import os, signal, sys, time
from pathlib import Path
from ccg_gmx.engine.parallel import run_all
import ccg_gmx.engine.gromacs

def sleep(folder):
    (Path(folder) / f"{os.getpid()}.pid").write_text("")
    time.sleep(60)

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
    run_all(sleep, [sys.argv[1]] * 2, 2)
"""


@two_cores
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_die_with_their_parent(tmp_path: Path, number: signal.Signals) -> None:
    script = tmp_path / "pool.py"
    script.write_text(POOL)
    parent = subprocess.Popen([sys.executable, str(script), str(tmp_path)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + PATIENCE_S  # both workers import the package first, on a busy machine too
    while len(pids := [int(path.stem) for path in tmp_path.glob("*.pid")]) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    parent.send_signal(number)
    parent.wait(timeout=60)
    deadline = time.monotonic() + PATIENCE_S
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.05)
