"""Child processes that never outlive the Python process that started them.

Arguments go as lists, never through a shell. A child leads its own session, so that Ctrl-C reaches Python alone,
which then stops the child in an orderly way. On Linux the kernel sends the child SIGTERM when its parent dies for
whatever reason, ``kill -9`` included (``PR_SET_PDEATHSIG``, prctl(2)); mdrun answers with a last checkpoint.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ccg_gmx.errors import ToolMissingError

_PR_SET_PDEATHSIG = 1
# Loaded here because nothing may be imported or allocated at leisure between fork and exec.
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform.startswith("linux") else None
_GRACE_S = 10.0


@dataclass(frozen=True)
class Finished:
    """Outcome of a short program.

    Attributes:
        returncode: exit status, negative for a signal.
        stdout: everything it wrote to standard output.
        stderr: everything it wrote to standard error.
    """

    returncode: int
    stdout: str
    stderr: str


def die_with_parent(parent: int) -> None:
    """Ask the kernel to end the calling process when the process ``parent`` dies (Linux; elsewhere nothing).

    Args:
        parent: process id of the parent, to notice that it died before the request.
    """
    if _LIBC is None:
        return
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def capture(
    command: Sequence[str], *, cwd: Path | None = None, env: Mapping[str, str] | None = None, text: str = ""
) -> Finished:
    """Run a short program and keep its output.

    Args:
        command: program and arguments.
        cwd: folder to run in.
        env: whole environment; None for that of this process.
        text: what the program reads from standard input.

    Raises:
        ToolMissingError: if the program cannot be started.
    """
    pipe = subprocess.PIPE
    with _child(command, cwd=cwd, env=env, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        stdout, stderr = process.communicate(text.encode())
    return Finished(process.returncode, stdout.decode(errors="replace"), stderr.decode(errors="replace"))


def supervise(
    command: Sequence[str],
    *,
    cwd: Path,
    output: Path,
    env: Mapping[str, str] | None = None,
    watch: Callable[[], None] | None = None,
    poll_s: float = 0.5,
) -> int:
    """Run a long program, its output going to a file, and call ``watch`` while it runs.

    The output is a file rather than a pipe so that it survives this process and nobody has to drain it.

    Args:
        command: program and arguments.
        cwd: folder to run in.
        output: file that receives standard output and standard error.
        env: whole environment; None for that of this process.
        watch: called about every ``poll_s`` seconds; an exception from it stops the program.
        poll_s: seconds between two calls.

    Returns:
        The exit status, negative for a signal.

    Raises:
        ToolMissingError: if the program cannot be started.
    """
    with (
        output.open("wb") as sink,
        _child(command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink) as process,
    ):
        while True:
            try:
                return process.wait(timeout=poll_s)
            except subprocess.TimeoutExpired:
                if watch is not None:
                    watch()


@contextmanager
def _child(
    command: Sequence[str],
    *,
    cwd: Path | None,
    env: Mapping[str, str] | None,
    stdin: int,
    stdout: int | IO[bytes],
    stderr: int | IO[bytes],
) -> Iterator[subprocess.Popen[bytes]]:
    parent = os.getpid()
    try:
        process = subprocess.Popen(
            list(command),
            cwd=cwd,
            env=env,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
            preexec_fn=lambda: die_with_parent(parent),
        )
    except OSError as error:
        raise ToolMissingError(
            f"{command[0]} cannot be started ({error.strerror})", remedy="check the path of the program"
        ) from error
    try:
        yield process
    except BaseException:
        _stop(process)
        raise


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the child's whole process group: politely first, so that mdrun leaves a checkpoint."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(timeout=_GRACE_S)
            return
        except ProcessLookupError:
            process.wait()
            return
        except subprocess.TimeoutExpired:
            continue
