"""Shipped models: small trained models that come with the package, in ``pipelines/weights``.

``weights.lock`` names them, with the SHA-256 of every file, and the rows of the results that each
of them gives. ``python -m pipelines.ship`` writes both. They are not in ``ebm_dist``, because every
registered version has a copy of that folder.
"""

import json
from pathlib import Path
from typing import Any

from ebm_dist.errors import DataError, reason
from ebm_dist.files import sha256
from ebm_dist.runs.lineage import ROOT

FOLDER = ROOT / "pipelines/weights"
LOCK = "weights.lock"
MAX_BYTES = 10 * 2**20
"""Limit of the sizes of all files together."""
_INSTALL = "install the package again"


def lock(folder: Path = FOLDER) -> dict[str, Any]:
    """Return the content of ``weights.lock``.

    ``models`` has the shipped models by name: recipe, seed, commit, classifier, files of data, and
    the rows of the results by id. ``files`` has the size and the SHA-256 of each file by path.
    Both are empty without the file. Raise :class:`DataError` if it cannot be read.
    """
    try:
        content: dict[str, Any] = json.loads((folder / LOCK).read_bytes())
        content["models"], content["files"]
    except FileNotFoundError:
        return {"models": {}, "files": {}}
    except (OSError, ValueError, KeyError, TypeError) as failed:
        raise DataError(f"{folder / LOCK}: not readable ({reason(failed)})", _INSTALL) from None
    return content


def recipe_of(name: str) -> str | None:
    """Return the recipe of a shipped model, None if there is none of this name."""
    model = lock()["models"].get(name)
    return None if model is None else str(model["recipe"])


def verified(name: str, folder: Path = FOLDER) -> Path:
    """Return the folder of a shipped model or classifier, after a check of its files.

    Raise :class:`DataError` if one is missing or differs from the lock.
    """
    files = {
        path: entry
        for path, entry in lock(folder)["files"].items()
        if Path(path).parent == Path(name)
    }
    for path, entry in files.items():
        if not (folder / path).exists():
            raise DataError(f"{folder / path}: missing, but {LOCK} names it", _INSTALL)
        if sha256(folder / path) != entry["sha256"]:
            raise DataError(f"{folder / path}: differs from {LOCK}: altered", _INSTALL)
    return folder / name
