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
    check_unchanged = digests.check("prepare", args.params)
    for folder, config_of_set in {"dataset": params.dataset, **params.comparison_datasets}.items():
        name = plugin_name(config_of_set) or folder
        index = shards.write(args.out / folder, name, module_of(config_of_set).load(config_of_set))
        counts = ", ".join(f"{index.num_samples(split):,} {split}" for split in index.splits)
        mark = "" if index.is_official else "  (the user's own files)"
        print(f"{args.out / folder}: {name}: {counts}; shape {tuple(index.shape)}{mark}")
    check_unchanged()


if __name__ == "__main__":
    run(main)
