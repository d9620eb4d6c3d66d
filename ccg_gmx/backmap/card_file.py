"""A score card as a file, its distributions included."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np

from ccg_gmx.backmap.card import Card
from ccg_gmx.backmap.score import ClassScore
from ccg_gmx.errors import StoreError

_ARRAYS = ("edges", "p_fine", "p_restored")


def save_card(card: Card, path: Path) -> None:
    """Write a score card as JSON, whole or not at all."""
    classes = [
        {name: value.tolist() if name in _ARRAYS else value for name, value in asdict(score).items()}
        for score in card.classes
    ]
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    partial.write_text(json.dumps({"numbers": card.numbers, "classes": classes}), encoding="utf-8")
    os.replace(partial, path)


def load_card(path: Path) -> Card:
    """Read what ``save_card`` wrote.

    Raises:
        StoreError: it is damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        classes = [
            ClassScore(**{**score, **{name: np.array(score[name]) for name in _ARRAYS}}) for score in content["classes"]
        ]
        return Card(content["numbers"], classes)
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path} is damaged ({error})", remedy="remove its folder and run again") from None
