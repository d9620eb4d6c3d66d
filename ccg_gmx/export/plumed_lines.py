"""A light reader of PLUMED inputs: actions with labels and keywords, and what can be wrong with them without PLUMED."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

OPTIONAL_MODULES = {
    "OPES_METAD": "opes",
    "OPES_METAD_EXPLORE": "opes",
    "OPES_EXPANDED": "opes",
    "ECV_MULTITHERMAL": "opes",
    "ECV_MULTITHERMAL_MULTIBARIC": "opes",
    "ECV_UMBRELLAS_LINE": "opes",
    "ECV_UMBRELLAS_FILE": "opes",
    "ECV_LINEAR": "opes",
    "PYTORCH_MODEL": "pytorch",
    "ANN": "annfunc",
    "VES_LINEAR_EXPANSION": "ves",
    "VES_DELTA_F": "ves",
    "DRR": "drr",
    "EDS": "eds",
    "FISST": "fisst",
    "FUNNEL": "funnel",
    "FUNNEL_PS": "funnel",
    "LOGMFD": "logmfd",
    "PIV": "piv",
    "SASA_HASEL": "sasa",
    "SASA_LCPO": "sasa",
}
"""Actions of modules that PLUMED leaves out unless it is asked for them."""

SILENT_ENERGY = "ENERGY is silently 0 in GROMACS 2024 and 2025, which hand PLUMED no potential energy"

_NUMBERS = re.compile(r"(\d+)(?:-(\d+))?(?::\d+)?")


@dataclass(frozen=True)
class ActionLine:
    """One action.

    Attributes:
        line: number of its first line, from 1.
        label: its label; empty without one.
        action: its name.
        keywords: ``KEY=value`` as key -> value.
    """

    line: int
    label: str
    action: str
    keywords: dict[str, str]


def parse_input(text: str) -> list[ActionLine]:
    """Actions of an input, continuation lines (``...``) joined, comments left out; up to ENDPLUMED."""
    found: list[ActionLine] = []
    open_words: list[str] | None = None
    start, comment = 0, False
    for number, raw in enumerate(text.splitlines(), start=1):
        words = raw.partition("#")[0].split()
        if comment or words[:1] == ["ENDCOMMENT"]:
            comment = words[:1] != ["ENDCOMMENT"]
            continue
        if open_words is not None:
            if words[:1] == ["..."]:
                found += _action(start, open_words)
                open_words = None
            else:
                open_words += words
            continue
        if words[:1] == ["ENDPLUMED"]:
            break
        if words[:1] == ["COMMENT"]:
            comment = True
        elif words[-1:] == ["..."]:
            open_words, start = words[:-1], number
        elif words:
            found += _action(number, words)
    return found


def problems(actions: list[ActionLine], *, known: Collection[str] = (), atoms: int | None = None) -> list[str]:
    """What is wrong, a line each.

    Args:
        actions: of the input.
        known: all actions the kernel has; empty when nobody can say.
        atoms: number of atoms of the system; None when unknown.
    """
    labels: set[str] = set()
    words = []
    # a plug-in brings actions that the kernel does not list
    loads = any(one.action == "LOAD" for one in actions)
    for one in actions:
        where = f"line {one.line}: "
        if known and not loads and one.action not in known:
            words.append(f"{where}there is no action {one.action}")
        if one.action == "ENERGY":
            words.append(where + SILENT_ENERGY)
        words += [where + word for word in _arguments(one, labels)]
        words += [where + word for word in _beyond(one, atoms)]
        if one.label in labels and one.label:
            words.append(f"{where}the label {one.label} is used before")
        labels.add(one.label)
    return words


def largest_atom(actions: list[ActionLine]) -> int:
    """Largest atom number that any action names; 0 for none."""
    return max((_highest(value) for one in actions for key, value in one.keywords.items() if _is_atoms(key)), default=0)


def _action(line: int, words: list[str]) -> list[ActionLine]:
    label = ""
    if words and words[0].endswith(":"):
        label, words = words[0][:-1], words[1:]
    if not words:
        return []
    pairs = [word.partition("=") for word in _joined(words[1:])]
    keywords = {key.upper(): value for key, sign, value in pairs if sign}
    return [ActionLine(line, label or keywords.get("LABEL", ""), words[0], keywords)]


def _joined(words: list[str]) -> list[str]:
    """Words with those inside braces put together."""
    found: list[str] = []
    depth = 0
    for word in words:
        if depth and found:
            found[-1] += f" {word}"
        else:
            found.append(word)
        depth += word.count("{") - word.count("}")
    return found


def _arguments(one: ActionLine, labels: Collection[str]) -> list[str]:
    used = [key for key in one.keywords if re.fullmatch(r"ARG\d*", key)]
    names = [name for key in used for name in one.keywords[key].strip("{}").split(",")]
    # *, regular expressions and replica lists are PLUMED's to resolve
    plain = [name for name in names if re.fullmatch(r"[\w.\-]+", name) and not name.startswith("@")]
    missing = [name for name in plain if name.split(".")[0] not in labels and name not in labels]
    return [f"{one.action} uses {name}, which is not defined above" for name in missing]


def _beyond(one: ActionLine, atoms: int | None) -> list[str]:
    if atoms is None:
        return []
    highest = max((_highest(value) for key, value in one.keywords.items() if _is_atoms(key)), default=0)
    return [f"{one.action} names atom {highest}; the system has {atoms}"] if highest > atoms else []


def _is_atoms(key: str) -> bool:
    return bool(re.fullmatch(r"(ATOMS|GROUP|GROUPA|GROUPB|CENTER|ORIGIN|ENTITY)\d*", key))


def _highest(value: str) -> int:
    """Largest number of a list such as ``1,5-8,c1``; labels and ``@`` selections count as nothing."""
    matches = [_NUMBERS.fullmatch(word) for word in value.strip("{}").split(",")]
    return max((int(match[2] or match[1]) for match in matches if match), default=0)
