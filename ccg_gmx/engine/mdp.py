"""Simulation parameters: typed presets for runs in vacuum, and checks of a user's own file.

Vacuum under the Verlet scheme: a periodic box more than twice as wide as the cut-off, a cut-off longer than the
molecule, nothing shifted or switched, and no tuned pair list. The potential is then the plain sum over all pairs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from ccg_gmx.errors import SettingsError

MAX_WEIGHTED_DT_PS = 0.001
"""Longest time step of runs whose frames carry weights: at 2 fs, bonds to hydrogen are visibly off Boltzmann."""


class Mdp(Mapping[str, str]):
    """Frozen mapping of mdp options to their values, in file order.

    Keys are GROMACS' own in their modern spelling: lower case, dashes.

    Args:
        options: key -> value; numbers are written so that they read back exactly.
    """

    __slots__ = ("_options",)

    def __init__(self, options: Mapping[str, object]) -> None:
        self._options: dict[str, str] = {}
        for key, value in options.items():
            name = _normal_key(key)
            if name in self._options:
                raise SettingsError(f"mdp option {name} is set twice", remedy="keep one of the two lines")
            self._options[name] = str(value).strip()

    def __getitem__(self, key: str) -> str:
        """Return the value of an option, under any spelling that GROMACS accepts."""
        return self._options[_normal_key(key)]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the keys in file order."""
        return iter(self._options)

    def __len__(self) -> int:
        """Return the number of options."""
        return len(self._options)

    def __hash__(self) -> int:
        """Hash of the content: equal parameters are equal keys."""
        return hash(frozenset(self._options.items()))

    def __repr__(self) -> str:
        """Return an expression that makes the same object."""
        return f"Mdp({self._options!r})"

    def with_options(self, **options: object) -> Mdp:
        """Return a copy with some options set; underscores in names stand for dashes."""
        return Mdp({**self._options, **{_normal_key(key): value for key, value in options.items()}})

    def text(self) -> str:
        """Return the content of the .mdp file."""
        width = max((len(key) for key in self._options), default=0)
        return "".join(f"{key:<{width}} = {value}\n" for key, value in self._options.items())

    @classmethod
    def parse(cls, text: str, source: str = "mdp text") -> Mdp:
        """Read mdp text.

        Args:
            text: lines ``key = value ; comment``.
            source: name for error messages.

        Raises:
            SettingsError: if a line is no assignment or an option is set twice.
        """
        options: dict[str, str] = {}
        for number, line in enumerate(text.splitlines(), start=1):
            content = line.split(";", 1)[0].strip()
            if not content:
                continue
            key, equals, value = content.partition("=")
            if not equals or not key.strip():
                raise SettingsError(f"{source} line {number}: {content!r}", expected="option = value")
            if _normal_key(key) in options:
                raise SettingsError(
                    f"{source} line {number}: {key.strip()} is set twice", remedy="keep one of the two lines"
                )
            options[_normal_key(key)] = value
        return cls(options)

    @classmethod
    def read(cls, path: Path) -> Mdp:
        """Read an .mdp file.

        Raises:
            SettingsError: if it cannot be read or parsed.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"{path} cannot be read as an mdp file", remedy="check the path") from error
        return cls.parse(text, str(path))


def fine_run(
    temperature_K: float,
    steps: int,
    seed: int,
    *,
    dt_ps: float = 0.001,
    output_every: int = 100,
    tau_t_ps: float = 1.0,
    cutoff_nm: float = 2.5,
    forces: bool = False,
) -> Mdp:
    """Langevin dynamics of an unconstrained molecule in vacuum, for frames that carry weights.

    Args:
        temperature_K: temperature in K.
        steps: number of steps, a multiple of ``output_every``.
        seed: seed of the noise and of the first velocities.
        dt_ps: time step in ps, at most 0.001.
        output_every: steps between full-precision frames.
        tau_t_ps: inverse friction in ps.
        cutoff_nm: cut-off in nm, longer than the molecule and below half the box.
        forces: write forces too.

    Raises:
        SettingsError: if a value is out of range.
    """
    mdp = _langevin(temperature_K, steps, seed, dt_ps, output_every, tau_t_ps, cutoff_nm, forces)
    check_weighted(mdp)
    return mdp


def coarse_run(
    temperature_K: float,
    steps: int,
    seed: int,
    *,
    dt_ps: float = 0.002,
    output_every: int = 100,
    tau_t_ps: float = 1.0,
    cutoff_nm: float = 2.5,
    forces: bool = False,
) -> Mdp:
    """Langevin dynamics of a coarse model with bonded tables in vacuum. Arguments as for :func:`fine_run`.

    Beads are heavy, so the step may be longer than in a fine run; frames carry no weights.

    Raises:
        SettingsError: if a value is out of range.
    """
    return _langevin(temperature_K, steps, seed, dt_ps, output_every, tau_t_ps, cutoff_nm, forces)


def exported_run(temperature_K: float, cutoff_nm: float) -> str:
    """Run parameters that go with an exported coarse model, as text: a start for the user to edit.

    Args:
        temperature_K: of the model.
        cutoff_nm: the longest that the box allows.

    Raises:
        SettingsError: if a value is out of range.
    """
    return coarse_run(temperature_K, 500_000, 1, output_every=1000, cutoff_nm=cutoff_nm).text()


def minimise(*, steps: int = 5000, force_tolerance: float = 10.0, cutoff_nm: float = 2.5) -> Mdp:
    """Steepest-descent minimisation in vacuum.

    Args:
        steps: most steps to take.
        force_tolerance: largest force to end with, kJ/mol/nm.
        cutoff_nm: cut-off in nm.

    Raises:
        SettingsError: if a value is out of range.
    """
    _positive_integer("steps", steps)
    _positive("force_tolerance", force_tolerance)
    # A fixed ld-seed, though unused, makes grompp write the same file every time.
    return Mdp({"integrator": "steep", "nsteps": steps, "emtol": force_tolerance, "ld-seed": 1, **_vacuum(cutoff_nm)})


def check_weighted(mdp: Mdp, source: str = "mdp") -> None:
    """Check that frames of a run may carry weights: plain Langevin dynamics, no constraints, at most 1 fs.

    Args:
        mdp: parameters, a user's own perhaps.
        source: name for error messages.

    Raises:
        SettingsError: naming the option, its value and what it must be.
    """

    def require(condition: bool, key: str, default: str, expected: str) -> None:
        if not condition:
            raise SettingsError(
                f"{source}: {key} = {mdp.get(key, default)}",
                expected=f"{expected} in runs whose frames are weighted",
                remedy=f"set {key} accordingly",
            )

    integrator = mdp.get("integrator", "md").lower()
    require(integrator in {"sd", "bd"}, "integrator", "md", "sd (its frames are distributed canonically)")
    require(mdp.get("constraints", "none").lower() == "none", "constraints", "none", "none")
    dt = mdp_number(mdp, "dt", 0.001, source)
    require(0 < dt <= MAX_WEIGHTED_DT_PS * (1 + 1e-9), "dt", "0.001", f"at most {MAX_WEIGHTED_DT_PS} ps")
    for key in ("pull", "awh", "freezegrps"):
        value = mdp.get(key, "no").lower()
        require(value in {"", "no"}, key, "no", "no bias and no frozen atoms")
    require("POSRES" not in mdp.get("define", ""), "define", "", "no position restraints")
    require(mdp_number(mdp, "nstxout", 0, source) > 0, "nstxout", "0", "full-precision frames (nstxout > 0)")


def mdp_number(mdp: Mapping[str, str], key: str, default: float, source: str = "mdp") -> float:
    """Return an option as a number.

    Raises:
        SettingsError: if it is not one.
    """
    value = mdp.get(key)
    if value is None or value == "":
        return default
    try:
        return float(value)
    except ValueError:
        raise SettingsError(f"{source}: {key} = {value}", expected="a number") from None


def _langevin(
    temperature_K: float,
    steps: int,
    seed: int,
    dt_ps: float,
    output_every: int,
    tau_t_ps: float,
    cutoff_nm: float,
    forces: bool,
) -> Mdp:
    for name, value in (("temperature_K", temperature_K), ("dt_ps", dt_ps), ("tau_t_ps", tau_t_ps)):
        _positive(name, value)
    _positive_integer("steps", steps)
    _positive_integer("output_every", output_every)
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**31:
        raise SettingsError(f"seed = {seed}", expected="an integer from 0 to 2^31 - 1")
    if steps % output_every:
        # mdrun writes its very last frame in any case: an odd one would break the even spacing.
        raise SettingsError(f"steps = {steps}", expected=f"a multiple of output_every = {output_every}")
    return Mdp(
        {
            "integrator": "sd",
            "dt": repr(float(dt_ps)),
            "nsteps": steps,
            "tc-grps": "System",
            "tau-t": repr(float(tau_t_ps)),
            "ref-t": repr(float(temperature_K)),
            "ld-seed": seed,
            "gen-vel": "yes",
            "gen-temp": repr(float(temperature_K)),
            "gen-seed": seed,
            # The noise thermalises the centre of mass too: 3N degrees of freedom.
            "comm-mode": "none",
            **_vacuum(cutoff_nm),
            "nstcalcenergy": output_every,
            "nstenergy": output_every,
            "nstlog": output_every * max(1, math.ceil(steps / 100 / output_every)),
            "nstxout": output_every,
            "nstvout": 0,
            "nstfout": output_every if forces else 0,
            "nstxout-compressed": 0,
        }
    )


def _vacuum(cutoff_nm: float) -> dict[str, object]:
    _positive("cutoff_nm", cutoff_nm)
    cutoff = repr(float(cutoff_nm))
    return {
        "cutoff-scheme": "Verlet",
        "verlet-buffer-tolerance": -1,
        "nstlist": 100,
        "pbc": "xyz",
        "coulombtype": "cut-off",
        "coulomb-modifier": "none",
        "vdwtype": "cut-off",
        "vdw-modifier": "none",
        "rlist": cutoff,
        "rcoulomb": cutoff,
        "rvdw": cutoff,
        "constraints": "none",
    }


def _positive(name: str, value: float) -> None:
    if isinstance(value, bool) or not (math.isfinite(value) and value > 0):
        raise SettingsError(f"{name} = {value}", expected="a positive number")


def _positive_integer(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise SettingsError(f"{name} = {value}", expected="a positive integer")


def _normal_key(key: str) -> str:
    return key.strip().lower().replace("_", "-")
