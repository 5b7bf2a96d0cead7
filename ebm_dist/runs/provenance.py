"""Provenance: which code, settings, data and weights made a result, and whether it is current.

``run.json`` next to the metrics of a training or a suite records them. A result is *current* if the
recorded digests equal those of the present code and settings, or if :mod:`pipelines.verify` has
shown that the change between two digests changed no bit. Otherwise it is *stale*, with a reason.
Nothing here needs data, weights or a run.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML

from ebm_dist import config
from ebm_dist.config import TRAINING, Params
from ebm_dist.errors import DataError
from ebm_dist.files import read_json, sha256
from ebm_dist.runs import code, lineage
from ebm_dist.runs.record import EVENTS, changes, read_lines

RUN = "run.json"
VERIFIED = Path("pipelines/verified.jsonl")
_LIBRARIES = ("torch", "numpy", "scipy", "scikit-learn", "safetensors", "webdataset", "ray", "zuko")


class Status(NamedTuple):
    """Status of a result: current, or stale with reasons."""

    commit: str
    """commit of the code that made it; "" if it was not recorded"""
    reasons: tuple[str, ...]
    """why it is stale; empty if it is current"""


def versions() -> dict[str, str]:
    """Return the versions of the libraries that decide bits."""
    from importlib.metadata import PackageNotFoundError, version

    installed = {}
    for name in _LIBRARIES:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            continue
    return installed


def made_here() -> dict[str, Any]:
    """Return what ``run.json`` records of the place: commit, versions, device, hardware."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {
        "commit": lineage.code_commit(),
        "versions": versions(),
        "device": device,
        "hardware": lineage.hardware(),
    }


def of_training(params: Params, data_digest: str) -> dict[str, Any]:
    """Return what ``run.json`` records of a training before it starts: code, settings, data."""
    return {
        **made_here(),
        "code": code.train_digest(params),
        "prepare": code.prepare_digest(params),
        "params": params.digest(*TRAINING),
        "data_digest": data_digest,
    }


def of_record(run: Path, weights: Path) -> dict[str, Any]:
    """Return what ``run.json`` records of a training at its end; ``weights`` is of its energy.

    ``versions`` and ``device`` are those with which the run ended, and ``resumed_with`` says where
    others came before. They are missing where the run was finished by an earlier version.
    """
    starts = [event for event in read_lines(run / EVENTS) if "versions" in event]
    ended_with = {name: starts[-1][name] for name in ("versions", "device")} if starts else {}
    return {**ended_with, "resumed_with": changes(run), "weights": sha256(weights)}


def of_suite(
    params: Params, suite: str, data_digest: str, weights: Mapping[int, str]
) -> dict[str, Any]:
    """Return what ``run.json`` records of a suite over models, given their weights by seed."""
    return {
        **made_here(),
        "code": code.evaluate_digest(params, suite),
        "metrics_code": code.evaluate_digest(params, suite, figures=False),
        "params": suite_params(params, suite),
        "data_digest": data_digest,
        "weights": {str(seed): digest for seed, digest in weights.items()},
    }


def suite_params(params: Params, suite: str) -> str:
    """Return the digest of the settings that a suite depends on."""
    values = params.as_dict("comparison_datasets", "features", "evaluation")
    values["evaluation"] = values["evaluation"].get(suite)
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def status(recipe: Path, suite: str, reports: Path) -> Status:
    """Compare the records of a recipe's trainings and a suite with the present code and settings.

    Raise :class:`DataError` for a record that cannot be read.
    """
    record = _read(reports / recipe.stem / suite / RUN)
    params = config.load(recipe)
    if record is None or "code" not in record:
        recorded_in = lineage.recorded_in(reports / recipe.stem / suite / "metrics.json")
        return Status(recorded_in, ("made before provenance was recorded",))
    reasons = list(
        _differences(
            record,
            code.evaluate_digest(params, suite, figures=False),
            suite_params(params, suite),
            f"suite {suite}",
        )
    )
    for seed in range(params.num_seeds):
        training = _read(reports / recipe.stem / "train" / str(seed) / RUN)
        if training is None or "code" not in training:
            reasons.append(f"seed {seed}: trained before provenance was recorded")
            continue
        settings = config.load(recipe, seed=seed)
        reasons += _differences(
            training,
            code.train_digest(settings),
            settings.digest(*TRAINING),
            f"training of seed {seed}",
        )
        if not is_verified(training["prepare"], code.prepare_digest(settings)):
            reasons.append(f"seed {seed}: the code that prepares the data has changed")
        if record["weights"].get(str(seed)) != training["weights"]:
            reasons.append(f"seed {seed}: the suite saw other weights")
    return Status(record["commit"], tuple(reasons))


