"""GROMACS by its own programs: grompp, mdrun (with its checkpoints), mdrun -rerun, dump, energy, awh."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, NoReturn, Self

from ccg_gmx.engine.failures import diagnose
from ccg_gmx.engine.gmx_program import MINIMUM_VERSION, checked_version, locate_gmx, version_field
from ccg_gmx.engine.plumed import find_kernel
from ccg_gmx.engine.process import Finished, capture, supervise
from ccg_gmx.engine.run_files import (
    MdrunResult,
    ProgressCallback,
    ProgressWatch,
    RunFiles,
    existing,
    tail,
    writable_folder,
    write_text,
)
from ccg_gmx.engine.settings import EngineSettings
from ccg_gmx.engine.xvg import read_xvg
from ccg_gmx.errors import (
    GmxDumpError,
    GmxEnergyError,
    GromppError,
    MdrunError,
    SettingsError,
    ToolError,
    TrajectoryError,
)
from ccg_gmx.records import FloatArray

__all__ = ["MINIMUM_VERSION", "EngineSettings", "Gmx", "MdrunResult"]

_FULL_DISK_BYTES = 65536


@dataclass(frozen=True)
class Gmx:
    """One GROMACS installation.

    Attributes:
        path: the gmx program.
        version: its version, ``2025.2`` for instance.
        precision: ``mixed`` or ``double``.
        gpu_support: ``disabled``, ``CUDA``, ``OpenCL``, ``SYCL`` or ``HIP``.
        settings: how it uses the machine.
    """

    path: Path
    version: str
    precision: str
    gpu_support: str = "disabled"
    settings: EngineSettings = field(default_factory=EngineSettings)

    tool: ClassVar[str] = "gmx mdrun"
    """Name of mdrun in error messages."""

    @classmethod
    def find(cls, settings: EngineSettings | None = None) -> Self:
        """Find gmx and check its version.

        Args:
            settings: where to look and how to run; None for the defaults.

        Raises:
            ToolMissingError: if there is no gmx.
            ToolVersionError: if it is older than 2025 or does not say what it is.
            SettingsError: if a GPU is asked for and this gmx has no GPU support.
        """
        settings = settings or EngineSettings()
        path = locate_gmx(settings.gmx)
        result = capture([str(path), "--version"], env=_environment(1))
        gpu = version_field(result.stdout, "GPU support") or "disabled"
        version = checked_version(path, result)
        if settings.gpu and gpu == "disabled":
            raise SettingsError(
                f"gpu: true, but {path} {version} is built without GPU support",
                remedy="set gpu: false or use a GPU build",
            )
        return cls(path, version, version_field(result.stdout, "Precision") or "mixed", gpu, settings)

    def grompp(
        self,
        mdp: Mapping[str, str] | str,
        conf: Path,
        top: Path,
        out: Path,
        *,
        index: Path | None = None,
        workdir: Path | None = None,
        maxwarn: int = 0,
    ) -> Path:
        """Make a run input file.

        Args:
            mdp: an :class:`~ccg_gmx.engine.mdp.Mdp`, or the text of an .mdp file.
            conf: structure.
            top: topology.
            out: run input file to write; its mdp text is kept beside it as ``<stem>.mdp``.
            index: index file.
            workdir: folder to run in; None for the folder of ``out``.
            maxwarn: number of grompp warnings to accept.

        Returns:
            The absolute path of ``out``.

        Raises:
            GromppError: with the decisive line of grompp's output.
            SettingsError: if an input file does not exist.
            StoreError: if the folder cannot be written.
        """
        out = writable_folder(Path(out).parent) / Path(out).name
        folder = writable_folder(workdir or out.parent)
        text = mdp if isinstance(mdp, str) else "".join(f"{key} = {value}\n" for key, value in mdp.items())
        mdp_file, partial = folder / f"{out.stem}.mdp", out.with_name(f"{out.stem}.partial.tpr")
        write_text(mdp_file, text)
        arguments = ["-f", mdp_file, "-c", existing(conf, "structure"), "-p", existing(top, "topology")]
        arguments += ["-o", partial, "-po", folder / f"{out.stem}.processed.mdp", "-maxwarn", maxwarn]
        if index is not None:
            arguments += ["-n", existing(index, "index file")]
        result = self._capture("grompp", *arguments, cwd=folder)
        log = folder / f"{out.stem}.grompp.log"
        write_text(log, result.stdout + result.stderr)
        if result.returncode:
            partial.unlink(missing_ok=True)
            _fail(GromppError, "gmx grompp", result.stderr, result.returncode, log)
        os.replace(partial, out)
        return out

    def mdrun(
        self,
        tpr: Path,
        workdir: Path,
        *,
        name: str = "run",
        steps_total: int | None = None,
        progress: ProgressCallback | None = None,
        tables: Sequence[Path] = (),
        checkpoint_minutes: float = 0.25,
        plumed: Path | None = None,
    ) -> MdrunResult:
        """Run to the end, from the last checkpoint if there is one; a finished run is not run again.

        Files are ``<name>.trr``, ``.xtc``, ``.edr``, ``.log``, ``.gro``, ``.cpt`` in ``workdir``, mdrun's screen output
        in ``<name>.out``, and ``<name>.json`` that ties them to the run input file and says whether they are whole.
        With one seed a run that was killed and resumed gives the same frames as one that was not (``-reprod``).

        Args:
            tpr: run input file.
            workdir: folder to run in.
            name: stem of the files.
            steps_total: number of steps for ``progress`` when known; None takes it from the log.
            progress: called with (steps done, steps in total) about twice a second.
            tables: bonded tables (``-tableb``), named ``*_b0.xvg``, ``*_a0.xvg``, ``*_d0.xvg``.
            checkpoint_minutes: time between checkpoints.
            plumed: PLUMED input file (``-plumed``); names of files in it are relative to ``workdir``. On a resume
                PLUMED appends to its files.

        Raises:
            MdrunError: with the decisive line of mdrun's output, or if the run was stopped before its last step.
            StoreError: if the folder cannot be written, or holds a run of another run input file under this name.
            SettingsError: if an input file does not exist.
            ToolMissingError: if a PLUMED input is given and there is no PLUMED kernel.
        """
        tpr = existing(tpr, "run input file")
        plumed = None if plumed is None else existing(plumed, "PLUMED input")
        files = RunFiles(writable_folder(workdir), name)
        finished = files.open_record(tpr, plumed)
        if finished is not None:
            return finished
        options = self._mdrun_options(files, tables, checkpoint_minutes, steps_total)
        options += [] if plumed is None else ["-plumed", str(plumed)]
        environment = self._environment(plumed is not None)
        command = self._mdrun_process(tpr, options)
        watch = ProgressWatch(files, progress, steps_total) if progress else None
        code = supervise(command, cwd=files.folder, output=files["out"], env=environment, watch=watch)
        if code:
            text = tail(files["log"], 200_000) + tail(files["out"], 200_000)
            _fail(MdrunError, self.tool, text, code, files["out"])
        result = files.close_record(tpr, plumed, self.tool)
        if progress:
            progress(result.steps, result.steps)
        return result

    def rerun(
        self, tpr: Path, trajectory: Path, workdir: Path, *, tables: Sequence[Path] = ()
    ) -> dict[str, FloatArray]:
        """Compute the energy terms of existing frames (``mdrun -rerun``).

        Args:
            tpr: run input file.
            trajectory: frames, .trr for full precision.
            workdir: folder for the log and the energy file.
            tables: bonded tables, as for :meth:`mdrun`.

        Returns:
            Term name as GROMACS prints it ("Bond", "LJ (SR)", "Potential", ...) -> ``[T]`` kJ/mol, with the full
            precision of the energy file (float32 for a mixed-precision GROMACS).

        Raises:
            MdrunError: if mdrun fails, because atom counts differ for instance.
            TrajectoryError: if the trajectory ends within a frame.
            GmxEnergyError: if the energy file cannot be read.
        """
        files = RunFiles(writable_folder(workdir), "rerun")
        options = ["-rerun", str(existing(trajectory, "trajectory"))]
        options += [*files.options("-o", "-e", "-c", "-g"), *self._placement(), *_table_options(tables)]
        command = self._mdrun_process(existing(tpr, "run input file"), options)
        code = supervise(command, cwd=files.folder, output=files["out"], env=self._environment())
        if code:
            _fail(MdrunError, f"{self.tool} -rerun", tail(files["out"], 200_000), code, files["out"])
        files["trr"].unlink(missing_ok=True)  # a copy of the input
        if torn := re.search(r"WARNING: (Incomplete (?:header|frame).*)", tail(files["out"], 20_000)):
            # mdrun leaves the torn frame out and ends as if nothing had happened.
            raise TrajectoryError(f"{trajectory} is truncated ({torn[1]})", remedy="write it again")
        terms = self.energies(files["edr"])
        del terms["Time"]
        return terms

    def energies(self, edr: Path) -> dict[str, FloatArray]:
        """Read all terms of an energy file.

        Args:
            edr: energy file.

        Returns:
            Term name as GROMACS prints it -> ``[T]``, kJ/mol for energies (K, bar, ... for others); "Time" in ps.

        Raises:
            GmxEnergyError: if gmx energy cannot read the file.
        """
        edr = existing(edr, "energy file")
        xvg = edr.with_name(f"{edr.stem}.energy.xvg")
        # All numbers that could be a term: gmx energy reports those past the last term and ignores them.
        every_term = " ".join(str(number) for number in range(1, 400)) + " 0\n"
        result = self._capture(
            "energy", "-f", edr, "-o", xvg, "-dp", "-xvg", "xmgrace", cwd=edr.parent, text=every_term
        )
        if result.returncode:
            _fail(GmxEnergyError, "gmx energy", result.stderr, result.returncode, None)
        names, values = read_xvg(xvg)
        xvg.unlink()
        return {"Time": values[:, 0], **{name: values[:, column + 1] for column, name in enumerate(names)}}

    def dump(self, tpr: Path) -> str:
        """Return what ``gmx dump -s`` prints about a run input file.

        Args:
            tpr: run input file.

        Raises:
            GmxDumpError: if it is not a run input file this gmx can read.
        """
        result = self._capture("dump", "-s", existing(tpr, "run input file"))
        if result.returncode:
            _fail(GmxDumpError, "gmx dump", result.stderr, result.returncode, None)
        return result.stdout

    def awh(self, edr: Path, tpr: Path, out: Path) -> tuple[Path, ...]:
        """Write the surfaces of an AWH run (``gmx awh -more``: free energy in kJ/mol, bias, histograms).

        Args:
            edr: energy file of the run.
            tpr: its run input file.
            out: ``NAME.xvg``; the files become ``NAME_t<time in ps>.xvg``.

        Returns:
            The files in order of time; the last is the final estimate.

        Raises:
            ToolError: if gmx awh fails.
        """
        out = Path(out).absolute()
        edr, tpr = existing(edr, "energy file"), existing(tpr, "run input file")
        folder = writable_folder(out.parent)
        # a bare name: gmx awh cuts a path at its first dot, also one in the name of a folder
        result = self._capture("awh", "-f", edr, "-s", tpr, "-o", out.name, "-more", cwd=folder)
        if result.returncode:
            _fail(ToolError, "gmx awh", result.stderr, result.returncode, None)
        pattern = re.compile(re.escape(out.stem) + r"_t([\d.]+)\.xvg")
        found = [(float(match[1]), path) for path in folder.iterdir() if (match := pattern.fullmatch(path.name))]
        return tuple(path for _, path in sorted(found))

    def _mdrun_process(self, tpr: Path, options: Sequence[str]) -> list[str]:
        """Command line of a process that runs mdrun with these options."""
        return [str(self.path), "mdrun", "-s", str(tpr), *options]

    def _mdrun_options(
        self, files: RunFiles, tables: Sequence[Path], checkpoint_minutes: float, steps: int | None
    ) -> list[str]:
        options = files.options("-o", "-x", "-c", "-e", "-g", "-cpo")
        if files.recover_checkpoint():
            options += ["-cpi", files["cpt"].name]
        placement = self._placement()
        if placement[placement.index("-nb") + 1] != "gpu":  # GPU kernels sum in no fixed order; mdrun refuses both
            options.append("-reprod")
        options += ["-cpt", str(checkpoint_minutes), *placement]
        options += ["-v", "-stepout", str(max(100, steps // 500) if steps else 1000)]
        return options + _table_options(tables)

    def _placement(self) -> list[str]:
        """Options that place one run on the machine: several runs side by side must not pin to the same core."""
        flags = list(self.settings.mdrun_flags)
        options = ["-ntmpi", "1", "-ntomp", str(self.settings.threads_per_run)]
        if "-pin" not in flags:
            options += ["-pin", "off"]
        if "-nb" not in flags:
            options += ["-nb", "gpu" if self.settings.gpu else "cpu"]
        return options + flags

    def _environment(self, plumed: bool = False) -> dict[str, str]:
        # mdrun looks for the kernel in this variable, and then for a bare file name; we know where it usually is.
        kernel = {"PLUMED_KERNEL": str(find_kernel().library)} if plumed else {}
        return _environment(self.settings.threads_per_run) | kernel

    def _capture(self, tool: str, *arguments: object, cwd: Path | None = None, text: str = "") -> Finished:
        command = [str(self.path), tool, *map(str, arguments)]
        return capture(command, cwd=cwd, env=self._environment(), text=text)


def _table_options(tables: Sequence[Path]) -> list[str]:
    return ["-tableb", *(str(existing(table, "bonded table")) for table in tables)] if tables else []


def _environment(threads: int) -> dict[str, str]:
    """Environment of every gmx process: no backup copies; OMP_NUM_THREADS must agree with -ntomp or mdrun refuses."""
    return {**os.environ, "GMX_MAXBACKUP": "-1", "OMP_NUM_THREADS": str(threads)}


def _fail(kind: type[ToolError], tool: str, output: str, code: int, log: Path | None) -> NoReturn:
    failure = diagnose(output)
    if failure is not None:
        raise kind(tool, failure.reason, log=log, remedy=failure.remedy)
    if log is not None and shutil.disk_usage(log.parent).free < _FULL_DISK_BYTES:
        raise kind(tool, f"no space left on the disk of {log.parent}", remedy="free space and run again")
    if code < 0:
        reason = f"killed by signal {-code} ({signal.Signals(-code).name})"
        raise kind(tool, reason, log=log, remedy="run again to go on from the last checkpoint")
    raise kind(tool, f"exit status {code}", log=log)
