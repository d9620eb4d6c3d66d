"""Which engine runs: the choice of ``engine: gmx|gmxapi|auto`` in the workflow file."""

from __future__ import annotations

from ccg_gmx.engine.gmxapi import GmxApi, find_bindings
from ccg_gmx.engine.gromacs import Gmx
from ccg_gmx.engine.protocol import Engine
from ccg_gmx.engine.settings import EngineSettings
from ccg_gmx.errors import ToolMissingError


def find_engine(settings: EngineSettings | None = None) -> Engine:
    """Return the engine that the settings name.

    ``auto`` is the gmx program wherever there is one: results are the same, and gmxapi is maintained less. Only where
    no gmx is found by itself, ``auto`` asks an installed gmxapi, which knows the GROMACS it was built for.

    Args:
        settings: the workflow's engine settings; None for the defaults.

    Raises:
        ToolMissingError: if there is no gmx, or the driver is gmxapi and it cannot be imported.
        ToolVersionError: if it is of no use: too old, of another precision, or built for library MPI.
        SettingsError: if a GPU is asked for and this GROMACS has no GPU support.
    """
    settings = settings or EngineSettings()
    if settings.driver == "gmxapi":
        return GmxApi.find(settings)
    try:
        return Gmx.find(settings)
    except ToolMissingError:
        if settings.driver == "gmx" or settings.gmx is not None or not find_bindings().usable:
            raise
    return GmxApi.find(settings)
