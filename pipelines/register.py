"""Stage register: make the model a version in the MLflow registry, with reports and lineage.

The version becomes candidate, and champion if it passes all its gates.
"""

from pathlib import Path

from ebm_dist import config, models, storage
from ebm_dist.errors import printable, redact
from ebm_dist.files import write_json
from ebm_dist.registry import versions
from ebm_dist.registry.card import Verdict
from ebm_dist.runs import tracking
from pipelines import digests, parser, run


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--model", type=Path, required=True, help="folder of the trained model")
    options.add_argument(
        "--reports", type=Path, required=True, help="folder of the evaluations' reports"
    )
    options.add_argument("--out", type=Path, required=True, help="JSON file to write")
    options.add_argument(
        "--runs",
        type=storage.location,
        help="folder of the runs' records (default: $EBM_STORE/runs or runs)",
    )
    args = options.parse_args()
    params, card = config.load(args.params, seed=args.seed), models.load(args.model).card
    check_unchanged = digests.check("register", args.params)
    digest = card["run_digest"]
    name = f"{card['dataset']}-{digest[:8]}"
    runs = args.runs or storage.store("runs")
    result = versions.register(params, args.model, args.reports, runs / digest[:16], name)
    write_json(args.out, result)
    for gate in result["gates"]:
        print(printable(f"gate {gate['metric']}: {Verdict(**gate)}"))
    aliases = " ".join(f"@{alias}" for alias in result["aliases"])
    print(f"models:/{result['model']}/{result['version']}  {aliases}")
    print(
        f"look at it: mlflow ui --backend-store-uri {redact(tracking.tracking_uri())}"
        "   (pictures: the run's artifacts, reports/)"
    )
    print("            dvc metrics show;  dvc plots show --open")
    check_unchanged()


if __name__ == "__main__":
    run(main)
