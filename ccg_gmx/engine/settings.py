"""Settings of the engine: which gmx, and how it uses the machine."""

from __future__ import annotations

import os
import re
from typing import Any, Literal

from pydantic import Field, GetJsonSchemaHandler, field_validator, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from ccg_gmx.settings import Settings

ALLOWED_MDRUN_FLAGS = frozenset(
    {
        *("-nb", "-bonded", "-update", "-pme", "-pmefft", "-gpu_id", "-gputasks"),
        *("-pin", "-pinoffset", "-pinstride", "-nstlist"),
    }
)
"""mdrun options that place work on hardware. All others change results or file names, which are ours to set."""


def available_cores() -> int:
    """Return the number of cores this process may use (its affinity mask, not the machine's size)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class EngineSettings(Settings):
    """How GROMACS is found and how it uses the machine.

    In a workflow file ``engine: gmxapi`` is short for ``engine: {driver: gmxapi}``.

    Attributes:
        driver: how mdrun is called: ``gmx`` as a program; ``gmxapi`` through GROMACS' Python interface; ``auto`` as a
            program wherever there is one, else through an installed gmxapi. Frames and energies are the same.
        gmx: path of the gmx program; None looks into $GMXBIN, then along PATH.
        workers: upper limit of runs at the same time; never more than cores / threads_per_run are started.
        threads_per_run: OpenMP threads of one mdrun. Small molecules in vacuum are fastest on 1.
        gpu: give the non-bonded work to a GPU.
        mdrun_flags: further mdrun options that place work on hardware, e.g. ``["-update", "gpu"]``.
    """

    driver: Literal["gmx", "gmxapi", "auto"] = "auto"
    gmx: str | None = None
    workers: int = Field(default_factory=available_cores, ge=1)
    threads_per_run: int = Field(default=1, ge=1)
    gpu: bool = False
    mdrun_flags: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _name_alone_is_the_driver(cls, given: Any) -> Any:
        return {"driver": given} if isinstance(given, str) else given

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """The short form is valid too, for editors that check workflow files: ``pattern`` is about strings alone."""
        whole = handler.resolve_ref_schema(handler(core))
        drivers = "|".join(whole["properties"]["driver"]["enum"])
        whole |= {"type": ["object", "string"], "pattern": f"^({drivers})$"}
        return whole

    @field_validator("mdrun_flags")
    @classmethod
    def _check_flags(cls, flags: tuple[str, ...]) -> tuple[str, ...]:
        if flags and not flags[0].startswith("-"):
            raise ValueError(f"mdrun_flags must start with an option, found {flags[0]!r}")
        for flag in flags:
            # A value may be a negative number; everything else with a dash is an option.
            if flag.startswith("-") and not re.fullmatch(r"-\d+", flag) and flag not in ALLOWED_MDRUN_FLAGS:
                hint = (
                    "set threads_per_run" if flag == "-ntomp" else "allowed: " + " ".join(sorted(ALLOWED_MDRUN_FLAGS))
                )
                raise ValueError(f"mdrun option {flag!r} cannot be set here; {hint}")
        return flags

    @property
    def runs_at_once(self) -> int:
        """Number of mdrun processes that fit on the cores together."""
        return max(1, min(self.workers, available_cores() // self.threads_per_run))
