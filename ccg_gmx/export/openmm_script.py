"""The script that an OpenMM export comes with; it needs openmm alone, and runs in the folder it is in."""

SCRIPT = '''\
"""Langevin dynamics of the coarse system in system.xml from start.xml; needs openmm alone.

Usage: python run.py [STEPS]
"""

import sys

import openmm
from openmm import app, unit

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
with open("system.xml", encoding="utf-8") as file:
    system = openmm.XmlSerializer.deserialize(file.read())

topology = app.Topology()
chain = topology.addChain()
for _ in range(system.getNumParticles()):
    topology.addAtom("B", None, topology.addResidue("BEAD", chain))

integrator = openmm.LangevinMiddleIntegrator(TEMPERATURE * unit.kelvin, 1 / unit.picosecond, 2 * unit.femtosecond)
simulation = app.Simulation(topology, system, integrator)
simulation.loadState("start.xml")
simulation.context.setVelocitiesToTemperature(TEMPERATURE * unit.kelvin)
simulation.reporters.append(app.XTCReporter("run.xtc", 1000, enforcePeriodicBox=False))
simulation.reporters.append(
    app.StateDataReporter(sys.stdout, 1000, step=True, potentialEnergy=True, temperature=True, speed=True)
)
simulation.step(steps)
'''
