"""What the PLUMED of this machine has, and what it says about an input file (``plumed driver --parse-only``)."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ccg_gmx.engine.plumed import Kernel, find_kernel
from ccg_gmx.engine.probe import first_line, run
from ccg_gmx.engine.process import capture
from ccg_gmx.errors import CcgError, SettingsError, ToolMissingError
from ccg_gmx.export.plumed_lines import OPTIONAL_MODULES, ActionLine, largest_atom, parse_input, problems
from ccg_gmx.units import thermal_energy

_ENDING = (
    re.compile(r"^(?:PLUMED: )?ERROR in input to action (.*)$", re.M),
    re.compile(r"^(Action \".*\" is not known.*)$", re.M),
)


@dataclass(frozen=True)
class InputCheck:
    """What was found of an input.

    Attributes:
        problems: a line each; empty when nothing is wrong.
        means: how it was checked, in words.
    """

    problems: tuple[str, ...]
    means: str


def missing_modules(kernel: Kernel, actions: Sequence[str]) -> dict[str, str]:
    """Optional modules that the actions need and the kernel lacks.

    Args:
        kernel: the PLUMED.
        actions: names of actions.

    Returns:
        Action -> module.

    Raises:
        ToolMissingError: if the kernel has no program to ask.
    """
    needed = {action: OPTIONAL_MODULES[action] for action in actions if action in OPTIONAL_MODULES}
    if not needed:
        return {}
    result = run([*kernel.command, "config", "module", *sorted(set(needed.values()))])
    lines = result.stdout.splitlines() if result is not None else []
    on = {line.split()[0] for line in lines if line.split()[1:] == ["on"]}
    return {action: module for action, module in needed.items() if module not in on}


def require_actions(actions: Sequence[str]) -> Kernel:
    """Refuse an input that this machine's PLUMED cannot run.

    Args:
        actions: names of actions in the input.

    Returns:
        The kernel.

    Raises:
        ToolMissingError: no kernel, or one without a module.
        ToolVersionError: a kernel that is too old.
    """
    kernel = find_kernel()
    kernel.check_version()
    for action, module in missing_modules(kernel, actions).items():
        raise ToolMissingError(
            f"{action} needs PLUMED's module {module}, which {kernel.library} lacks",
            remedy="`conda install -c conda-forge plumed`, or build PLUMED with "
            f"./configure --enable-modules={module}; --no-check writes the input regardless",
        )
    return kernel


def check_input(path: Path, atoms: int | None = None, temperature_K: float | None = None) -> InputCheck:
    """Check an input by own rules, and by PLUMED's parser where there is one.

    Args:
        path: plumed.dat.
        atoms: number of atoms of the system; None when unknown.
        temperature_K: of the run; None when unknown.

    Raises:
        SettingsError: if the file cannot be read or holds no action.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be read ({error})", remedy="check the path") from None
    actions = parse_input(text)
    if not actions:
        raise SettingsError(f"{path} has no PLUMED action", expected="a plumed.dat")
    try:
        kernel = find_kernel()
        kernel.check_version()
        missing = missing_modules(kernel, [one.action for one in actions])
    except CcgError as error:
        return InputCheck(tuple(problems(actions, atoms=atoms)), f"own rules alone ({error.found})")
    found = [f"{action} needs the module {module}, which this PLUMED lacks" for action, module in missing.items()]
    found += problems(actions, known=_known_actions(kernel), atoms=atoms)
    said = "" if found else _driver(kernel, path, text, actions, atoms, temperature_K)
    return InputCheck(
        tuple([*found, f"PLUMED says: {said}"] if said else found),
        f"own rules, and plumed driver --parse-only of PLUMED {kernel.version}"
        + (" (not asked after the above)" if found else ""),
    )


def _known_actions(kernel: Kernel) -> frozenset[str]:
    """Actions of its syntax file; empty when there is none."""
    root = first_line([*kernel.command, "info", "--root"])
    try:
        content = json.loads((Path(root) / "json" / "syntax.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return frozenset()
    # without optional modules the file lacks their actions, which are reported by module
    return frozenset(content) | frozenset(OPTIONAL_MODULES)


def _driver(
    kernel: Kernel, path: Path, text: str, actions: Sequence[ActionLine], atoms: int | None, kelvin: float | None
) -> str:
    """The complaint of PLUMED's parser; empty when it has none.

    Actions open their output files while they are parsed. So the parser works in a folder of its own, on copies of the
    files that are there, and never touches the user's.
    """
    with tempfile.TemporaryDirectory(prefix="ccg_plumed_") as name:
        folder = Path(name)
        (folder / "plumed.dat").write_text(_redirected(text, actions, path.resolve().parent, folder), encoding="utf-8")
        # atoms without a .tpr: as many as are named
        count = atoms or max(largest_atom(list(actions)), 1)
        command = [*kernel.command, "driver", "--plumed", "plumed.dat", "--parse-only", "--natoms", str(count)]
        command += ["--kt", f"{thermal_energy(kelvin or 300.0):.10g}", "--length-units", "nm"]
        done = capture(command, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode == 0:
        return ""
    output = done.stdout + done.stderr
    matches = [match[1] for pattern in _ENDING if (match := pattern.search(output))]
    last = [line.strip() for line in output.splitlines() if line.strip() and not set(line.strip()) <= set("#PLUMED: ")]
    return matches[0].strip() if matches else (last[-1] if last else f"exit status {done.returncode}")


def _redirected(text: str, actions: Sequence[ActionLine], home: Path, folder: Path) -> str:
    """Copy the files an input names into the folder, and let it name the copies; libraries stay where they are."""
    named = {
        (one.action == "LOAD", value)
        for one in actions
        for key, value in one.keywords.items()
        if "FILE" in key or key in ("REFERENCE", "STRUCTURE")
    }
    for number, (library, value) in enumerate(sorted(named, key=lambda pair: (-len(pair[1]), pair))):
        source = home / value
        copy = str(source) if library and source.is_file() else f"{number}_{Path(value).name}"
        if source.is_file() and not library:
            shutil.copyfile(source, folder / copy)
        elif not library and value in _STANDARD_OUTPUT:
            continue
        text = re.sub(rf"=\s*{re.escape(value)}(?=\s|$)", f"={copy}".replace("\\", r"\\"), text)
    return text


_STANDARD_OUTPUT = ("/dev/null", "/dev/stdout")
