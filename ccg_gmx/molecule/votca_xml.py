"""VOTCA's mapping files (``cg_molecule`` in XML), one molecule type each, read as the YAML format's settings.

What the format means is VOTCA's (csg manual, section mapping files; doi:10.1021/ct900369w): ``ident`` is the molecule's
name in the atomistic topology; the weights of a map are normalised; beads that share a bonded term have no pair
potential; atoms of no bead are passed over. Weights of forces (``d``) are not read: forces follow from the positions'
weights and the constraints, by least noise. Two of its liberties are refused: ellipsoidal beads, atoms in two beads.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ccg_gmx.errors import SettingsError
from ccg_gmx.molecule.bead_file import BONDED_SECTIONS, MappingFile, read_mapping_yaml, validated
from ccg_gmx.molecule.coarse_topology import BEADS_OF_KIND

_SECTION_OF: dict[str, str] = {kind: section for section, kind in BONDED_SECTIONS.items()}
_REMEDY = "see VOTCA's manual, or write the mapping as YAML"


def read_mapping(paths: str) -> MappingFile:
    """Read a mapping file, YAML or VOTCA's XML by its suffix.

    Args:
        paths: the file; several XML files joined by ``;`` as VOTCA's programs take them.

    Raises:
        SettingsError: unreadable or inconsistent, in one line.
    """
    files = [Path(part) for part in paths.split(";") if part]
    if not files:
        raise SettingsError("no mapping file", expected="a .yaml or .xml file")
    if all(path.suffix == ".xml" for path in files):
        return read_votca(files)
    if len(files) > 1:
        raise SettingsError(f"several mapping files in {paths}", expected="one .yaml file, or .xml files joined by ;")
    return read_mapping_yaml(files[0])


def read_votca(paths: Sequence[Path]) -> MappingFile:
    """Read VOTCA mapping files, one molecule type each.

    Raises:
        SettingsError: unreadable, or not in VOTCA's format.
    """
    molecules: dict[str, Any] = {}
    for path in paths:
        root = _parse(path)
        ident = _text(root, "ident", path)
        if ident in molecules:
            raise SettingsError(f"{path} maps {ident} again", expected="one file for each molecule type")
        molecules[ident] = _molecule(root, path)
        validated({"molecules": {ident: molecules[ident]}}, path)  # so that an error names this file
    return validated({"molecules": molecules}, paths[-1])


def _parse(path: Path) -> ElementTree.Element:
    try:
        root = ElementTree.fromstring(Path(path).read_bytes())
    except (OSError, ElementTree.ParseError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SettingsError(f"cannot read mapping {path}: {reason}", expected="XML", remedy=_REMEDY) from None
    if root.tag != "cg_molecule":
        raise SettingsError(f"{path} is a <{root.tag}>", expected="a <cg_molecule>", remedy=_REMEDY)
    return root


def _text(element: ElementTree.Element, tag: str, path: Path) -> str:
    text = (element.findtext(tag) or "").strip()
    if not text:
        raise SettingsError(f"{path}: <{element.tag}> has no <{tag}>", expected="one", remedy=_REMEDY)
    return text


def _molecule(root: ElementTree.Element, path: Path) -> dict[str, Any]:
    maps = {_text(entry, "name", path): _numbers(entry, path) for entry in root.iterfind("maps/map")}
    beads = [_bead(entry, maps, path) for entry in root.iterfind("topology/cg_beads/cg_bead")]
    molecule: dict[str, Any] = {"beads": beads, "unmapped": "allow", "nrexcl": "bonded"}
    for entry in root.iterfind("topology/cg_bonded/*"):
        section = _SECTION_OF.get(str(entry.tag))
        if section is None or section == "cmaps":
            raise SettingsError(
                f"{path}: <{entry.tag}> in <cg_bonded>", expected="<bond>, <angle> or <dihedral>", remedy=_REMEDY
            )
        name, names = _text(entry, "name", path), _text(entry, "beads", path).split()
        size = BEADS_OF_KIND[str(entry.tag)]
        if len(names) % size:
            raise SettingsError(
                f"{path}: {entry.tag} {name} lists {len(names)} beads", expected=f"a multiple of {size}"
            )
        terms = molecule.setdefault(section, {})
        if name in terms:
            raise SettingsError(f"{path}: {entry.tag} {name} twice", expected="every name once", remedy=_REMEDY)
        terms[name] = [names[start : start + size] for start in range(0, len(names), size)]
    return molecule


def _bead(entry: ElementTree.Element, maps: dict[str, list[float]], path: Path) -> dict[str, Any]:
    name, mapping = _text(entry, "name", path), _text(entry, "mapping", path)
    if (symmetry := entry.findtext("symmetry", "1").strip()) != "1":
        raise SettingsError(f"{path}: bead {name} of symmetry {symmetry}", expected="1, a sphere", remedy=_REMEDY)
    if mapping not in maps:
        raise SettingsError(f"{path}: bead {name} uses map {mapping}", expected=f"one of {', '.join(maps) or 'none'}")
    return {
        "name": name,
        "type": _text(entry, "type", path),
        "atoms": _text(entry, "beads", path).split(),
        "weights": maps[mapping],
    }


def _numbers(entry: ElementTree.Element, path: Path) -> list[float]:
    words = _text(entry, "weights", path).split()
    try:
        return [float(word) for word in words]
    except ValueError:
        raise SettingsError(f"{path}: weights {' '.join(words)}", expected="numbers", remedy=_REMEDY) from None
