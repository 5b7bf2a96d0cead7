"""Stage evaluate: hold a model, or several replicates of it, against one suite; metrics, tables and pictures."""

from pathlib import Path

import torch

from ebm_dist import config, evaluation, models
from ebm_dist.config import module_of
from ebm_dist.data import shards
from ebm_dist.errors import ConfigError
from ebm_dist.metrics import features
from pipelines import parser, run


def main() -> None:
    options = parser(__doc__)
    options.add_argument("suite", help="one of the suites of the parameter file's section evaluation")
    options.add_argument("--data", type=Path, required=True, help="prepared data: what stage prepare wrote")
    options.add_argument("--model", type=Path, required=True, nargs="+", help="folders of trained models: replicates of one")
    options.add_argument("--classifier", type=Path, required=True, help="what stage classifier wrote")
    options.add_argument("--out", type=Path, required=True, help="folder to write the report to")
    given = options.parse_args()
    params = config.load(given.params)
    if given.suite not in params.evaluation:
        raise ConfigError(f"{given.params}: evaluation: no suite {given.suite!r}; there: {', '.join(params.evaluation)}")
    chosen = params.evaluation[given.suite]
    torch.set_num_threads(params.features.num_threads)
    index = shards.read_index(given.data / "dataset")
    others = {name: shards.read_index(given.data / name) for name in params.comparison_datasets}
    classifier = features.load(given.classifier)
    reports = {}
    for trained in map(models.load, given.model):
        subject = evaluation.Subject(trained, index, others, classifier)
        reports[trained.params.seed] = module_of(chosen).evaluate(chosen, subject)
    report = evaluation.over_seeds(reports)
    report.write(given.out)
    print(f"{given.out}: " + ", ".join(f"{key} {value:.4g}" for key, value in report.metrics.items() if isinstance(value, float)))


if __name__ == "__main__":
    run(main)
