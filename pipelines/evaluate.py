"""Stage evaluate: hold one or more replicates of a model against one suite; metrics, tables and pictures.

With several models the metrics are means over them and "seeds" has each; pictures are of the first.
"""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ebm_dist import checkpoint, config, evaluation, features, model, shards
from ebm_dist.config import module_of
from ebm_dist.errors import ConfigError
from ebm_dist.files import write_json, write_whole
from pipelines import parser, run


def main() -> None:
    options = parser(__doc__)
    options.add_argument("suite", help="one of the suites of the parameter file's section evaluation")
    options.add_argument("--data", type=Path, required=True, help="prepared data: what stage prepare wrote")
    options.add_argument("--model", type=Path, required=True, nargs="+", help="folders of trained models")
    options.add_argument("--classifier", type=Path, required=True, help="what stage classifier wrote")
    options.add_argument("--out", type=Path, required=True, help="folder to write the report to")
    given = options.parse_args()
    params = config.load(given.params)
    if given.suite not in params.evaluation:
        raise ConfigError(f"{given.params}: evaluation: has no suite {given.suite!r}; there: {', '.join(params.evaluation)}")
    chosen = params.evaluation[given.suite]
    torch.set_num_threads(params.features.num_threads)
    index = shards.read_index(given.data / "dataset")
    others = {name: shards.read_index(given.data / name) for name in params.others}
    judge = None if checkpoint.load_json(given.classifier / features.CARD) is None else features.load(given.classifier)[0]
    models = [model.load(folder) for folder in given.model]
    reports = [module_of(chosen).evaluate(chosen, evaluation.Subject(m, index, others, judge)) for m in models]
    metrics: dict[str, Any] = _mean([report.metrics for report in reports])
    if len(models) > 1:
        metrics["seeds"] = {str(m.params.seed): report.metrics for m, report in zip(models, reports, strict=True)}
    plots = given.out / "plots"
    plots.mkdir(parents=True, exist_ok=True)
    for name, content in reports[0].figures.items():
        write_whole(plots / name, content)
    for name, rows in reports[0].tables.items():
        with (plots / f"{name}.csv").open("w", newline="") as out:
            writer = csv.DictWriter(out, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    write_json(given.out / "metrics.json", metrics)
    print(f"{given.out}: " + ", ".join(f"{key} {value:.4g}" for key, value in metrics.items() if isinstance(value, float)))


def _mean(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean over replicates, key by key."""
    first = reports[0]
    return {
        key: _mean([r[key] for r in reports]) if isinstance(value, dict) else type(value)(np.mean([r[key] for r in reports]))
        for key, value in first.items()
    }


if __name__ == "__main__":
    run(main)
