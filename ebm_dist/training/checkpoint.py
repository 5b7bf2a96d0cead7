"""Checkpoints: complete or absent, verified by hash, independent of the number of workers.

A checkpoint is a folder ``step-00001000`` of safetensors and JSON. ``manifest.json`` holds the
SHA-256 of every other file. It is written last and deleted first, so a folder without it is not a
checkpoint, whenever the writer died.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ebm_dist import faults
from ebm_dist.errors import CheckpointError, DataError
from ebm_dist.files import encode
from ebm_dist.storage import read_bytes, remove_tree, write_whole
from ebm_dist.training.reduce import Comm

SCHEMA = 1
MANIFEST = "manifest.json"
_PREFIX = "step-"

log = logging.getLogger(__name__)


def save(
    root: Path, step: int, files: Mapping[str, bytes], comm: Comm, *, digest: str, keep: int
) -> Path:
    """Write a checkpoint, each rank its own files. Then delete all but the newest ``keep``.

    Raise :class:`DataError` on every rank if the disk or store refuses a file of one of them. What
    was written is deleted then.
    """
    folder = root / f"{_PREFIX}{step:08d}"
    faults.point("checkpoint.begin")
    if comm.rank == 0:
        _delete(folder)  # may be left from a save that was interrupted
        folder.mkdir(parents=True, exist_ok=True)
    comm.agree(0)  # wait for all
    refused = _write_part(folder, files, comm.rank)
    faults.point("checkpoint.parts")
    if comm.agree(refused is not None):
        if comm.rank == 0:
            _delete(folder)
        raise refused or DataError(
            f"{folder}: cannot be written by another worker",
            "free space or choose another disk, and run again",
        )
    if comm.rank == 0:
        try:
            _write_manifest(folder, step, digest)
        except (DataError, OSError):
            _delete(folder)
            raise
        for old in _folders(root)[keep:]:
            _delete(old)
    return folder


def _write_part(folder: Path, files: Mapping[str, bytes], rank: int) -> DataError | None:
    """Write the files of a rank and their entries of the manifest; return the error, if any."""
    entries = {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        for name, content in files.items()
    }
    try:
        for name, content in files.items():
            write_whole(folder / name, content)
        write_whole(folder / f"part-{rank:05d}.json", encode(entries))
    except DataError as refused:
        return refused
    return None


def _write_manifest(folder: Path, step: int, digest: str) -> None:
    """Merge the entries of all ranks into the manifest."""
    entries: dict[str, Any] = {}
    for path in sorted(folder.glob("part-*.json")):
        entries |= json.loads(read_bytes(path))
        path.unlink()
    faults.point("checkpoint.manifest")
    write_whole(
        folder / MANIFEST,
        encode({"schema": SCHEMA, "digest": digest, "step": step, "files": entries}),
    )


def verify(folder: Path, digest: str | None = None) -> int:
    """Check every file of a checkpoint against its manifest. Return its step.

    Raise :class:`CheckpointError`.
    """
    try:
        manifest = json.loads(read_bytes(folder / MANIFEST))
        if manifest["schema"] != SCHEMA:
            raise CheckpointError(
                f"{folder}: schema {manifest['schema']}, this version reads {SCHEMA}; use the"
                " version that wrote it, or remove the folder"
            )
        if digest is not None and manifest["digest"] != digest:
            raise CheckpointError(
                f"{folder}: is of run {manifest['digest'][:12]}, not {digest[:12]}: settings, data"
                " or code differ"
            )
        for name, entry in manifest["files"].items():
            content = read_bytes(folder / Path(name).name)
            if (
                len(content) != entry["bytes"]
                or hashlib.sha256(content).hexdigest() != entry["sha256"]
            ):
                raise CheckpointError(
                    f"{folder / name}: differs from the manifest: truncated or altered"
                )
        return int(manifest["step"])
    except FileNotFoundError as missing:
        raise CheckpointError(
            f"{missing.filename or missing}: missing, so this checkpoint is not complete"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as failed:
        raise CheckpointError(
            f"{folder / MANIFEST}: cannot be read ({type(failed).__name__}: {failed})"
        ) from None


def latest(root: Path, digest: str | None = None) -> Path | None:
    """Return the newest complete checkpoint, or None if there is none yet.

    A broken one is logged and skipped, never deleted. Raise :class:`CheckpointError` if all are
    broken.
    """
    errors = []
    for folder in _folders(root):
        try:
            verify(folder, digest)
            return folder
        except CheckpointError as broken:
            errors.append(str(broken))
            log.warning("checkpoint skipped: %s", broken)
    if errors and any((folder / MANIFEST).exists() for folder in _folders(root)):
        raise CheckpointError(
            "no whole checkpoint: "
            + "; ".join(errors)
            + f"; remove {root} to start from the beginning"
        )
    return None


def whole(root: Path) -> dict[int, Path]:
    """Return checkpoint folders with a manifest by step, newest first, without a check of files."""
    return {
        int(folder.name.removeprefix(_PREFIX)): folder
        for folder in _folders(root)
        if (folder / MANIFEST).exists()
    }


def _folders(root: Path) -> list[Path]:
    """Return checkpoint folders, newest first."""
    return sorted((folder for folder in root.glob(_PREFIX + "*") if folder.is_dir()), reverse=True)


def _delete(folder: Path) -> None:
    try:
        (folder / MANIFEST).unlink(missing_ok=True)
        faults.point("checkpoint.delete")
        remove_tree(folder)
    except OSError as failed:
        raise DataError(f"{folder}: cannot be deleted ({failed.strerror or failed})") from None
