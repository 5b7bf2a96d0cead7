"""Write the measured tables into the pages of docs: ``python -m benchmarks.report``.

The text between ``<!-- name -->`` and ``<!-- end -->`` is generated from reports/benchmarks/*.json;
the rest of a page is written by hand.
"""

import argparse
import io
import statistics
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.objectives import DENSITIES, picture_of
from ebm_dist.files import read_json
from ebm_dist.storage import write_whole


def table(columns: list[str], rows: list[list[Any]]) -> Iterator[str]:
    """Return the lines of a table."""
    yield "| " + " | ".join(columns) + " |"
    yield "|" + "---|" * len(columns)
    yield from ("| " + " | ".join(map(str, row)) + " |" for row in rows)


def where(content: dict[str, Any]) -> Iterator[str]:
    """Return the lines that name the machine of a measurement."""
    machine, versions = content["hardware"], content["versions"]
    threads = f", {content['threads']} torch threads" if "threads" in content else ""
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    gpu = f"{machine['gpu']}, " if "gpu" in machine else ""
    line = (
        f"{gpu}{machine['cpu']}, {machine['cores']} cores{threads}, load before {content['load']}"
    )
    yield from textwrap.wrap(f"{line}; {named}.", 100, break_on_hyphens=False)
    yield ""


