"""Stage classifier: train the small classifier that gives the features of FID-clf and IS-clf."""

from pathlib import Path

import torch

from ebm_dist import config
from ebm_dist.data import shards
from ebm_dist.files import write_json
from ebm_dist.metrics import features
from ebm_dist.runs import progress
from pipelines import digests, parser, run


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--data", type=Path, required=True, help="folder that stage prepare wrote")
    options.add_argument(
        "--out", type=Path, required=True, help="folder to write the classifier to"
    )
    args = options.parse_args()
    params = config.load(args.params)
    check_unchanged = digests.check("classifier", args.params)
    index = shards.read_index(args.data / (params.features.dataset or "dataset"))
    torch.set_num_threads(params.features.num_threads)
    if not features.is_measurable(index):
        write_json(args.out / features.CARD, None)
        print(f"{index.dataset}: no labelled images with a test split: no classifier, no FID-clf")
        check_unchanged()
        return
    with progress.counted("classifier", params.features.num_steps) as done:
        card = features.train(params.features, index, args.out, progress=done)
    print(
        f"{args.out}: accuracy {card['accuracy']:.4f} on {card['num_test']:,} test images,"
        f" {card['dim']} features"
    )
    check_unchanged()


if __name__ == "__main__":
    run(main)
