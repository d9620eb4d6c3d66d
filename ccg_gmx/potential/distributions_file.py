"""Files of distributions: one .npz, no pickle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ccg_gmx.errors import CheckpointError
from ccg_gmx.potential.curves import CurveKind
from ccg_gmx.potential.distributions import Distributions, Histogram, MapHistogram
from ccg_gmx.potential.npz_file import load_arrays, save_arrays

FORMAT, VERSION = "ccg distributions", 2
_FIELDS = ("edges", "counts", "ideal", "error", "squares")


def save_distributions(found: Distributions, path: Path) -> None:
    """Write distributions."""
    header: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "frames": found.frames,
        "volume": found.volume,
        "bonded": [[name, part.kind] for name, part in found.bonded.items()],
        "maps": list(found.maps),
        "pairs": [list(key) for key in found.pairs],
    }
    arrays: dict[str, np.ndarray] = {}
    for prefix, parts in (("b", found.bonded.values()), ("p", found.pairs.values())):
        for k, part in enumerate(parts):
            arrays |= {f"{prefix}{k}_{name}": np.asarray(getattr(part, name)) for name in _FIELDS}
    for k, counted in enumerate(found.maps.values()):
        arrays |= {f"m{k}_counts": counted.counts, f"m{k}_error": counted.error}
    save_arrays(path, header, arrays)


def load_distributions(path: Path) -> Distributions:
    """Read distributions.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    header, arrays = load_arrays(path, FORMAT, VERSION)
    try:
        return Distributions(
            {n: _histogram(k, arrays, f"b{i}") for i, (n, k) in enumerate(header["bonded"])},
            {n: MapHistogram(arrays[f"m{i}_counts"], arrays[f"m{i}_error"]) for i, n in enumerate(header["maps"])},
            {(a, b): _histogram("pair", arrays, f"p{i}") for i, (a, b) in enumerate(header["pairs"])},
            int(header["frames"]),
            header["volume"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged ({error})", expected="distributions of ccg tables") from None


def _histogram(kind: CurveKind, arrays: Mapping[str, np.ndarray], prefix: str) -> Histogram:
    edges, counts, ideal, error, squares = (arrays[f"{prefix}_{name}"] for name in _FIELDS)
    return Histogram(kind, edges, counts, ideal, error, float(squares))
