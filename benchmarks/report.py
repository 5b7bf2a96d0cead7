"""Put the measured tables into docs/performance.md: ``python -m benchmarks.report``, after the measurements.

What stands between ``<!-- name -->`` and ``<!-- end -->`` is made from reports/benchmarks/*.json; the rest is written by hand.
"""

import argparse
import io
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ebm_dist.files import read_json
from ebm_dist.storage import write_whole


def table(columns: list[str], rows: list[list[Any]]) -> Iterator[str]:
    yield "| " + " | ".join(columns) + " |"
    yield "|" + "---|" * len(columns)
    yield from ("| " + " | ".join(map(str, row)) + " |" for row in rows)


def where(found: dict[str, Any]) -> str:
    machine, versions = found["hardware"], found["versions"]
    threads = f", {found['threads']} torch threads" if "threads" in found else ""
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    gpu = f"{machine['gpu']}, " if "gpu" in machine else ""
    return f"{gpu}{machine['cpu']}, {machine['cores']} cores{threads}, load before {found['load']}; {named}."


def in_order(found: dict[str, Any]) -> list[dict[str, Any]]:
    return sorted(
        found["rows"],
        key=lambda row: (
            row["work"],
            ["2-D MLP", "MNIST CNN", "IGEBM net"].index(row["network"]),
            row["chains"],
        ),
    )


def langevin(found: dict[str, Any]) -> Iterator[str]:
    yield where(found)
    yield ""
    rows = []
    for row in in_order(found):
        peers = "; ".join(
            f"{name} **{mid:.2f}** ({low:.2f} to {high:.2f})"
            for name, (low, mid, high) in row["ratio"].items()
        )
        apart = max(row["largest_difference"].values(), default=None)
        milliseconds = (
            f"{1e3 * row['seconds']['ours']:.3g}"
            if row["seconds"]["ours"] < 1
            else f"{1e3 * row['seconds']['ours']:.0f}"
        )
        rows.append(
            [
                row["work"], f"{row['network']}, {row['chains']:,} chains, K={row['num_steps']}", milliseconds,
                f"{row['share_of_peak']:.0%}", peers, "" if apart is None else f"{apart:.0e}",
            ]
        )  # fmt: skip
    yield from table(
        [
            "work",
            "network",
            "ours, ms",
            "of the peak",
            "peer's time to ours: median (range)",
            "chains apart",
        ],
        rows,
    )


def training(found: dict[str, Any], to: str = "torchrun, ordered, 2 workers") -> Iterator[str]:
    yield where(found)
    yield ""
    base = found["steps_per_second"][to]
    rows = [
        [
            name,
            f"{statistics.median(own):.2f}",
            f"{statistics.median(a / b for a, b in zip(own, base, strict=True)):.2f}",
        ]
        for name, own in found["steps_per_second"].items()
    ]
    yield from table(["mnist recipe", "steps/s", f"to {to}"], rows)


def others(found: dict[str, Any]) -> Iterator[str]:
    yield where(found)
    yield ""
    rows = []
    for name, row in found["rows"].items():
        low, mid, high = row["ratio"]
        rows.append(
            [
                name,
                row["processes"],
                f"{row['cpu']:.1%}",
                f"**{mid:.3f}** ({low:.3f} to {high:.3f})",
            ]
        )
    yield from table(
        [
            "stopped by turns",
            "processes",
            "else use of a core",
            "speed to that beside them (middle half)",
        ],
        rows,
    )


def serving(found: dict[str, Any]) -> Iterator[str]:
    yield where(found)
    yield ""
    rows = [
        [
            row["server"],
            row["samples"],
            row["clients"],
            row["requests"],
            f"{row['p50_ms']:.1f}",
            f"{row['p99_ms']:.1f}",
        ]
        for row in found["rows"]
    ]
    yield from table(
        ["server", "samples a request", "requests at a time", "requests", "p50, ms", "p99, ms"],
        rows,
    )


