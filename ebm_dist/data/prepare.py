"""Data set and comparison sets of a parameter file, loaded and written as shards."""

from collections.abc import Iterator
from pathlib import Path

from ebm_dist.config import Params, module_of, plugin_name
from ebm_dist.data import shards
from ebm_dist.datasets import Dataset


def load_all(params: Params) -> Iterator[tuple[str, Dataset]]:
    """Yield the folder and content of the data set, then of the comparison sets.

    Comparison sets take the standardisation of the data, so that they are in its units.
    """
    data: Dataset = module_of(params.dataset).load(params.dataset)
    standardisation = data.standardisation
    yield "dataset", data
    for folder, config_of_set in params.comparison_datasets.items():
        other: Dataset = module_of(config_of_set).load(config_of_set)
        yield folder, other._replace(standardisation=standardisation)


def write_all(params: Params, out: Path) -> Iterator[tuple[str, shards.Index]]:
    """Write each set of :func:`load_all` to its folder in ``out``; yield folder and index."""
    configs = {"dataset": params.dataset, **params.comparison_datasets}
    for folder, data in load_all(params):
        yield folder, shards.write(out / folder, plugin_name(configs[folder]) or folder, data)
