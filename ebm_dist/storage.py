"""Storage of runs and prepared data: a local folder or an S3-compatible object store.

``s3://bucket/prefix`` has the same interface as a local path. Credentials and address come from the
environment of each machine (``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ``AWS_ENDPOINT_URL``)
and are never part of a job's description.
"""

import errno
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar, cast

from ebm_dist import faults
from ebm_dist.errors import DataError

SCHEMES = ("s3",)
T = TypeVar("T")
_READS = 3
_ATTEMPTS = 10  # per request, with growing pauses: they bridge an outage of one minute


def location(text: str | Path, *, in_ranges: bool = False) -> Path:
    """Return a local path, or a path in an object store with the same methods.

    ``in_ranges``: parts of objects will be read. Some stores send the checksum of the whole object
    with a part, so it is not compared then; readers of parts have SHA-256 of their own.
    Raise :class:`DataError` for any other scheme, or if s3fs is not installed.
    """
    scheme, separator, _ = str(text).partition("://")
    if not separator:
        # pipe:command, http:host: a library could interpret them
        if ":" in str(text).split("/", 1)[0]:
            raise DataError(
                f"{text}: neither a folder nor s3://bucket/prefix",
                f"write ./{text} for a folder of that name",
            )
        return Path(text)
    if scheme not in SCHEMES:
        raise DataError(
            f"{text}: {scheme}:// is not supported", "use a folder or s3://bucket/prefix"
        )
    try:
        from upath import UPath

        retries = {"mode": "standard", "total_max_attempts": _ATTEMPTS}
        options: dict[str, Any] = {"retries": retries, "connect_timeout": 5, "read_timeout": 30}
        if in_ranges:
            options["response_checksum_validation"] = "when_required"
        return cast(Path, UPath(text, use_listings_cache=False, config_kwargs=options))
    except ImportError:
        raise DataError(
            f"{text}: object stores need s3fs", "install with: pip install 'ebm-dist[s3]'"
        ) from None


def store(folder: str) -> Path:
    """Return the folder of this name in the store of ``EBM_STORE``, or in the working folder."""
    root = os.environ.get("EBM_STORE")
    return location(root) / folder if root else Path(folder)


def is_local(path: Path) -> bool:
    """Return whether a path is on a disk; otherwise it is in an object store."""
    return isinstance(path, Path)


def check(path: Path) -> None:
    """Write and delete a probe in an object store, so that a problem shows before any work.

    Raise :class:`DataError` if the store cannot be reached or denies access.
    """
    if is_local(path):
        return
    try:
        probe = path / "probe"
        probe.write_bytes(b"")
        probe.unlink()
    except Exception as failed:  # noqa: BLE001 (each of the three libraries has its own errors)
        raise DataError(
            f"{path}: cannot be reached ({type(failed).__name__}: {failed})",
            "check AWS_ENDPOINT_URL, the credentials, and that the bucket exists",
        ) from None


def read_bytes(path: Path) -> bytes:
    """Return the content of a file. Raise only :class:`OSError`, if it cannot be read."""
    return path.read_bytes() if is_local(path) else _patiently(path.read_bytes)


def read_range(path: Path, offset: int, size: int) -> bytes:
    """Return ``size`` bytes of a file from an offset, fewer at its end. Raise only OSError."""
    if is_local(path):
        with path.open("rb") as stream:
            stream.seek(offset)
            return stream.read(size)
    store: Any = location(str(path), in_ranges=True)  # has the file system of fsspec
    content: bytes = _patiently(
        lambda: store.fs.cat_file(store.path, start=offset, end=offset + size)
    )
    return content


def _patiently(call: Callable[[], T]) -> T:
    """Call a function of a storage library, again where it fails."""
    for _ in range(_READS - 1):
        try:
            return _remote(call)
        except FileNotFoundError:
            raise
        except OSError:  # for example, a wrong checksum because the object was replaced meanwhile
            time.sleep(0.2)
    return _remote(call)


def _remote(call: Callable[..., T], *args: Any) -> T:
    """Call a function of a storage library; turn its errors into :class:`OSError`."""
    try:
        return call(*args)
    except OSError:
        raise
    except Exception as failed:
        raise OSError(errno.EIO, f"object store: {type(failed).__name__}: {failed}") from failed


def write_whole(path: Path, content: bytes) -> None:
    """Write a file durably and atomically: it appears complete or not at all.

    A file that is replaced keeps its mode. Raise :class:`DataError` if the disk or store refuses
    the file; nothing is left of it then.
    """
    try:
        faults.point("write.open")
        if is_local(path):
            _write_local(path, content)
        else:
            _remote(path.write_bytes, content)  # an object appears when its upload is complete
    except OSError as failed:
        raise _not_written(path, failed) from None


def append(path: Path, content: bytes) -> None:
    """Append to a file on a disk, wholly or not at all.

    Raise :class:`DataError` if the disk refuses it.
    """
    try:
        with path.open("ab", buffering=0) as stream:
            size = stream.tell()
            faults.point("record.append")
            if stream.write(content) != len(content):  # the disk is full
                stream.truncate(size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as failed:
        raise _not_written(path, failed) from None


def _not_written(path: Path, failed: OSError) -> DataError:
    fix = (
        "free space or choose another disk"
        if is_local(path)
        else "check that the object store is up"
    )
    return DataError(
        f"{path}: cannot be written ({failed.strerror or failed})", f"{fix}, and run again"
    )


def _write_local(path: Path, content: bytes) -> None:
    part = path.with_name(path.name + ".part")
    try:
        _write_part(part, content, path.stat().st_mode & 0o777 | 0o600 if path.exists() else None)
        faults.point("write.rename")
        part.replace(path)
    except OSError:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise
    faults.point("write.folder")
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _write_part(part: Path, content: bytes, mode: int | None) -> None:
    part.unlink(missing_ok=True)  # left by a writer that was killed, or a link
    with part.open("xb") as stream:
        if mode is not None:
            os.fchmod(stream.fileno(), mode)
        stream.write(content[: len(content) // 2])
        stream.flush()
        faults.point("write.content")
        stream.write(content[len(content) // 2 :])
        stream.flush()
        faults.point("write.sync")
        os.fsync(stream.fileno())


def remove_tree(folder: Path) -> None:
    """Delete a folder and its content, if it exists."""
    if is_local(folder):
        shutil.rmtree(folder) if folder.exists() else None
    else:
        for path in folder.iterdir() if folder.exists() else ():
            path.unlink()
