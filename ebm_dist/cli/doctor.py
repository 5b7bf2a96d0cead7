"""Checks of the installation, the settings and their surroundings, each with a fix.

A check tests one thing and changes nothing. It returns what it saw, or raises :class:`Trouble`.
"""

import base64
import importlib.metadata
import json
import os
import shutil
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from packaging.requirements import Requirement

from ebm_dist import storage
from ebm_dist.config import Params
from ebm_dist.data import shards
from ebm_dist.errors import DataError, redact
from ebm_dist.runs import tracking

_LEAST_SHM, _LEAST_DISK = 1 << 30, 2 << 30  # bytes
_SHM = Path("/dev/shm")  # noqa: S108 (where Ray keeps its objects)
_WAIT_S = 5.0


class Trouble(Exception):
    """A failed check: what is wrong, and the fix."""

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(what)
        self.fix = fix


class Finding(NamedTuple):
    """The result of a check: what it saw, and the fix."""

    check: str
    seen: str
    fix: str | None
    """None if nothing is wrong"""


def examine(params: Params, data: Path) -> Iterator[Finding]:
    """Yield a finding for each check."""
    checks: list[tuple[str, Callable[[], str]]] = [
        ("packages", _packages),
        ("data", lambda: _data(data)),
        ("CPUs", lambda: _cpus(params)),
        ("GPUs", lambda: _gpus(params)),
        ("Ray cluster", _ray),
        ("tracking", _tracking),
        ("store", _store),
        (
            "shared memory",
            lambda: _room(
                _SHM, _LEAST_SHM, "docker run --shm-size=2g, or an emptyDir of medium Memory"
            ),
        ),
        ("disk", lambda: _room(Path(), _LEAST_DISK, "free space, or run 'dvc gc --workspace'")),
    ]
    for name, check in checks:
        try:
            yield Finding(name, redact(check()), None)
        except Trouble as trouble:
            yield Finding(name, redact(str(trouble)), trouble.fix)


def _packages() -> str:
    """Check that every required package has a version in its tested range."""
    for line in importlib.metadata.requires("ebm-dist") or []:
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            installed = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            raise Trouble(f"{requirement.name} is not installed", "make install") from None
        if not requirement.specifier.contains(installed, prereleases=True):
            raise Trouble(
                f"{requirement.name} {installed} is outside {requirement.specifier}",
                f"pip install '{requirement.name}{requirement.specifier}'",
            )
    ray, mlflow = (importlib.metadata.version(name) for name in ("ray", "mlflow"))
    return f"all in range; Ray {ray}, MLflow {mlflow}"


def _data(folder: Path) -> str:
    try:
        index = shards.read_index(folder / "dataset")
        missing = [
            tar.file
            for tars in index.splits.values()
            for tar in tars
            if not (index.folder / tar.file).exists()
        ]
    except DataError as failed:
        raise Trouble(str(failed).partition(";")[0], "dvc repro prepare") from None
    if missing:
        raise Trouble(
            f"{folder}/dataset: {len(missing)} shards are missing, such as {missing[0]}",
            "dvc repro -f prepare",
        )
    counts = ", ".join(f"{index.num_samples(split):,} {split}" for split in index.splits)
    return f"{index.dataset}: {counts}"


def _cpus(params: Params) -> str:
    fewest, _ = params.cluster.fewest_and_most
    required, available = fewest * params.cluster.cpus_per_worker, len(os.sched_getaffinity(0))
    if "RAY_ADDRESS" not in os.environ and available < required:
        raise Trouble(
            f"{available} here, {fewest} workers ask for {required:g}",
            "lower cluster.workers or cluster.cpus_per_worker",
        )
    return f"{available} here, {required:g} asked for"


def _gpus(params: Params) -> str:
    import torch

    if params.cluster.use_gpu and "RAY_ADDRESS" not in os.environ and not torch.cuda.is_available():
        raise Trouble(
            "cluster.use_gpu is true, and PyTorch sees none",
            "set it to false, or install PyTorch for your CUDA",
        )
    demand = "asked for" if params.cluster.use_gpu else "none asked for"
    return f"{torch.cuda.device_count()} here, {demand}"


