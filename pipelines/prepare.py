"""Stage prepare: raw files to WebDataset shards with an index, for the data set and the other sets that evaluations ask for."""

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
        help="folder to write: dataset/ and one folder for each other set",
    )
    args = options.parse_args()
    params = config.load(args.params, seed=args.seed)
    digests.check("prepare", args.params)
    for folder, chosen in {"dataset": params.dataset, **params.comparison_datasets}.items():
        name = plugin_name(chosen) or folder
        index = shards.write(args.out / folder, name, module_of(chosen).load(chosen))
        counts = ", ".join(f"{index.num_samples(split):,} {split}" for split in index.splits)
        mark = "" if index.is_official else "  (the user's own files)"
        print(f"{args.out / folder}: {name}: {counts}; shape {tuple(index.shape)}{mark}")


if __name__ == "__main__":
    run(main)
