"""The decisive line of what a GROMACS tool wrote before it failed, and what to do about it.

GROMACS prints one block between rulers for the error that stopped it. That block is not always the cause: grompp
collects ``ERROR n [file x, line m]`` blocks and then stops over their number, and an exploding molecule can end in a
segmentation fault without any block. So: collected errors first, then the block, then signs of an explosion.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Failure:
    """Why a tool failed.

    Attributes:
        kind: class of failure, ``missing-include`` for instance; ``other`` when we know no remedy.
        reason: the decisive sentence in the tool's own words, on one line.
        remedy: what the user can do, or None when the tool's words say it all.
    """

    kind: str
    reason: str
    remedy: str | None = None


_RULER = re.compile(
    r"^Program: .*\n(?:.*\n)*?\n"  # program, source file, function
    r"(?P<title>[A-Z][^\n]*):\n"  # Fatal error, Error in user input, Internal error (bug), System I/O error, ...
    r"(?P<body>(?:.*\n)*?)\s*(?:\n|\Z)"
    r"(?:For more information|-{20})",
    re.M,
)
# An exception that leaves libgromacs where nothing may be thrown: what gmx prints as a block, gmxapi ends with.
_TERMINATED = re.compile(r"^terminate called after throwing an instance of .*\n  what\(\):  (?P<body>(?:.*\n?)*)", re.M)
_COLLECTED = re.compile(r"^(?P<level>ERROR|WARNING) \d+ \[(?P<where>[^\]]*)\]:\n(?P<body>(?:  .*\n?)+)", re.M)
_SENTENCE_END = re.compile(r"(?<=[.!?)])(?<!Tab\.)(?<![^:]\))\s+(?=[A-Z])")
_LONGEST = 240

_DISK = "free space on the disk, then run again to go on from the last checkpoint"
_UNSTABLE = "minimise the start structure first, or take a shorter time step; check the topology for wrong parameters"

# (kind, pattern in the decisive block, remedy); the first match wins.
_RULES: tuple[tuple[str, str, str], ...] = (
    (
        "checkpoint",
        r"Checkpoint file corrupted|Cannot read/write checkpoint|this simulation will not restart|checksum wrong",
        "the checkpoint does not fit its files; remove this run's files to start it over",
    ),
    ("energy-file", r"Cannot write energy names|Energy names magic number", "the energy file is truncated or not one"),
    ("disk-full", r"No space left on device|out of disk space|Disk quota exceeded", _DISK),
    (
        "missing-include",
        r"include file .* not found|Could not open (?:include )?file",
        "correct the #include line, or put the file beside the topology or into the folder named by GMXLIB",
    ),
    ("atom-count", r"number of coordinates in coordinate file", "use the structure this topology was made for"),
    ("atom-count", r"Number of atoms in trajectory", "use the trajectory of this run input file, with all its atoms"),
    ("directive-order", r"Invalid order for directive", "move this section to its place: moleculetypes need all types"),
    ("atom-index", r"Atom index .* out of bounds", "atoms are counted from 1 within their molecule type"),
    (
        "missing-parameters",
        r"No default .* types|Atomtype .* not found|Unknown .*(?:atom|bond)_?type",
        "the force field has no such parameters: check the atom types, or write the parameters on the line",
    ),
    ("molecule-type", r"No such moleculetype", "use a name defined by a [ moleculetype ] section"),
    ("directive", r"Invalid directive", "check the spelling of the section's name"),
    ("cutoff-box", r"cut-off length is longer than half", "make the box wider than twice the cut-off"),
    ("time-step", r"oscillational period", "take a shorter time step"),
    ("mdp-option", r"Unknown left-hand|Invalid enum|doubly defined|No '=' to separate", "correct this mdp option"),
    ("temperature", r"ref-t for group .* negative", "give a positive temperature in K"),
    ("constraints", r"Too many LINCS warnings|LINCS WARNING|SETTLE", _UNSTABLE),
    (
        "blow-up",
        r"total potential energy is|not finite|Listed nonbonded interaction between particles",
        _UNSTABLE,
    ),
    ("blow-up", r"particles communicated to PME rank|moved more than the distance allowed|Bond length", _UNSTABLE),
    (
        "domain-decomposition",
        r"no domain decomposition for|domain decomposition",
        "the system is too small for that many ranks: run it on one rank (-ntmpi 1)",
    ),
    (
        "table-range",
        r"out of the table range",
        "pad the table to the largest distance that can occur, or look for an unstable start structure",
    ),
    ("missing-table", r"no table file whose name matched", "pass the table with this number to mdrun"),
    ("bad-table", r"Trying to read file .* but nr columns", "a table has three columns: x, V, -dV/dx"),
    ("not-a-trajectory", r"magic number in trr", "use a .trr written by GROMACS"),
    ("plumed", r"PLUMED", "correct the PLUMED input; `plumed driver` reads it too, without a run"),
    ("threads", r"OMP_NUM_THREADS|oversubscri", "set threads_per_run to what the machine has"),
    ("gpu", r"\bGPUs?\b", "set gpu: false, or name a device that exists"),
    ("file-access", r"does not exist or is not accessible|could not be opened", "check the path and its permissions"),
)

# Signs of an explosion in screen output or log, for when mdrun dies of a segmentation fault without a block.
_SIGNS = (
    r"^Step \d+, time [\d.]+ \(ps\)  LINCS WARNING\nrelative constraint deviation after LINCS:\n.*",
    r"WARNING: Listed nonbonded interaction between particles \d+ and \d+\s+at distance \S+ which is larger than the"
    r" table limit \S+ nm",
    r"^.*[Bb]ond length not finite.*",
)


def diagnose(text: str) -> Failure | None:
    """Find the decisive line.

    Args:
        text: whole output of the tool, screen and log.

    Returns:
        The failure, or None if the text holds no known sign of one.
    """
    collected = [(match["level"], match["where"], match["body"]) for match in _COLLECTED.finditer(text)]
    errors = [entry for entry in collected if entry[0] == "ERROR"]
    block = _RULER.search(text)
    if errors:
        return _from_collected(errors)
    if block and block["body"].startswith("Too many warnings"):
        warnings = [entry for entry in collected if entry[0] == "WARNING"]
        return _from_collected(warnings) if warnings else _classified(block["body"])
    if block:
        return _classified(block["body"])
    if terminated := _TERMINATED.search(text):
        return _classified(terminated["body"])
    for sign in _SIGNS:
        if match := re.search(sign, text, re.M):
            return _classified(match[0])
    return None


def _from_collected(entries: list[tuple[str, str, str]]) -> Failure:
    level, where, body = entries[0]
    more = f" (and {len(entries) - 1} more)" if len(entries) > 1 else ""
    return _classified(body.removeprefix("  ERROR: "), prefix=f"{level.lower()} in {where}: ", suffix=more)


def _classified(body: str, prefix: str = "", suffix: str = "") -> Failure:
    line = " ".join(body.split())
    sentence = _SENTENCE_END.split(line)[0].removesuffix(":)").rstrip(".")
    reason = prefix + (sentence if len(sentence) <= _LONGEST else sentence[:_LONGEST] + " ...") + suffix
    for kind, pattern, remedy in _RULES:
        if re.search(pattern, line):
            return Failure(kind, reason, remedy)
    return Failure("other", reason)
