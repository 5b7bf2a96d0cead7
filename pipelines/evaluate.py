"""Stage evaluate: run one suite on a model or its replicates; write metrics, tables and figures."""

import time
from pathlib import Path

import torch

from ebm_dist import config, evaluation
from ebm_dist.config import module_of
from ebm_dist.data import shards
from ebm_dist.errors import ConfigError
from ebm_dist.files import write_json
from ebm_dist.metrics import features
from ebm_dist.registry import versions
from ebm_dist.runs import progress, provenance
from pipelines import digests, parser, run


def main() -> None:
    options = parser(__doc__)
    options.add_argument("suite", help="suite of the parameter file's section evaluation")
    options.add_argument("--data", type=Path, required=True, help="folder that stage prepare wrote")
    options.add_argument(
        "--model",
        required=True,
        nargs="+",
        help="trained models: folders, registered versions such as models:/ebm@champion, or names"
        " of shipped models; several are replicates that differ in the seed",
    )
    options.add_argument(
        "--classifier", type=Path, required=True, help="folder that stage classifier wrote"
    )
    options.add_argument("--out", type=Path, required=True, help="folder to write the report to")
    args, began = options.parse_args(), time.monotonic()
    params = config.load(args.params)
    if args.suite not in params.evaluation:
        raise ConfigError(
            f"{args.params}: evaluation: no suite {args.suite!r};"
            f" there: {', '.join(params.evaluation)}"
        )
    check_unchanged = digests.check("evaluate", args.params, args.suite)
    suite = params.evaluation[args.suite]
    torch.set_num_threads(params.features.num_threads)
    index = shards.read_index(args.data / "dataset")
    comparison_indices = {
        name: shards.read_index(args.data / name) for name in params.comparison_datasets
    }
    evaluation.check(params, index, comparison_indices, [args.suite])
    classifier = features.load(args.classifier)
    reports, weights = {}, {}
    for number, trained in enumerate(map(versions.load, args.model), 1):
        subject = evaluation.Subject(trained, index, comparison_indices, classifier)
        with progress.chains(f"{args.suite}, model {number} of {len(args.model)}"):
            reports[trained.params.seed] = module_of(suite).evaluate(suite, subject)
        weights[trained.params.seed] = trained.card["sha256"]["energy.safetensors"]
    report = evaluation.over_seeds(reports)
    report.write(args.out)
    facts = provenance.of_suite(params, args.suite, index.digest, weights)
    write_json(args.out / provenance.RUN, facts | {"seconds": round(time.monotonic() - began, 1)})
    print(
        f"{args.out}: "
        + ", ".join(
            f"{key} {value:.4g}"
            for key, value in report.metrics.items()
            if isinstance(value, float)
        )
    )
    check_unchanged()


if __name__ == "__main__":
    run(main)
