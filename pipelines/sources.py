"""Stage sources: write the SHA-256 of the user's own files behind a parameter file.

Their place is a setting, so they cannot be dependencies in dvc.yaml. DVC runs this stage each time,
and stage prepare depends on its output. Published files have their SHA-256 in the code.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from ebm_dist import config
from ebm_dist.config import Params, module_of
from ebm_dist.errors import DataError
from ebm_dist.files import sha256, write_json
from pipelines import parser, run

KEY = "sources"


def readers(plugin: Any) -> Iterator[Any]:
    """Yield the settings of the data sets that read own files, nested ones included."""
    if hasattr(module_of(plugin), "locate"):
        yield plugin
    for field in fields(plugin):
        if "folder" in field.metadata:
            yield from readers(getattr(plugin, field.name))


def has_own_files(params: Params) -> bool:
    """Return whether some data of a parameter file are the user's own files."""
    return any([*readers(plugin)] for plugin in _plugins(params).values())


def _plugins(params: Params) -> dict[str, Any]:
    """Return the settings of the data set and of the comparison sets by name."""
    return {"dataset": params.dataset, **params.comparison_datasets}


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, or of the names and contents of the files in a folder.

    Raise :class:`DataError` for a file that cannot be read.
    """
    try:
        if path.is_file():
            return sha256(path)
        files = sorted(file for file in path.rglob("*") if file.is_file())
        lines = [f"{file.relative_to(path).as_posix()} {sha256(file)}\n" for file in files]
    except OSError as failed:
        raise DataError(
            f"{failed.filename}: cannot be read ({failed.strerror})", "change its permissions"
        ) from None
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _digest_of(reader: Any) -> str:
    """Return the digest of own files; a data set too large to read has a stamp of its own."""
    module = module_of(reader)
    own: str = module.stamp(reader) if hasattr(module, "stamp") else digest(module.locate(reader))
    return own


def digests(params: Params) -> dict[str, list[str]]:
    """Return the digests of own files by data set: ``dataset`` or the name of a comparison set."""
    by_name = {
        name: [_digest_of(reader) for reader in readers(plugin)]
        for name, plugin in _plugins(params).items()
    }
    return {name: of_files for name, of_files in by_name.items() if of_files}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--out", type=Path, required=True, help="JSON file to write")
    args = options.parse_args()
    params = config.load(args.params, seed=args.seed, needed=config.DATA, skips_others=True)
    write_json(args.out, {KEY: digests(params)})


if __name__ == "__main__":
    run(main)
