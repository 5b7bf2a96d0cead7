"""Files in parts, for machines that take only small files: split here, join there.

``split`` writes ``NAME.part-000``, ``NAME.part-001``, ... and ``NAME.parts.json`` with the SHA-256
of the file and of each part. ``join`` puts together the files of which every part has arrived.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ebm_dist.errors import DataError, reason
from ebm_dist.files import sha256, write_json
from ebm_dist.storage import write_whole

LIST = ".parts.json"


def split(path: Path, folder: Path, part_mib: int) -> list[Path]:
    """Write the parts of a file, of at most ``part_mib`` MiB each, and their list to a folder.

    Return the paths. Raise :class:`DataError` where the file cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts, written = dict[str, str](), list[Path]()
    try:
        with path.open("rb") as stream:
            while content := stream.read(part_mib << 20):
                part = folder / f"{path.name}.part-{len(parts):03d}"
                write_whole(part, content)
                parts[part.name] = hashlib.sha256(content).hexdigest()
                written.append(part)
    except OSError as failed:
        raise DataError(f"{path}: cannot be read ({failed.strerror})", "check the path") from None
    card = {"name": path.name, "sha256": sha256(path), "parts": parts}
    write_json(folder / (path.name + LIST), card)
    return [*written, folder / (path.name + LIST)]


def join(folder: Path, target: Path) -> Iterator[str]:
    """Write each file of which all parts are in ``folder`` to ``target``, unless it is there.

    Yield a line per file: that it is there, or which of its parts are missing or altered. Raise
    :class:`DataError` where ``folder`` has no list of parts, or a list is not one.
    """
    lists = sorted(folder.glob("*" + LIST))
    if not lists:
        raise DataError(f"{folder}: no list of parts (*{LIST})", "write parts with --split FILE")
    for path in lists:
        card = _read(path)
        out, parts = target / card["name"], card["parts"]
        if out.is_file() and sha256(out) == card["sha256"]:
            yield f"{out}: is there"
            continue
        state = {name: _state(folder / name, digest) for name, digest in parts.items()}
        if faulty := [f"{name} {found}" for name, found in state.items() if found]:
            yield f"{out}: {len(faulty)} of {len(parts)} parts to bring: {', '.join(faulty)}"
            continue
        write_whole(out, b"".join((folder / name).read_bytes() for name in parts))
        yield f"{out}: joined of {len(parts)} parts"


def _state(part: Path, digest: str) -> str:
    if not part.is_file():
        return "missing"
    return "" if sha256(part) == digest else "altered or cut off"


def _read(path: Path) -> dict[str, Any]:
    """Return a list of parts. Names with a folder are refused: they could lead anywhere."""
    try:
        card = json.loads(path.read_bytes())
        names = [card["name"], *card["parts"]]
        if any(Path(name).name != name for name in names) or not isinstance(card["sha256"], str):
            raise ValueError("names of files without a folder, and a SHA-256, are needed")
        dict[str, str](card["parts"])
        return {key: card[key] for key in ("name", "sha256", "parts")}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as failed:
        raise DataError(
            f"{path}: not a list of parts ({reason(failed)})", "write it again with --split FILE"
        ) from None
