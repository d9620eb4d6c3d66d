"""The decisive line of what a GROMACS tool wrote before it failed, and what to do about it."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Failure:
    """Why a tool failed.

    Attributes:
        kind: short name of the class of failure, ``missing-include`` for instance.
        reason: the decisive line, in the tool's own words as far as possible.
        remedy: what the user can do, or None when the tool's words say it all.
    """

    kind: str
    reason: str
    remedy: str | None = None


# A rule is (kind, pattern, remedy). The matched text is the reason. First match wins, so the cause stands before
# its consequences: a full disk or an exploding molecule makes GROMACS complain about many other things afterwards.
_RULES: tuple[tuple[str, str, str | None], ...] = ()


def diagnose(text: str) -> Failure | None:
    """Find the decisive line.

    Args:
        text: whole output of the tool.

    Returns:
        The failure, or None if the text holds no known sign of one.
    """
    for kind, pattern, remedy in _RULES:
        if match := re.search(pattern, text, re.M):
            return Failure(kind, " ".join(match[0].split()), remedy)
    return None
