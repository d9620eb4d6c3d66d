"""Independent tasks on the cores of this machine.

A task is a top-level function of small, picklable arguments and file paths. Workers are fresh interpreters (spawn), so
that no lock, thread or random state of the parent leaks into them. Each computes on one thread, dies when the parent
dies, and is stopped when another task fails: a user learns of a mistake at once and not after the longest run.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from ccg_gmx.engine.process import die_with_parent
from ccg_gmx.engine.settings import available_cores
from ccg_gmx.errors import ToolError

Task = TypeVar("Task")
Result = TypeVar("Result")

Progress = Callable[[str, float, int], None]
"""Called with (label, tasks done with the fractions of running ones, tasks in total)."""

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
_POLL_S = 0.25

# Where report() of the current task goes: (index of the task, fraction done) -> None. Set inside a running task only.
_sink: Callable[[int, float], None] | None = None
_index = 0


def report(fraction: float) -> None:
    """Say from within a task how much of it is done; outside of a task it does nothing.

    Args:
        fraction: part of the task that is done, 0 to 1.
    """
    if _sink is not None:
        _sink(_index, fraction)


def report_steps(done: int, total: int) -> None:
    """Say from within a task how many of its steps are done; fits the ``progress`` argument of ``Gmx.mdrun``.

    Args:
        done: steps done.
        total: steps in total.
    """
    report(done / max(total, 1))


def run_all(
    function: Callable[[Task], Result],
    tasks: Sequence[Task],
    workers: int | None = None,
    progress: Progress | None = None,
    label: str = "",
) -> list[Result]:
    """Apply a function to every task, several at the same time, with workers of its own.

    Args:
        function: top-level function.
        tasks: its arguments, one per call, picklable and small.
        workers: upper limit of processes, never more than there are cores or tasks; None for one per core. With one,
            the tasks run in this process.
        progress: called with (label, tasks done so far, tasks in total) when that number changes.
        label: what the tasks are, for ``progress`` and error messages.

    Returns:
        Results in the order of the tasks.

    Raises:
        ToolError: if a worker is killed, by the system for want of memory for instance.
        Exception: the first exception a task raised, as itself; the other tasks are stopped.
    """
    with Workers(workers) as pool:
        return pool.run(function, tasks, progress, label)


class Workers:
    """Worker processes that stay for several groups of tasks: starting one, torch included, takes seconds.

    They are started when they are first needed and stopped by ``close``, or when a task fails.

    Args:
        limit: upper limit of processes, never more than there are cores; None for one per core.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.limit = min(limit or available_cores(), available_cores())
        self._pool: _Pool | None = None

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(
        self,
        function: Callable[[Task], Result],
        tasks: Sequence[Task],
        progress: Progress | None = None,
        label: str = "",
    ) -> list[Result]:
        """Apply a function to every task; ``run_all`` documents arguments and errors.

        A single task runs in this process.
        """
        meter = _Meter(label, len(tasks), progress)
        if min(self.limit, len(tasks)) <= 1:
            return [_run_here(function, index, task, meter) for index, task in enumerate(tasks)]
        self._pool = self._pool or _Pool(self.limit)
        try:
            return self._pool.run(function, tasks, meter)
        except BrokenProcessPool as error:
            self.close()
            raise ToolError(
                f"worker process for {label or 'a task'}",
                "it died without a message",
                remedy="most often the memory ran out: use fewer workers",
            ) from error
        except BaseException:
            self._pool.stop()
            self.close()
            raise

    def close(self) -> None:
        """Stop the workers; they are started again when needed."""
        if self._pool is not None:
            self._pool.executor.shutdown(wait=True, cancel_futures=True)
            self._pool = None


class _Pool:
    """An executor, and the channels to its workers."""

    def __init__(self, workers: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.reports, self.pids, self._stop = context.SimpleQueue(), context.SimpleQueue(), context.Event()
        self.executor = ProcessPoolExecutor(
            workers, context, initializer=_start_worker, initargs=(os.getpid(), self.reports, self.pids, self._stop)
        )

    def run(self, function: Callable[[Task], Result], tasks: Sequence[Task], meter: _Meter) -> list[Result]:
        _drained(self.reports)  # what the last group said after it was done
        futures = [self.executor.submit(_run_in_worker, function, index, task) for index, task in enumerate(tasks)]
        _follow(futures, self.reports, meter)
        return [future.result() for future in futures]

    def stop(self) -> None:
        """Stop all workers now."""
        self._stop.set()  # for workers that are still starting and have not said who they are
        _terminate(self.pids)


class _Meter:
    """Adds up what tasks report; never goes backwards."""

    def __init__(self, label: str, total: int, progress: Progress | None) -> None:
        self.label, self.total, self._progress = label, total, progress
        self._fractions: dict[int, float] = {}
        self._shown = -1.0

    def update(self, index: int, fraction: float) -> None:
        self._fractions[index] = max(self._fractions.get(index, 0.0), min(max(fraction, 0.0), 1.0))
        done = sum(self._fractions.values())
        if self._progress is not None and done > self._shown:
            self._shown = done
            self._progress(self.label, done, self.total)


def _run_here(function: Callable[[Task], Result], index: int, task: Task, meter: _Meter) -> Result:
    result = _call(function, index, task, meter.update)
    meter.update(index, 1.0)
    return result


def _call(
    function: Callable[[Task], Result], index: int, task: Task, sink: Callable[[int, float], None] | None
) -> Result:
    global _sink, _index
    outer = _sink, _index
    _sink, _index = sink, index
    try:
        return function(task)
    finally:
        _sink, _index = outer


def _follow(futures: list[Future[Any]], reports: Any, meter: _Meter) -> None:
    """Wait for all, or for the first that fails, which is raised."""
    position = {future: index for index, future in enumerate(futures)}
    pending = set(futures)
    while pending:
        done, pending = wait(pending, timeout=_POLL_S, return_when=FIRST_COMPLETED)
        for index, fraction in _drained(reports):
            meter.update(index, fraction)
        for future in sorted(done, key=position.__getitem__):
            future.result()
            meter.update(position[future], 1.0)


def _drained(channel: Any) -> list[Any]:
    items = []
    with suppress(queue.Empty, EOFError):
        while not channel.empty():
            items.append(channel.get())
    return items


def _terminate(pids: Any) -> None:
    """Stop the workers; their own children (mdrun) get the signal from the kernel and leave a checkpoint."""
    for pid in _drained(pids):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)


_worker_sink: Callable[[int, float], None] | None = None
_worker_stop: Any = None


def _start_worker(parent: int, reports: Any, pids: Any, stop: Any) -> None:
    global _worker_sink, _worker_stop
    die_with_parent(parent)
    # Ctrl-C reaches the whole terminal group; the parent decides and then stops the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for variable in _THREAD_VARIABLES:
        os.environ[variable] = "1"
    if "torch" in sys.modules:  # it read the environment when it was loaded; one that loads later will
        sys.modules["torch"].set_num_threads(1)
    pids.put(os.getpid())
    _worker_sink, _worker_stop = partial(_send, reports), stop


def _send(reports: Any, index: int, fraction: float) -> None:
    reports.put((index, fraction))


def _run_in_worker(function: Callable[[Task], Result], index: int, task: Task) -> Result:
    if _worker_stop.is_set():
        raise CancelledError
    return _call(function, index, task, _worker_sink)
