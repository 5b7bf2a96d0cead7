"""Where runs and prepared data lie: a folder of this machine, or an S3-compatible object store.

``s3://bucket/prefix`` is read and written through the same interface as a local path, so nothing else knows the difference. Its
credentials and address come from the environment (``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ``AWS_ENDPOINT_URL``) of each
machine and are never put into a job's description.
"""

import errno
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

from ebm_dist import faults
from ebm_dist.errors import DataError

SCHEMES = ("s3",)
T = TypeVar("T")
_READS = 3
_ATTEMPTS = 10  # of one request, with growing pauses: together they outlast a store that is away for a minute


def location(text: str | Path) -> Path:
    """A local path, or one in an object store that has the same methods. Raises :class:`DataError` for any other scheme."""
    scheme, separator, _ = str(text).partition("://")
    if not separator:
        if (
            ":" in str(text).split("/", 1)[0]
        ):  # pipe:command, http:host: nothing that a library could take for an instruction
            raise DataError(
                f"{text}: neither a folder nor s3://bucket/prefix; write ./{text} for a folder of that name"
            )
        return Path(text)
    if scheme not in SCHEMES:
        raise DataError(f"{text}: {scheme}:// is not supported; use a folder or s3://bucket/prefix")
    try:
        from upath import UPath

        retries = {"mode": "standard", "total_max_attempts": _ATTEMPTS}
        options: dict[str, Any] = {"retries": retries, "connect_timeout": 5, "read_timeout": 30}
        return cast(Path, UPath(text, use_listings_cache=False, config_kwargs=options))
    except ImportError:
        raise DataError(
            f"{text}: object stores need s3fs; install with: pip install 'ebm-dist[s3]'"
        ) from None


def store(folder: str) -> Path:
    """The folder of this name under the store that ``EBM_STORE`` names, else in the working folder."""
    root = os.environ.get("EBM_STORE")
    return location(root) / folder if root else Path(folder)


def is_local(path: Path) -> bool:
    """Whether a path is on a disk; else it is in an object store."""
    return isinstance(path, Path)


def check(path: Path) -> None:
    """Raises :class:`DataError` if an object store cannot be reached or refuses us, before anything is begun."""
    if is_local(path):
        return
    try:
        probe = path / "probe"
        probe.write_bytes(b"")
        probe.unlink()
    except Exception as failed:  # noqa: BLE001 (each of the three libraries below has errors of its own)
        raise DataError(
            f"{path}: cannot be reached ({type(failed).__name__}: {failed}); check AWS_ENDPOINT_URL, the credentials, and that the"
            " bucket exists"
        ) from None


def read_bytes(path: Path) -> bytes:
    """The content of a file. Raises :class:`OSError`, and nothing else, where it cannot be read."""
    if is_local(path):
        return path.read_bytes()
    for _ in range(_READS - 1):
        try:
            return _remote(path.read_bytes)
        except FileNotFoundError:
            raise
        except OSError:  # such as a checksum that fails because the object was replaced meanwhile
            time.sleep(0.2)
    return _remote(path.read_bytes)


def _remote(call: Callable[..., T], *arguments: Any) -> T:
    """Errors of the libraries below as the :class:`OSError` that a disk would raise."""
    try:
        return call(*arguments)
    except OSError:
        raise
    except Exception as failed:
        raise OSError(errno.EIO, f"object store: {type(failed).__name__}: {failed}") from failed


def write_whole(path: Path, content: bytes) -> None:
    """Write a file durably so that it appears whole or not at all. Raises :class:`DataError` where disk or store refuses."""
    try:
        faults.point("write.open")
        if is_local(path):
            _write_local(path, content)
        else:
            _remote(
                path.write_bytes, content
            )  # an object is there when its upload is complete, not before
    except OSError as failed:
        mend = (
            "free space or choose another disk"
            if is_local(path)
            else "see that the object store is up"
        )
        raise DataError(
            f"{path}: cannot be written ({failed.strerror or failed}); {mend}, and run again"
        ) from None


def _write_local(path: Path, content: bytes) -> None:
    part = path.with_name(path.name + ".part")
    with part.open("wb") as stream:
        stream.write(content[: len(content) // 2])
        stream.flush()
        faults.point("write.content")
        stream.write(content[len(content) // 2 :])
        stream.flush()
        faults.point("write.sync")
        os.fsync(stream.fileno())
    faults.point("write.rename")
    part.replace(path)
    faults.point("write.folder")
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def remove_tree(folder: Path) -> None:
    """Delete a folder and all in it; nothing happens if there is none."""
    if is_local(folder):
        shutil.rmtree(folder) if folder.exists() else None
    else:
        for path in folder.iterdir() if folder.exists() else ():
            path.unlink()