def of_row(row: Mapping[str, Any], recipes: Path, reports: Path) -> Status:
    """Return the status of a row of the results over all its recipes.

    Raise :class:`DataError` for a record that cannot be read.
    """
    statuses = [
        status(recipes / f"{name}.yaml", row["metric"].split(".")[0], reports)
        for name in row["recipes"]
    ]
    is_combined = len(statuses) > 1
    reasons = [
        f"{name}: {why}" if is_combined else why
        for name, recipe_status in zip(row["recipes"], statuses, strict=True)
        for why in recipe_status.reasons
    ]
    return Status(statuses[0].commit, tuple(reasons))


def _differences(record: Mapping[str, Any], present: str, params: str, what: str) -> Iterator[str]:
    if not is_verified(record.get("metrics_code", record["code"]), present):
        yield f"{what}: the code has changed"
    if record["params"] != params:
        yield f"{what}: the settings have changed"


def _read(path: Path) -> dict[str, Any] | None:
    try:
        record: dict[str, Any] = read_json(path, "train")
    except DataError:
        if path.exists():
            raise
        return None
    if not _is_record(record, is_training="train" in path.parts[-3:-1]):
        raise DataError(
            f"{path}: expected a record with commit, code, params and weights",
            "restore it from git, or delete it and run the stage again",
        )
    return record


def _is_record(record: Any, is_training: bool) -> bool:
    """Return whether a record has the fields of its kind, or was made before it had a digest."""
    if not isinstance(record, dict) or "code" not in record:
        return isinstance(record, dict)
    texts = {"commit", "code", "params", *(["prepare"] if is_training else [])}
    return (
        all(isinstance(record.get(name), str) for name in texts)
        and isinstance(record.get("metrics_code", ""), str)
        and isinstance(record.get("weights"), str if is_training else dict)
    )


def is_verified(recorded: str, present: str) -> bool:
    """Return whether a recorded digest is the present one or verified changes connect the two.

    ``present`` may be the beginning of a digest, as in ``pipelines/code.yaml``.
    """
    reached, queue = set[str](), [recorded]
    changes = _verified()
    while queue:
        digest = queue.pop()
        if digest[: len(present)] == present:
            return True
        if digest not in reached:
            reached.add(digest)
            queue += [new for old, new in changes if old == digest]
    return False


def _verified() -> list[tuple[str, str]]:
    path = code.ROOT / VERIFIED
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [(old, new) for row in rows for old, new in row["digests"].values()]


def lock_faults(lock: Path, root: Path) -> Iterator[str]:
    """Yield a message for each stage of a ``dvc.lock`` that claims code without evidence.

    Evidence is the ``run.json`` of a run of that code, or a verified change that leads to it. Paths
    in the lock are relative to ``root``.
    """
    stages = YAML(typ="safe", pure=True).load(lock.read_text())["stages"]
    for name, stage in stages.items():
        claimed = stage.get("params", {}).get("pipelines/code.yaml", {})
        kind, _, row = name.partition("@")
        if kind not in ("train", "evaluate") or not claimed:
            continue
        (metrics,) = [out["path"] for out in stage["outs"] if out["path"].endswith("metrics.json")]
        run = Path(metrics).parent / RUN
        record = _read(root / run)
        (digest,) = claimed.values()
        if record is None or not is_verified(record.get("code", ""), digest):
            yield f"{lock}: {row or kind} claims code {digest}, of which {run} is no run"