def _ray() -> str:
    """Check that the addresses in ``RAY_ADDRESS`` and ``RAY_API_SERVER_ADDRESS`` answer.

    The server must run the installed version of Ray.
    """
    addresses = [
        os.environ[name]
        for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
        if os.environ.get(name)
    ]
    if not addresses:
        return "none named: one is started on this machine for each job"
    has_token = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    if os.environ.get("RAY_AUTH_MODE") == "token" and not has_token:
        raise Trouble(
            "RAY_AUTH_MODE is token, and there is none",
            "set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH",
        )
    for address in addresses:
        if address.startswith("http"):
            header = (
                {"Authorization": f"Bearer {os.environ['RAY_AUTH_TOKEN']}"}
                if os.environ.get("RAY_AUTH_TOKEN")
                else {}
            )
            answer = _get(
                f"{address.rstrip('/')}/api/version",
                header,
                "set RAY_AUTH_TOKEN to the cluster's token",
            )
            remote, installed = answer.get("ray_version"), importlib.metadata.version("ray")
            if remote != installed:
                raise Trouble(
                    f"{address} runs Ray {remote}, here is {installed}",
                    f"pip install 'ray[default,train,tune]=={remote}'",
                )
        elif address not in ("auto", "local"):
            _connect(address)
    return f"{', '.join(addresses)} can be reached"


def _connect(address: str) -> None:
    parts = urlsplit(address if "://" in address else f"ray://{address}")
    try:
        with socket.create_connection((parts.hostname or "", parts.port or 6379), timeout=_WAIT_S):
            pass
    except OSError as failed:
        reason = failed.strerror or str(failed)
        raise Trouble(
            f"{address} cannot be reached ({reason})",
            "start it, or unset RAY_ADDRESS to train on this machine",
        ) from None


def _tracking() -> str:
    uri = tracking.tracking_uri()
    if not uri.startswith("http"):
        return uri
    user, password = (
        os.environ.get(f"MLFLOW_TRACKING_{name}", "") for name in ("USERNAME", "PASSWORD")
    )
    header = (
        {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}
        if user
        else {}
    )
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    header |= {"Authorization": f"Bearer {token}"} if token else {}
    fix = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
    _get(f"{uri.rstrip('/')}/api/2.0/mlflow/experiments/search?max_results=1", header, fix)
    return f"{uri} answers"


def _get(url: str, headers: dict[str, str], fix: str) -> dict[str, Any]:
    place = "{0.scheme}://{0.netloc}".format(urlsplit(url))
    request = urllib.request.Request(url, headers=headers)  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=_WAIT_S) as answer:  # noqa: S310
            return dict(json.loads(answer.read()))
    except urllib.error.HTTPError as refused:
        if refused.code in (401, 403):
            raise Trouble(f"{place} does not let us in (status {refused.code})", fix) from None
        raise Trouble(f"{place} answers with status {refused.code}", "see its log") from None
    except (OSError, ValueError) as failed:
        reason = getattr(failed, "reason", failed)
        raise Trouble(
            f"{place} cannot be reached ({reason})", "start it, or unset the variable that names it"
        ) from None


def _store() -> str:
    if "EBM_STORE" not in os.environ:
        return "none named: runs and data stay in this folder"
    try:
        storage.check(storage.store("runs"))
    except DataError as failed:
        raise Trouble(
            failed.what,
            failed.fix or "set EBM_STORE to s3://bucket/prefix, and AWS_ACCESS_KEY_ID and the like",
        ) from None
    return f"{os.environ['EBM_STORE']} takes files"


def _room(folder: Path, least: int, fix: str) -> str:
    if not folder.exists():
        return "not on this machine"
    usage = shutil.disk_usage(folder)
    if usage.free < least:
        raise Trouble(
            f"{usage.free / 2**30:.1f} GiB free of {usage.total / 2**30:.1f},"
            f" at least {least >> 30} are needed",
            fix,
        )
    return f"{usage.free / 2**30:.1f} GiB free"
