"""Stage prepare: write the data set and the comparison sets as WebDataset shards with an index.

The parameter file needs only the sections dataset and comparison_datasets. If it is complete, the
stage fails where a suite of its section evaluation cannot evaluate a model of the data.
"""

from collections.abc import Iterator
from pathlib import Path

from ebm_dist import config, evaluation
from ebm_dist.config import Params, module_of, plugin_name
from ebm_dist.data import shards
from ebm_dist.datasets import Dataset
from ebm_dist.errors import printable
from pipelines import digests, parser, run


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


def main() -> None:
    options = parser(__doc__)
    options.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder to write to: dataset/ and a folder per comparison set",
    )
    args = options.parse_args()
    params = config.load(args.params, seed=args.seed, needed=config.DATA)
    check_unchanged = digests.check("prepare", args.params)
    configs = {"dataset": params.dataset, **params.comparison_datasets}
    indices = dict[str, shards.Index]()
    for folder, data in load_all(params):
        name = plugin_name(configs[folder]) or folder
        index = indices[folder] = shards.write(args.out / folder, name, data)
        counts = ", ".join(f"{index.num_samples(split):,} {split}" for split in index.splits)
        mark = "" if index.is_official else "  (the user's own files)"
        line = f"{args.out / folder}: {name}: {counts}; shape {tuple(index.shape)}{mark}"
        print(printable(line))
    if params.is_complete:
        evaluation.check(params, indices.pop("dataset"), indices)
    check_unchanged()


if __name__ == "__main__":
    run(main)
