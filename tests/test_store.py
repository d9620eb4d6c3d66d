"""The store: what a key depends on, folders whole or not at all, one run per folder, refusals in one line."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_cycle import small_disk

from ccg_gmx.cycle.status import run_status
from ccg_gmx.cycle.store import (
    PARTIAL,
    RECORD,
    Job,
    Store,
    Work,
    code_version,
    file_hash,
    job_key,
    read_json,
    write_json,
)
from ccg_gmx.errors import CcgError, SettingsError, StoreError, TrajectoryError
from ccg_gmx.flow.checkpoint import write_torch


def count(work: Work) -> None:
    """Leave a result, and a line outside that tells how often it was called."""
    with Path(work.context["calls"]).open("a", encoding="utf-8") as calls:
        calls.write(f"{work.settings['value']} {os.getpid()}\n")
    write_json(work.folder / "result.json", work.settings["value"] * 2)


def stop_in_the_middle(work: Work) -> None:
    """Write a checkpoint and half a file, then fail, unless there is a checkpoint already."""
    checkpoint = work.folder / "checkpoint"
    if checkpoint.exists():
        write_json(work.folder / "result.json", {"left": sorted(path.name for path in work.folder.iterdir())})
        return
    work.progress(3, 10)
    checkpoint.write_text("half way", encoding="utf-8")
    (work.folder / ".result.json.123.tmp").write_text("{", encoding="utf-8")
    raise TrajectoryError("no luck today")


def fail_to_write(work: Work) -> None:
    """Raise what an operating system, or numpy, raises."""
    number, name = work.settings["errno"], work.settings.get("file")
    if number is None:
        raise OSError("100000 requested and 25584 written")
    raise OSError(number, os.strerror(number), *([name] if name else []))


def fill(work: Work) -> None:
    """Write a megabyte, in the way of the library that is asked for."""
    path, ways = work.folder / "big", {"python": bytes(2**20), "numpy": np.zeros(2**17), "torch": torch.zeros(2**18)}
    content = ways[work.settings["way"]]
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, np.ndarray):
        np.save(path, content)
    else:
        write_torch({"content": content}, path)


@pytest.fixture
def calls(tmp_path: Path) -> Path:
    return tmp_path / "calls"


def job(value: int, calls: Path, **changes: object) -> Job:
    return replace(Job("count", count, {"value": value}, context={"calls": str(calls)}), **changes)


def called(calls: Path) -> list[str]:
    return [line.split()[0] for line in calls.read_text(encoding="utf-8").splitlines()] if calls.exists() else []


# What a key depends on


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "other"},
        {"settings": {"a": 2, "b": {"x": 1, "y": 2}}},
        {"settings": {"a": 1, "b": {"x": 1, "y": 2}, "c": None}},
        {"settings": {"a": 1, "b": {"y": 2, "x": 1}}},  # the order of beads and torsions means something
        {"seed": 8},
    ],
)
def test_key_changes_with_name_settings_and_seed(changes: dict[str, object]) -> None:
    base = Job("stage", count, {"a": 1, "b": {"x": 1, "y": 2}}, seed=7)
    assert job_key(replace(base, **changes)) != job_key(base)
    assert job_key(replace(base)) == job_key(base)


def test_key_changes_with_the_content_of_a_file_and_not_with_its_name_or_date(tmp_path: Path) -> None:
    first, copy, other = (tmp_path / name for name in ("a.top", "b.top", "c.top"))
    first.write_text("ATOM", encoding="utf-8")
    shutil.copy(first, copy)
    os.utime(copy, (1, 1))
    other.write_text("ATOMS", encoding="utf-8")
    keys = [job_key(Job("stage", count, inputs={"topology": path})) for path in (first, copy, other)]
    assert keys[0] == keys[1] != keys[2]


def test_key_does_not_change_with_context(calls: Path) -> None:
    assert job_key(job(1, calls)) == job_key(job(1, calls, context={"engine": {"workers": 7}}))


def test_key_of_a_stage_folder_is_its_name_so_that_a_run_may_be_moved(tmp_path: Path, calls: Path) -> None:
    (first,) = Store(tmp_path / "here").run([job(1, calls)])
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    second = tmp_path / "there" / "stages" / first.name
    later = [job_key(job(5, calls, inputs={"before": folder})) for folder in (first, second)]
    assert later[0] == later[1]
    other = Store(tmp_path / "here").run([job(2, calls)])[0]
    assert job_key(job(5, calls, inputs={"before": other})) != later[0]


def test_input_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot read"):
        file_hash(tmp_path / "nothing.top")


def test_code_version_names_the_package_and_its_sources() -> None:
    version, digest = code_version().split("+")
    assert version
    assert len(digest) == 16


# Whole or not at all


def test_finished_stage_is_not_run_again(tmp_path: Path, calls: Path) -> None:
    jobs = [job(value, calls) for value in (1, 2, 3)]
    first = Store(tmp_path / "run").run(jobs[:2])
    again = Store(tmp_path / "run").run(jobs)
    assert called(calls) == ["1", "2", "3"]
    assert again[:2] == first
    assert [read_json(folder / "result.json") for folder in again] == [2, 4, 6]


def test_a_pool_gives_the_same_folders_as_one_process(tmp_path: Path, calls: Path) -> None:
    jobs = [job(value, calls) for value in (1, 2)]
    alone = Store(tmp_path / "alone", workers=1).run(jobs)
    pool = Store(tmp_path / "pool", workers=2).run(jobs)
    assert [path.name for path in alone] == [path.name for path in pool]
    for left, right in zip(alone, pool, strict=True):
        assert (left / "result.json").read_bytes() == (right / "result.json").read_bytes()


def test_record_says_what_a_folder_came_from(tmp_path: Path, calls: Path) -> None:
    source = tmp_path / "source"
    source.write_text("x", encoding="utf-8")
    (folder,) = Store(tmp_path / "run").run([job(1, calls, seed=5, inputs={"source": source})])
    record = read_json(folder / RECORD)
    assert (record["name"], record["seed"], record["settings"]) == ("count", 5, {"value": 1})
    assert record["inputs"] == {"source": file_hash(source)}
    assert record["code"] == code_version()
    assert record["wall_s"] >= 0


def test_failed_stage_leaves_no_final_folder_and_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    stopped = Job("fragile", stop_in_the_middle)
    with pytest.raises(TrajectoryError, match="no luck"):
        Store(tmp_path).run([stopped])
    assert not list((tmp_path / "stages").glob("[!.]*"))
    (partial,) = (tmp_path / "stages").glob(f"{PARTIAL}*")
    assert (partial / "checkpoint").read_text(encoding="utf-8") == "half way"
    (folder,) = Store(tmp_path).run([stopped])
    # what was torn is gone, the checkpoint was there
    assert read_json(folder / "result.json")["left"] == ["checkpoint", "progress.json"]
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint", "result.json", RECORD]
    assert not partial.exists()


def test_sweep_removes_what_other_settings_left_half_done(tmp_path: Path, calls: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(TrajectoryError):
        store.run([Job("fragile", stop_in_the_middle)])
    (done,) = store.run([job(1, calls)])
    torn, mine = tmp_path / ".fes.npz.123.tmp", tmp_path / ".gitignore"
    for path in (torn, mine):
        path.touch()
    store.sweep()
    assert not torn.exists()
    assert mine.exists()
    assert [path.name for path in store.stages.iterdir()] == [done.name]


def test_seconds_of_all_attempts_count(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(TrajectoryError):
        store.run([Job("fragile", stop_in_the_middle)])
    (partial,) = store.stages.glob(f"{PARTIAL}*")
    state = read_json(partial / "progress.json")
    write_json(partial / "progress.json", {**state, "wall_s": 1000.0})
    store.run([Job("fragile", stop_in_the_middle)])
    assert 1000.0 <= store.wall_seconds()["fragile"] < 1060.0


def test_json_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"a": 1}


def test_json_is_strict(tmp_path: Path) -> None:
    write_json(tmp_path / "value.json", {"a": [math.nan, 1.5, (math.inf, -math.inf)]})

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    text = (tmp_path / "value.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=refuse) == {"a": [None, 1.5, [None, None]]}


@pytest.mark.parametrize("name", [RECORD, "summary.json"])
def test_damaged_json_names_what_to_remove(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"half', encoding="utf-8")
    with pytest.raises(StoreError, match="is damaged") as caught:
        read_json(tmp_path / name)
    assert caught.value.remedy is not None
    assert f"remove {tmp_path if name == RECORD else tmp_path / name} and" in caught.value.remedy


# Status


def test_status_tells_done_and_under_way(tmp_path: Path, calls: Path) -> None:
    store = Store(tmp_path)
    store.run([job(1, calls), job(2, calls)])
    with pytest.raises(TrajectoryError):
        store.run([Job("fragile", stop_in_the_middle)])
    state = run_status(tmp_path)
    assert state["stages"]["count"]["done"] == 2
    assert state["under_way"] == [{"stage": "fragile", "percent": pytest.approx(30.0)}]
    assert "not finished" in state["words"]


def test_status_of_a_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds no run"):
        run_status(tmp_path)


@pytest.mark.parametrize(
    ("last", "words"),
    [
        ({"seed": 1, "engine": {"workers": 2}}, "finished and converged"),
        ({"seed": 2, "engine": {"workers": 8}}, "finished with earlier settings"),
    ],
)
def test_status_tells_results_of_earlier_settings(tmp_path: Path, last: dict[str, object], words: str) -> None:
    (tmp_path / "stages").mkdir()
    write_json(tmp_path / "summary.json", {"converged": True})
    write_json(tmp_path / "results.json", {"workflow": {"seed": 1, "engine": {"workers": 8}}})
    write_json(tmp_path / "manifest.json", {"workflow": last})
    assert words in run_status(tmp_path)["words"]


def test_status_does_not_wait_for_torch() -> None:
    script = "import sys, ccg_gmx.cycle.status; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


# One run per folder


def test_second_run_in_one_folder_is_refused(tmp_path: Path) -> None:
    first, second = Store(tmp_path), Store(tmp_path)
    with first.lock(), pytest.raises(StoreError, match="in use by another ccg run"), second.lock():
        pass
    with second.lock():
        pass


def test_a_killed_run_leaves_no_lock(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from ccg_gmx.cycle.store import Store\n"
        "with Store(Path(sys.argv[1])).lock():\n    print('locked', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"locked\n"
    with pytest.raises(StoreError), Store(tmp_path).lock():
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    with Store(tmp_path).lock():
        pass


# Refusals


def refused(root: Path, stage: Job) -> CcgError:
    with pytest.raises(StoreError) as caught:
        Store(root).run([stage])
    assert "\n" not in str(caught.value)
    return caught.value


def test_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine", encoding="utf-8")
    with pytest.raises(StoreError, match="cannot write in"):
        Store(tmp_path / "run")
    assert (tmp_path / "run").read_text(encoding="utf-8") == "mine"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc, which nobody may write to")
def test_folder_that_nobody_may_make() -> None:
    with pytest.raises(StoreError, match="cannot write in /proc"):
        Store(Path("/proc/ccg"))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, None])
def test_refusal_to_write_within_a_stage_is_one_line(tmp_path: Path, number: int | None) -> None:
    error = refused(tmp_path, Job("writes", fail_to_write, {"errno": number}))
    assert os.strerror(number or errno.ENOSPC) in str(error)
    assert error.exit_code == 2


def test_refusal_names_the_run_folder_only_where_it_is_about_it(tmp_path: Path) -> None:
    inside, outside = str(tmp_path / "stages" / "x"), "/somewhere/else"
    refused(tmp_path, Job("writes", fail_to_write, {"errno": errno.EACCES, "file": inside}))
    with pytest.raises(PermissionError):
        Store(tmp_path).run([Job("writes", fail_to_write, {"errno": errno.EACCES, "file": outside})])


def test_other_errors_of_the_system_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Store(tmp_path).run([Job("writes", fail_to_write, {"errno": errno.ENOENT})])


@pytest.mark.parametrize(("way", "workers"), [("python", 1), ("numpy", 1), ("torch", 1), ("torch", 2)])
def test_full_disk(tmp_path: Path, way: str, workers: int) -> None:
    with small_disk(tmp_path / "disk", kilobytes=256) as disk:
        store = Store(disk, workers)
        with pytest.raises(StoreError, match="No space left on device"):
            store.run([Job("fill", fill, {"way": way, "value": value}) for value in range(workers)])
        assert not list(store.stages.glob("[!.]*"))


def test_read_only_disk(tmp_path: Path, calls: Path) -> None:
    with small_disk(tmp_path / "disk", kilobytes=256) as disk:
        store = Store(disk)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(StoreError, match="Read-only file system"):
            store.run([job(1, calls)])
        with pytest.raises(StoreError, match="Read-only file system"), store.lock():
            pass
        with pytest.raises(StoreError, match="Read-only file system"):
            Store(disk / "new")
    assert called(calls) == []