def around(found: dict[str, Any]) -> Iterator[str]:
    rows = []
    for shape in ("1x28x28", "3x32x32"):
        row = found["replay"][shape]
        ours = row["chains_per_second"]
        low, high = row["ratio"][1:]
        rows.append(
            [
                f"replay draw and put, {shape}",
                f"{ours['ours']:,.0f} chains/s",
                f"{row['ratio'][0]:.1f} ({low:.1f} to {high:.1f}) to a list of tensors",
            ]
        )
    rates = found["reading"]["samples_per_second"]
    rows.append(
        [
            "reading 28x28 shards, SHA-256 checked",
            f"{rates['packed, verified']:,.0f} samples/s",
            f"{rates['packed, verified'] / rates['a member each']:.0f} to a tar with a member a sample",
        ]
    )
    saved = found["checkpoints"]
    for what in ("save", "load"):
        rows.append(
            [
                f"checkpoint of the mnist recipe, {what}",
                f"{1e3 * saved['seconds'][what]:.0f} ms",
                f"{saved['bytes'] / 1e6:.1f} MB",
            ]
        )
    if own := found.get("search"):
        rows.append(
            [
                "search of two short trials",
                f"{own['seconds']:.0f} s",
                f"{own['training']:.0f} s of it training, both at once",
            ]
        )
    yield from table(["what", "measured", "beside"], rows)


def pipeline(found: dict[str, Any]) -> Iterator[str]:
    yield where(found)
    yield ""
    rows = [
        [f"stage {name}", f"{seconds:.1f}"]
        for name, seconds in sorted(found["stages"].items(), key=lambda item: -item[1])
    ]
    rows += [
        ["all stages", f"{sum(found['stages'].values()):.1f}"],
        ["of it training", f"{found['training']:.1f}"],
        ["of it Ray, MLflow, DVC and imports", f"{found['platforms_and_imports']:.1f}"],
        ["`dvc repro` with nothing to do", f"{found['nothing_to_do']:.1f}"],
    ]
    yield from table(["default `dvc repro`", "seconds"], rows)


def shares(found: dict[str, Any]) -> Iterator[str]:
    yield where(found)
    yield ""
    rows = [
        [name, f"{share:.1%}"]
        for name, share in sorted(found["share"].items(), key=lambda item: -item[1])
    ]
    yield from table(
        [
            f"`{found['params']}`, {found['workers']} workers, {1e3 * found['seconds_per_step']:.0f} ms a step",
            "share",
        ],
        rows,
    )


def picture(found: dict[str, Any]) -> bytes:
    """Ratios to each peer with their ranges, 1 marked."""
    bars = [
        (f"{row['work']}: {row['network']}, {row['chains']:,} chains\n{name}", values)
        for row in in_order(found)
        for name, values in row["ratio"].items()
        if name != "ours, uncompiled"
    ][::-1]
    figure = Figure(figsize=(7.5, 0.6 + 0.42 * len(bars)), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    for place, (_, (low, mid, high)) in enumerate(bars):
        axes.barh(place, mid, color="#0b6fb8", height=0.6)
        axes.plot([low, high], [place, place], color="#111827", lw=1.5)
        axes.text(high + 0.05, place, f"{mid:.2f}", va="center", fontsize=8)
    axes.axvline(1, color="#111827", lw=1, ls=":")
    axes.set_yticks(range(len(bars)), [name for name, _ in bars], fontsize=7)
    axes.set_xlabel("peer's time to ours (above 1: ours is faster); line: range over rounds")
    axes.spines[["top", "right"]].set_visible(False)
    out = io.BytesIO()
    FigureCanvasAgg(figure).print_png(out, metadata={"Software": None})
    return out.getvalue()


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--reports", type=Path, default=Path("reports/benchmarks"))
    options.add_argument("--page", type=Path, default=Path("docs/performance.md"))
    given = options.parse_args()
    platform = read_json(given.reports / "platform.json", "benchmark")
    peers = read_json(given.reports / "langevin.json", "benchmark")
    parts = {
        "langevin": langevin(peers),
        "gpu": langevin(read_json(given.reports / "gpu.json", "benchmark")),
        "ray": training(platform["ray"]),
        "spare": training(platform["spare"], "torchrun, ordered, 1 worker"),
        "others": others(platform["others"]),
        "serving": serving(read_json(given.reports / "serving.json", "benchmark")),
        "scaling": training(platform["scaling"]),
        "around": around(platform),
        "pipeline": pipeline(platform["pipeline"]),
        "profile": shares(read_json(given.reports / "profile.json", "benchmark")),
    }
    text = given.page.read_text()
    for name, lines in parts.items():
        before, mark, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        if not (mark and end):
            raise SystemExit(f"{given.page}: no place for {name}")
        text = before + mark + "\n".join(lines) + "\n" + end + after
    write_whole(given.page, text.encode())
    write_whole(given.reports / "langevin.png", picture(peers))


if __name__ == "__main__":
    main()
