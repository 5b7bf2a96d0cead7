"""Write docs/results.md, docs/results.json and the table of the README from committed metrics."""

import argparse
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from ebm_dist.files import write_json
from ebm_dist.report import table
from ebm_dist.runs import provenance
from ebm_dist.storage import write_whole
from pipelines import ROOT, run


def with_provenance(row: dict[str, Any], reports: Path) -> dict[str, Any]:
    """Add the commit of a row's code, and the reasons why it is stale."""
    status = provenance.of_row(row, ROOT / "pipelines/recipes", reports)
    return row | {"commit": status.commit, "stale": list(status.reasons)}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument(
        "--rows", type=Path, default=Path("pipelines/results.yaml"), help="what the rows are"
    )
    options.add_argument(
        "--reports", type=Path, default=Path("reports"), help="folder of the committed metrics"
    )
    options.add_argument(
        "--out",
        type=Path,
        default=Path("docs"),
        help="folder to write results.md and results.json to",
    )
    options.add_argument(
        "--readme",
        type=Path,
        default=Path("README.md"),
        help="page in which to replace the table between the marks",
    )
    args = options.parse_args()
    entries = YAML(typ="safe", pure=True).load(args.rows.read_text())
    unmeasured = {name: entry for name, entry in entries.items() if "unmeasured" in entry}
    rows = [
        with_provenance(table.row(name, entry, args.reports), args.reports)
        for name, entry in entries.items()
        if name not in unmeasured
    ]
    args.out.mkdir(parents=True, exist_ok=True)
    write_json(args.out / "results.json", rows)
    write_whole(args.out / "results.md", table.markdown(rows, unmeasured).encode())
    write_whole(args.out / "lost.md", table.lost(rows).encode())
    write_whole(args.readme, table.renewed(args.readme.read_text(), rows).encode())
    print(f"{args.out}/results.md: {len(rows)} rows")


if __name__ == "__main__":
    run(main)
