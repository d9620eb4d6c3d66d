"""One mdrun through gmxapi; started by ``engine/gmxapi.py`` as a Python process of its own.

libgromacs ends the whole process on a fatal error (``gmx_fatal``, or ``std::terminate`` out of a noexcept function),
and an exploding molecule ends it by a signal. In a process of its own that is an exit status, as with the gmx program.

The calls below are those that ``gmxapi.mdrun`` itself ends in. It is not used because it copies the run input file
into a folder that it names itself and runs there: the checkpoint then remembers other file names, and neither the gmx
program nor a renamed folder could go on from it.

This file imports nothing of ccg_gmx: it starts fast, and works in an interpreter that has gmxapi alone.
"""

from __future__ import annotations

import json
import sys

_RULER = "-" * 55


def main(tpr: str, arguments: str) -> int:
    """Run the simulation in the current folder.

    Args:
        tpr: run input file.
        arguments: JSON object, option of mdrun -> value, values, or null for a switch.
    """
    try:
        _run(tpr, json.loads(arguments))
    except Exception as error:
        sys.stderr.write(as_gromacs_prints(error))
        return 1
    return 0


def _run(tpr: str, arguments: dict[str, object]) -> None:
    import gmxapi._gmxapi as bindings

    context, options = bindings.Context(), bindings.MDArgs()
    options.set(arguments)
    context.setMDArgs(options)
    session = bindings.from_tpr(tpr).launch(context)
    session.run()
    session.close()


def as_gromacs_prints(error: Exception) -> str:
    """Put an exception into the block that the gmx program prints, which is what ``failures.py`` reads.

    Some errors that gmx prints come as exceptions here, a checkpoint that does not fit for instance.

    Args:
        error: what gmxapi raised.
    """
    text = str(error).strip() or type(error).__name__
    return f"\n{_RULER}\nProgram: gmxapi\n\nError ({type(error).__name__}):\n{text}\n\n{_RULER}\n"


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
