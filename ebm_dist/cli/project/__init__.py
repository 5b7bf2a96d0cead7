"""A project on the user's own data, for ``ebm-dist init`` and ``ebm-dist run``.

``look`` reads the data, ``write`` makes two files in the working directory, which need no edit: the
parameter file and the ``dvc.yaml`` of the stages. ``run`` runs them. No file is overwritten.
"""

from ebm_dist.cli.project.look import Seen, describe, inspect
from ebm_dist.cli.project.run import repro, results
from ebm_dist.cli.project.write import (
    STAGES,
    SUITES,
    TASKS,
    Files,
    check_free,
    default_name,
    files,
    name_here,
    write,
)

__all__ = [
    "STAGES",
    "SUITES",
    "TASKS",
    "Files",
    "Seen",
    "check_free",
    "default_name",
    "describe",
    "files",
    "inspect",
    "name_here",
    "repro",
    "results",
    "write",
]
