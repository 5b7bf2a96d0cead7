"""Stage prepare: write the data set and the comparison sets as WebDataset shards with an index."""

from pathlib import Path

from ebm_dist import config
from ebm_dist.config import module_of, plugin_name
from ebm_dist.data import shards
from pipelines import digests, parser, run


def main() -> None:
    options = parser(__doc__)
    options.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder to write to: dataset/ and a folder per comparison set",
    )
    args = options.parse_args()
    params = config.load(args.params, seed=args.seed)
    digests.check("prepare", args.params)
    standardisation = None
    for folder, config_of_set in {"dataset": params.dataset, **params.comparison_datasets}.items():
        name, data = (
            plugin_name(config_of_set) or folder,
            module_of(config_of_set).load(config_of_set),
        )
        standardisation = data.standardisation if folder == "dataset" else standardisation
        # comparison sets are in the units of the data
        data = data._replace(standardisation=standardisation)
        index = shards.write(args.out / folder, name, data)
        counts = ", ".join(f"{index.num_samples(split):,} {split}" for split in index.splits)
        mark = "" if index.is_official else "  (the user's own files)"
        print(f"{args.out / folder}: {name}: {counts}; shape {tuple(index.shape)}{mark}")


if __name__ == "__main__":
    run(main)
