"""Stage that restores coarse frames to atoms, with exact log-weights, and checks their geometry."""

from __future__ import annotations

import numpy as np
import torch

from ccg_gmx.cycle.stages.coarse import load_coarse_run
from ccg_gmx.cycle.stages.fine import load_split
from ccg_gmx.cycle.store import Work, write_json
from ccg_gmx.cycle.system import System
from ccg_gmx.flow.checkpoint import load_flow
from ccg_gmx.free_energy.diagnostics import kish_fraction
from ccg_gmx.molecule.contacts import clash_fraction
from ccg_gmx.molecule.structure import read_structure, write_structure
from ccg_gmx.molecule.trajectory import write_trr
from ccg_gmx.potential.coarse import CoarsePotential

README = """Restored atomistic frames.

restored.npz   positions [R, N, 3] nm (float64), coarse variables s, bead coordinates b, internal coordinates y,
               log_w        [R]  log-weight of each frame at its own beads: -u(s, b, y) - ln q(y | s, b)
               log_w_total  [R]  log-weight in the whole Boltzmann ensemble: log_w - ln p_coarse(s, b);
                                 self-normalised averages with it do not depend on the coarse model's own error
restored.trr   the same positions for GROMACS tools; restored.gro: names and box
"""


def restore_frames(work: Work) -> None:
    """Restore evenly chosen frames of the coarse run, one draw each.

    Inputs: system, split, flow, coarse, coarse_fit, structure. Writes restored/, restored.json.
    """
    system = System.load(work.inputs["system"])
    flow = load_flow(work.inputs["flow"] / "flow.pt")
    coarse = load_coarse_run(work.inputs["coarse"])
    potential = CoarsePotential.load(work.inputs["coarse_fit"] / "potential.npz")
    count = min(work.settings["frames"], len(coarse.s))
    chosen = np.linspace(0, len(coarse.s) - 1, count).astype(int)
    beads = torch.from_numpy(coarse.positions[chosen])
    target, generator = system.target(), torch.Generator().manual_seed(work.seed)
    with torch.no_grad():
        s, b = system.coordinates.split_beads(beads)
        y, log_q = flow.draw_rest(s, b, generator)
        positions = system.coordinates.place(beads, y)
        inside = system.coordinates.in_support_beads(b).numpy()
        # Beads that left the ensemble (a peptide bond turned cis) have no weight in it, and still count as draws.
        log_w = np.where(inside, (-target(s, b, y) - log_q).numpy(), -np.inf)
        log_w_total = log_w - potential.log_density(s.numpy(), b.numpy())
        chirality = system.coordinates.chirality_errors(positions)
    atoms = positions.numpy()
    folder = work.folder / "restored"
    folder.mkdir(exist_ok=True)
    np.savez(
        folder / "restored.npz",
        positions=atoms,
        s=s.numpy(),
        b=b.numpy(),
        y=y.numpy(),
        log_w=log_w,
        log_w_total=log_w_total,
    )
    _, box = read_structure(work.inputs["structure"])
    write_trr(folder / "restored.trr", atoms, np.arange(count, dtype=np.float64), box)
    write_structure(folder / "restored.gro", atoms[0], work.inputs["structure"])
    (folder / "README").write_text(README)
    held_out = load_split(work.inputs["split"] / "held_out.npz")
    with torch.no_grad():
        fine = system.coordinates.join(*(torch.from_numpy(array) for array in (held_out.s, held_out.b, held_out.y)))
    facts = {
        "frames": count,
        "max_bead_deviation_nm": float(np.abs(atoms[:, list(system.beads)] - coarse.positions[chosen]).max()),
        "clash_fraction": clash_fraction(system.topology, atoms),
        "clash_fraction_fine_md": clash_fraction(system.topology, fine.numpy()),
        "chirality_errors": int(chirality.sum()),
        "bead_support_errors": int(np.sum(~inside)),
        "kish_fraction_total": float(kish_fraction(log_w_total[None])[0]),
    }
    write_json(work.folder / "restored.json", facts)
    work.count(flow=count)