def in_order(content: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of the peers in the order of the page."""
    return sorted(
        content["rows"],
        key=lambda row: (
            row["work"],
            ["2-D MLP", "MNIST CNN", "IGEBM net"].index(row["network"]),
            row["chains"],
        ),
    )


def langevin(content: dict[str, Any]) -> Iterator[str]:
    """Return the table of the peers."""
    yield from where(content)
    rows = []
    for row in in_order(content):
        peers = "; ".join(
            f"{name} **{mid:.2f}** ({low:.2f} to {high:.2f})"
            for name, (low, mid, high) in row["ratio"].items()
        )
        difference = max(row["largest_difference"].values(), default=None)
        milliseconds = (
            f"{1e3 * row['seconds']['ours']:.3g}"
            if row["seconds"]["ours"] < 1
            else f"{1e3 * row['seconds']['ours']:.0f}"
        )
        rows.append(
            [
                row["work"],
                f"{row['network']}, {row['chains']:,} chains, K={row['num_steps']}",
                milliseconds,
                f"{row['share_of_peak']:.0%}",
                peers,
                "" if difference is None else f"{difference:.0e}",
            ]
        )
    yield from table(
        [
            "work",
            "network",
            "ours, ms",
            "share of peak",
            "time of the peer / ours: median (range)",
            "chains differ by",
        ],
        rows,
    )


def training(content: dict[str, Any], to: str = "torchrun, ordered, 2 workers") -> Iterator[str]:
    """Return the table of training speeds, with ratios to the job ``to``."""
    yield from where(content)
    base = content["steps_per_second"][to]
    rows = [
        [
            name,
            f"{statistics.median(rates):.2f}",
            f"{statistics.median(a / b for a, b in zip(rates, base, strict=True)):.2f}",
        ]
        for name, rates in content["steps_per_second"].items()
    ]
    yield from table(["mnist recipe", "steps/s", f"ratio to {to}"], rows)


def others(content: dict[str, Any]) -> Iterator[str]:
    """Return the table of the processes that run with the workers."""
    yield from where(content)
    rows = []
    for name, row in content["rows"].items():
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
            "stopped in turn",
            "processes",
            "usual share of a core",
            "speed without / with them (middle half)",
        ],
        rows,
    )


def serving(content: dict[str, Any]) -> Iterator[str]:
    """Return the table of latencies."""
    yield from where(content)
    rows = [
        [
            row["server"],
            row["samples"],
            row["clients"],
            row["requests"],
            f"{row['p50_ms']:.1f}",
            f"{row['p99_ms']:.1f}",
        ]
        for row in content["rows"]
    ]
    yield from table(
        ["server", "samples per request", "concurrent requests", "requests", "p50, ms", "p99, ms"],
        rows,
    )


def around(content: dict[str, Any]) -> Iterator[str]:
    """Return the table of data, chains, checkpoints and the search."""
    rows = []
    for shape in ("1x28x28", "3x32x32"):
        row = content["replay"][shape]
        ours = row["chains_per_second"]
        low, high = row["ratio"][1:]
        rows.append(
            [
                f"replay draw and put, {shape}",
                f"{ours['ours']:,.0f} chains/s",
                f"{row['ratio'][0]:.1f} ({low:.1f} to {high:.1f}) times a list of tensors",
            ]
        )
    rates = content["reading"]["samples_per_second"]
    factor = rates["packed, verified"] / rates["a member each"]
    rows.append(
        [
            "reading 28x28 shards, SHA-256 checked",
            f"{rates['packed, verified']:,.0f} samples/s",
            f"{factor:.0f} times a tar of single samples",
        ]
    )
    saved = content["checkpoints"]
    for what in ("save", "load"):
        rows.append(
            [
                f"checkpoint of the mnist recipe, {what}",
                f"{1e3 * saved['seconds'][what]:.0f} ms",
                f"{saved['bytes'] / 1e6:.1f} MB",
            ]
        )
    if search := content.get("search"):
        rows.append(
            [
                "search of two short trials",
                f"{search['seconds']:.0f} s",
                f"{search['training']:.0f} s of it training, both at once",
            ]
        )
    yield from table(["component", "measured", "reference"], rows)


def pipeline(content: dict[str, Any]) -> Iterator[str]:
    """Return the table of the default job."""
    yield from where(content)
    rows = [
        [f"stage {name}", f"{seconds:.1f}"]
        for name, seconds in sorted(content["stages"].items(), key=lambda item: -item[1])
    ]
    rows += [
        ["all stages", f"{sum(content['stages'].values()):.1f}"],
        ["of it training", f"{content['training']:.1f}"],
        ["of it Ray, MLflow, DVC and imports", f"{content['platforms_and_imports']:.1f}"],
        ["`dvc repro` with nothing to do", f"{content['nothing_to_do']:.1f}"],
    ]
    yield from table(["default `dvc repro`", "seconds"], rows)


def memory(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Return the table of peak memory by stage."""
    names = {
        "prepare_driver": "stage prepare",
        "train_driver": "stage train, its driver",
        "train_worker": "a worker of two",
    }
    cells = [
        [
            label,
            *(f"{row[key]:,.0f} MiB" for row in rows),
            *(f"{row['added_per_raw_byte'][key]:.2f}" for row in rows[1:]),
        ]
        for key, label in names.items()
    ]
    sizes = [f"{row['raw_mib']:,.0f} MiB of images" for row in rows]
    yield from table(["process", *sizes, *(f"added a byte, {size}" for size in sizes[1:])], cells)


def shares(content: dict[str, Any]) -> Iterator[str]:
    """Return the table of the parts of a training step."""
    yield from where(content)
    rows = [
        [name, f"{share:.1%}"]
        for name, share in sorted(content["share"].items(), key=lambda item: -item[1])
    ]
    milliseconds = f"{1e3 * content['seconds_per_step']:.0f} ms per step"
    title = f"`{content['params']}`, {content['workers']} workers, {milliseconds}"
    yield from table([title, "share"], rows)


def adaptive(content: dict[str, Any]) -> Iterator[str]:
    """Return the table of samplers that choose their own length."""
    yield from where(content)
    names = dict.fromkeys(row["sampler"] for row in content["best"])
    rows = []
    for name in names:
        gaussian, funnel = (
            next(r for r in content["best"] if (r["sampler"], r["target"]) == (name, target))
            for target in ("gaussian", "funnel")
        )
        cells = [
            cell
            for row in (gaussian, funnel)
            for cell in (f"{row['ess_per_1000_gradients']:.2f}", f"{row['ratio_to_hmc']:.2f}")
        ]
        ends = [f"{funnel['mean_of_first']:+.2f}", f"{funnel['deviation_of_first']:.2f}"]
        rows.append([name, *cells, *ends])
    columns = ["sampler", "Gaussian, condition number 100", "ratio", "funnel of 10 dimensions"]
    yield from table([*columns, "ratio", "mean of x_0", "deviation"], rows)


def samplers(content: dict[str, Any]) -> Iterator[str]:
    """Return the table of MALA and HMC beside blackjax and ebmkit."""
    names = {
        "gaussian": "Gaussian, 32 dimensions, condition number 100",
        "mixture": "eight Gaussians",
        "mlp": "network with 2 x 128 hidden units",
    }
    rows = []
    for row in content["rows"]:
        ratios = [
            f"{'**' if name == 'compiled' else ''}{row[name]['ratio']['median']:.2f}"
            f"{'**' if name == 'compiled' else ''}"
            for name in ("compiled", "plain", "ebmkit")
            if name in row
        ]
        low, high = row["compiled"]["ratio"]["low"], row["compiled"]["ratio"]["high"]
        what = f"{row['sampler'].upper()}, {row['num_chains']:,} chains"
        rows.append(
            [names[row["target"]], what, ratios[0], f"{low:.2f} to {high:.2f}", *ratios[1:]]
        )
    columns = ["target", "sampler", "compiled", "range", "without compile", "ebmkit"]
    yield from table(columns[: len(rows[0])], rows)


def objectives(content: dict[str, Any]) -> Iterator[str]:
    """Return the tables of the objectives in the plane: KL, error of log Z, and seconds."""
    yield from where(content)
    densities, names = _in_the_plane(content["rows"])
    chance = {row["density"]: row["chance"] for row in content["rows"]}

    def cells(name: str, key: str, digits: int) -> list[str]:
        found = []
        for density in densities:
            rows = [r for r in content["rows"] if (r["objective"], r["density"]) == (name, density)]
            values = [row[key] for row in rows]
            known = any(value is not None for value in values)
            found.append(_mean_and_range(values, digits) if known else "")
        return found

    yield "KL divergence, mean and range over seeds:"
    yield ""
    rows = [[name, *cells(name, "kl", 4)] for name in names]
    yield from table(
        ["objective", *densities],
        [*rows, ["uniform density", *(f"{chance[density]:.2f}" for density in densities)]],
    )
    for title, key, digits in (
        ("Error of the learnt log Z:", "log_z_error", 3),
        ("CPU seconds to a KL divergence below 0.01, where reached:", "seconds_to_good", 0),
    ):
        rows = [[name, *cells(name, key, digits)] for name in names]
        yield from ("", title, "")
        yield from table(["objective", *densities], [row for row in rows if any(row[1:])])


def _in_the_plane(rows: list[dict[str, Any]]) -> tuple[list[str], list[str]]:
    """Return densities and objectives in the order of the benchmark, whatever was run first."""
    found = {row["density"] for row in rows}
    of_each = [[row["objective"] for row in rows if row["density"] == name] for name in found]
    names = dict.fromkeys(name for each in sorted(of_each, key=len, reverse=True) for name in each)
    return [name for name in DENSITIES if name in found], list(names)


def densities(content: dict[str, Any]) -> bytes:
    """Draw the density that each objective learnt with the first seed, above them the true ones."""
    drawn = [row for row in content["rows"] if "picture" in row]
    columns, names = _in_the_plane(drawn)
    tiles = {("true density", row["density"]): row["truth"] for row in drawn}
    tiles |= {(row["objective"], row["density"]): row["picture"] for row in drawn}
    size = (3 + 1.1 * len(columns), 0.4 + 1.1 * (len(names) + 1))
    figure = Figure(figsize=size, dpi=80, layout="constrained")
    axes = figure.subplots(len(names) + 1, len(columns), squeeze=False)
    for row, name in zip(axes, ["true density", *names], strict=True):
        row[0].set_ylabel(name, rotation=0, ha="right", va="center")
        for place, density in zip(row, columns, strict=True):
            place.set_xticks([])
            place.set_yticks([])
            if (name, density) in tiles:
                grey = picture_of(tiles[name, density])
                place.imshow(grey.T, origin="lower", cmap="gray_r", vmin=0, vmax=255)
    for place, density in zip(axes[0], columns, strict=True):
        place.set_title(density)
    return _png(figure)


def image_objectives(content: dict[str, Any]) -> Iterator[str]:
    """Return the table of the objectives on images."""
    yield from where(content)
    names = list(dict.fromkeys(row["objective"] for row in content["rows"]))
    rows = []
    for name in names:
        of = [row for row in content["rows"] if row["objective"] == name]
        ended = sum("diverged" not in row for row in of)
        rows.append(
            [
                name,
                f"{ended} of {len(of)}",
                *(
                    _mean_and_range([row.get(key) for row in of if key in row], digits)
                    for key, digits in (
                        ("fid_clf", 1),
                        ("auroc", 3),
                        ("completion_mse", 4),
                        ("rhat", 2),
                        ("gradients_to_good", 0),
                    )
                ),
            ]
        )
    last = next(row for row in content["rows"] if "completion_mse" in row)
    beside = f"{last['fid_clf_floor']:.1f}", f"{last['fid_clf_mixture']:.1f}"
    rows.append(["real images", "", beside[0], "", "", "", ""])
    rows.append(["mixture of Gaussians", "", beside[1], "", "", "", ""])
    rows.append(
        ["nearest training image", "", "", "", f"{last['completion_mse_nearest']:.4f}", "", ""]
    )
    yield from table(
        [
            "objective",
            "seeds that ended",
            "FID-clf",
            "AUROC",
            "error of completions",
            "R-hat at the end",
            "gradients to R-hat 1.1",
        ],
        rows,
    )


def _mean_and_range(found: list[float | None], digits: int) -> str:
    """Return mean and range of the seeds that have a value, and how many have none."""
    values = [value for value in found if value is not None]
    if not values:
        return "none" if found else ""
    text = f"{statistics.mean(values):,.{digits}f}"
    if len(values) > 1:
        text += f" ({min(values):,.{digits}f} to {max(values):,.{digits}f})"
    missing = len(found) - len(values)
    return f"{text}; {missing} of {len(found)} none" if missing else text


def reweighting(content: dict[str, Any]) -> Iterator[str]:
    """Return the table of persistent chains with Jarzynski weights."""
    yield from where(content)
    rows = [
        [
            row["rate"],
            f"{row['chains']:,}",
            row["sweeps"],
            f"{row['plain']['nats']:.1f}",
            f"{row['weighted']['nats']:.1f}",
            f"{row['plain']['lowest_ess']:.1%}",
            f"{row['weighted']['lowest_ess']:.1%}",
            f"{row['weighted']['num_resampled']:,}",
            f"{row['plain']['log_z_error']:+,.1f}",
            f"{row['weighted']['log_z_error']:+,.1f}",
        ]
        for row in content["rows"]
    ]
    yield from table(
        [
            "rate",
            "chains",
            "sweeps",
            "nats, plain",
            "nats, weighted",
            "effective at worst, plain",
            "weighted",
            "times resampled",
            "error of log Z, plain",
            "weighted",
        ],
        rows,
    )


def mixing(content: dict[str, Any]) -> Iterator[str]:
    """Return the table of the ways to sample an energy."""
    yield from where(content)
    rows = [
        [
            row["energy"],
            row["way"],
            row.get("replicas", 1),
            "infinite" if row["rhat"] is None else f"{row['rhat']:.3f}",
            f"{row['work_to_good']:,}" if row["work_to_good"] else "not reached",
            *(
                [
                    f"{row['refused'][0]:.2f} to {row['refused'][1]:.2f}",
                    f"{row['barrier']:.1f}",
                    f"{row['round_trips']:.0f}",
                ]
                if "barrier" in row
                else ["", "", ""]
            ),
            f"{row['seconds']:.0f}",
        ]
        for row in content["rows"]
    ]
    yield from table(
        [
            "energy",
            "chains",
            "replicas",
            "R-hat at the end",
            "steps to R-hat 1.1",
            "refused swaps",
            "barrier",
            "round trips a chain",
            "CPU seconds",
        ],
        rows,
    )


def scale(content: dict[str, Any]) -> Iterator[str]:
    """Return the tables of shards measured in a process, and of a step on paper."""
    yield from where(content)
    yield from table(
        ["logical shards", *list(content["rows"][0])[1:]],
        [
            [row["shards"], *(f"{v:,.2f}" if isinstance(v, float) else f"{v:,}" for v in rest)]
            for row in content["rows"]
            for rest in [list(row.values())[1:]]
        ],
    )
    yield ""
    yield "Assumed: " + "; ".join(f"{k} {v:g}" for k, v in content["assumed"].items()) + "."
    yield ""
    yield from table(
        list(content["on_paper"][0]),
        [
            [f"{v:,.3g}" if isinstance(v, float) else f"{v:,}" for v in row.values()]
            for row in content["on_paper"]
        ],
    )


def tabular(content: dict[str, Any]) -> Iterator[str]:
    """Return the table of the detectors, the best first."""
    hardware = content["hardware"]
    yield f"{hardware['cpu']}, {hardware['cores']} cores; commit {content['commit'][:10]}."
    yield ""
    found, reported = content["detectors"], content["reported"]["detectors"]
    rows = []
    for name, row in sorted(found.items(), key=lambda item: -item[1]["auroc"]):
        behind = [
            f"{100 * of['mean']:+.2f} ({100 * of['interval'][0]:+.2f} to"
            f" {100 * of['interval'][1]:+.2f})"
            for of in (one[name].get("behind") for one in (found, reported))
            if of
        ]
        rows.append(
            [
                name,
                f"{100 * row['auroc']:.2f}",
                f"{100 * reported[name]['auroc']:.2f}",
                f"{100 * row['auprc']:.2f}",
                f"{row['rank']:.2f}",
                *(behind or ["", ""]),
                f"{row['seconds']:.1f}",
            ]
        )
    columns = ["detector", "AUROC", "reported", "AUPRC", "mean rank", "behind ours"]
    yield from table([*columns, "behind, reported", "seconds a fit"], rows)


def accept_reject(content: dict[str, Any]) -> Iterator[str]:
    """Return the table of independent draws over the dimension."""
    yield from where(content)
    by = {(row["dimensions"], row["way"]): row for row in content["rows"]}
    ways = list(dict.fromkeys(row["way"] for row in content["rows"]))
    rows = []
    for d in dict.fromkeys(row["dimensions"] for row in content["rows"]):
        cells: list[str] = []
        for way in ways:
            row = by[d, way]
            error = row["rms_error"]
            cells += [f"{row['draws']:.3g}", "no draws" if error is None else f"{error:.3f}"]
        rows.append([d, *cells])
    heads = [head for way in ways for head in (f"{way}: draws", "error")]
    yield from table(["dimensions", *heads], rows)


def label_losses(content: dict[str, Any]) -> Iterator[str]:
    """Return the table of the losses of energy-based learning."""
    yield from where(content)
    rows = [
        [
            row["by"].replace("_", "-"),
            "diverged" if row["accuracy"] is None else f"{row['accuracy']:.3f}",
            "" if not row.get("interval") else "{:.3f} to {:.3f}".format(*row["interval"]),
            row["settings"]
            if "settings" in row
            else f"rate {row['lr']:g}" + (f", margin {row['margin']:g}" if row["margin"] else ""),
        ]
        for row in content["rows"]
    ]
    yield from table(["by", "accuracy", "95 % interval", "chosen settings"], rows)


def picture(content: dict[str, Any]) -> bytes:
    """Draw the ratios to each peer with their ranges."""
    bars = [
        (f"{row['work']}: {row['network']}, {row['chains']:,} chains\n{name}", values)
        for row in in_order(content)
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
    return _png(figure)


def _png(figure: Figure) -> bytes:
    out = io.BytesIO()
    FigureCanvasAgg(figure).print_png(out, metadata={"Software": None})
    return out.getvalue()


def streaming(content: dict[str, Any]) -> Iterator[str]:
    """Return the table of a data set larger than memory."""
    yield from where(content)
    yield from table(
        ["stage", "exit code", "seconds", "largest memory of a process, MiB"],
        [
            [row["stage"], row["exit_code"], f"{row['seconds']:.0f}", f"{row['mib']:,.0f}"]
            for row in content["rows"]
        ],
    )
    yield ""
    yield (
        f"Samples a second of one worker, verified: {content['samples_per_second']:,.0f} from the"
        f" disk, {content['samples_per_second_from_store']:,.0f} from the store. Reading takes"
        f" {content['share_of_a_step']:.2%} of a training step of recipe `mnist`."
    )


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--reports", type=Path, default=Path("reports/benchmarks"))
    options.add_argument("--docs", type=Path, default=Path("docs"))
    args = options.parse_args()

    def read(name: str) -> dict[str, Any]:
        content: dict[str, Any] = read_json(args.reports / f"{name}.json", "benchmark")
        return content

    platform, peers, in_plane = read("platform"), read("langevin"), read("objectives")
    pages = {
        "performance.md": {
            "langevin": langevin(peers),
            "gpu": langevin(read("gpu")),
            "ray": training(platform["ray"]),
            "spare": training(platform["spare"], "torchrun, ordered, 1 worker"),
            "others": others(platform["others"]),
            "serving": serving(read("serving")),
            "scaling": training(platform["scaling"]),
            "around": around(platform),
            "pipeline": pipeline(platform["pipeline"]),
            "memory": memory(read_json(args.reports / "memory.json", "benchmark")),
            "profile": shares(read("profile")),
        },
        "samplers.md": {
            "samplers": samplers(read("samplers")),
            "adaptive": adaptive(read("adaptive")),
            "accept_reject": accept_reject(read("accept_reject")),
        },
        "objectives.md": {
            "objectives": objectives(in_plane),
            "image_objectives": image_objectives(read("image_objectives")),
            "image_objectives_mnist": image_objectives(read("image_objectives_mnist")),
            "label_losses": label_losses(read("label_losses")),
        },
        "scale.md": {"scale": scale(read("scale")), "streaming": streaming(read("streaming"))},
        "rbm.md": {
            "reweighting": reweighting(read("reweighting")),
            "mixing": mixing(read("mixing")),
        },
    }
    for page, parts in pages.items():
        text = (args.docs / page).read_text()
        for name, lines in parts.items():
            before, mark, rest = text.partition(f"<!-- {name} -->\n")
            _, end, after = rest.partition("<!-- end -->")
            if not (mark and end):
                raise SystemExit(f"{page}: no place for {name}")
            text = before + mark + "\n".join(lines) + "\n" + end + after
        write_whole(args.docs / page, text.encode())
    write_whole(args.reports / "langevin.png", picture(peers))
    write_whole(args.reports / "objectives.png", densities(in_plane))


if __name__ == "__main__":
    main()
