"""Stage prepare: write the data set and the comparison sets as WebDataset shards with an index.

The parameter file needs only the sections dataset and comparison_datasets. If it is complete, the
stage fails where a suite of its section evaluation cannot evaluate a model of the data.
"""

from pathlib import Path

from ebm_dist import config, evaluation
from ebm_dist.data import shards
from ebm_dist.data.prepare import write_all
from ebm_dist.errors import printable
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
    params = config.load(args.params, seed=args.seed, needed=config.DATA)
    check_unchanged = digests.check("prepare", args.params)
    indices = dict[str, shards.Index]()
    for folder, index in write_all(params, args.out):
        indices[folder] = index
        counts = ", ".join(f"{index.num_samples(split):,} {split}" for split in index.splits)
        mark = "" if index.is_official else "  (the user's own files)"
        line = f"{args.out / folder}: {index.dataset}: {counts}; shape {tuple(index.shape)}{mark}"
        print(printable(line))
    if params.is_complete:
        evaluation.check(params, indices.pop("dataset"), indices)
    check_unchanged()


if __name__ == "__main__":
    run(main)
