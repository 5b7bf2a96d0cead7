"""Rows of the results, evaluated again from the shipped models (``ebm-dist check``)."""

import math
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ebm_dist import config, evaluation, models
from ebm_dist.config import module_of, nearest
from ebm_dist.data import prepare
from ebm_dist.errors import ConfigError, ResultsError
from ebm_dist.metrics import features
from ebm_dist.registry import shipped
from ebm_dist.report.table import value_at
from ebm_dist.runs import provenance
from ebm_dist.runs.lineage import ROOT, hardware

_TOLERANCE = 5e-5
"""Relative. It is at most half a unit of the fourth significant digit."""


class Result(NamedTuple):
    """A row of the results, as committed and as evaluated here."""

    row: str
    what: str
    model: str
    seed: int
    committed: float
    """of this seed"""
    mean: float
    """of all seeds, committed"""
    here: float
    is_same_data: bool
    """whether the prepared data have the digest of those of the training"""
    seconds: float
    """to evaluate the suite, without the preparation of the data"""

    @property
    def is_reproduced(self) -> bool:
        """Whether both figures have the same four significant digits."""
        return math.isclose(self.committed, self.here, rel_tol=_TOLERANCE)

    @property
    def verdict(self) -> str:
        """Return the verdict in words."""
        if not self.is_reproduced:
            text = "NOT reproduced"
        else:
            bits = "the same bits" if self.here == self.committed else "other last digits"
            text = f"reproduced, {bits}"
        return text + ("" if self.is_same_data else "; the data differ from those of the training")


class Evaluated(NamedTuple):
    """Metrics of a suite on a shipped model."""

    metrics: dict[str, Any]
    is_same_data: bool
    seconds: float


def rows_by_model(rows: Sequence[str]) -> dict[str, list[str]]:
    """Group rows by the shipped model that gives them.

    Raise :class:`ConfigError` for a row that none gives.
    """
    model_of = {
        row: name for name, entry in shipped.lock()["models"].items() for row in entry["rows"]
    }
    for row in rows:
        if row not in model_of:
            raise ConfigError(
                f"{row}: no shipped model gives this row of the results",
                nearest(row, list(model_of)) if model_of else None,
            )
    names = dict.fromkeys(model_of[row] for row in rows)
    return {name: [row for row in rows if model_of[row] == name] for name in names}


def evaluate(
    name: str, suites: Iterable[str], folder: Path = shipped.FOLDER
) -> Iterator[tuple[str, Evaluated]]:
    """Evaluate suites of its recipe on a shipped model; yield suite and result.

    The data are prepared in a temporary folder. Raise :class:`DataError` if a file is missing.
    """
    entry = shipped.lock(folder)["models"][name]
    trained = models.load(shipped.verified(name, folder))
    params = config.load(
        ROOT / f"pipelines/recipes/{entry['recipe']}.yaml", seed=int(entry["seed"])
    )
    torch.set_num_threads(params.features.num_threads)
    classifier = entry["classifier"] and features.load(
        shipped.verified(entry["classifier"], folder)
    )
    with tempfile.TemporaryDirectory() as data:
        comparison_indices = dict(prepare.write_all(params, Path(data)))
        index = comparison_indices.pop("dataset")
        subject = evaluation.Subject(trained, index, comparison_indices, classifier)
        for name_of_suite in suites:
            suite, started = params.evaluation[name_of_suite], time.monotonic()
            report = module_of(suite).evaluate(suite, subject)
            is_same = index.digest == trained.card["data_digest"]
            seconds = time.monotonic() - started
            yield name_of_suite, Evaluated(report.metrics, is_same, seconds)


def results(
    name: str, rows: Mapping[str, Mapping[str, Any]], folder: Path = shipped.FOLDER
) -> Iterator[Result]:
    """Evaluate rows, as ``weights.lock`` has them, on a shipped model; a suite only once.

    Raise :class:`DataError` as :func:`evaluate` does.
    """
    seed = int(shipped.lock(folder)["models"][name]["seed"])
    suites = dict.fromkeys(row["metric"].partition(".")[0] for row in rows.values())
    for suite, evaluated in evaluate(name, suites, folder):
        for row, entry in rows.items():
            suite_of_row, _, key = entry["metric"].partition(".")
            if suite_of_row == suite:
                here = value_at(evaluated.metrics, key)
                yield Result(
                    row=row,
                    what=entry["what"],
                    model=name,
                    seed=seed,
                    committed=entry["committed"],
                    mean=entry["mean"],
                    here=here,
                    is_same_data=evaluated.is_same_data,
                    seconds=evaluated.seconds,
                )


def described(result: Result) -> Iterator[str]:
    """Yield the lines about a result."""
    yield f"{result.row}: {result.what}"
    yield f"  committed   {result.committed:.10g}   (seed {result.seed}; mean {result.mean:.4g})"
    yield f"  here        {result.here:.10g}   (model {result.model}, {result.seconds:.1f} s)"
    yield f"  difference  {result.here - result.committed:.3g}"
    yield f"  verdict     {result.verdict}"


def listed() -> Iterator[str]:
    """Yield the shipped models with their rows, and the files that the data need."""
    for name, entry in shipped.lock()["models"].items():
        needed = f"; EBM_DATA_DIR with {', '.join(entry['data'])}" if entry["data"] else ""
        yield f"{name}  (recipe {entry['recipe']}, seed {entry['seed']}{needed})"
        for row, content in entry["rows"].items():
            yield f"  {row:34} {content['committed']:<10.4g} {content['what']}"


def failure(failed: Sequence[Result]) -> ResultsError:
    """Return the error for rows that are not reproduced."""
    made_with = shipped.lock()["models"][failed[0].model]["made_with"]
    here = {"torch": provenance.versions().get("torch"), "cpu": hardware()["cpu"]}
    return ResultsError(
        f"not reproduced: {', '.join(result.row for result in failed)}; the weights were made with"
        f" {_machine(made_with)}, and this is {_machine(here)}",
        "another version or processor changes last digits, which long chains amplify",
    )


def _machine(made_with: Mapping[str, Any]) -> str:
    return f"torch {made_with['torch']} on {made_with['cpu']}"
