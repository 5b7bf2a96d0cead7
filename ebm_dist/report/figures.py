"""Figures from arrays: PNG and GIF as bytes, the same bytes for the same arrays.

Each file says in words what it shows, for those who do not see it: a PNG in the text chunk
``Description``, a GIF in its comment. :func:`description` reads it.
"""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from ebm_dist.errors import printable

if TYPE_CHECKING:  # all processes load the suites, and few of them draw
    from matplotlib.figure import Figure

_DPI = 110
_DESCRIPTION = "Description"
_TOLERANCE = 0.002  # of values beyond 0 and 1: half a grey level
_CYCLE = (
    "#0b6fb8",
    "#d95f02",
    "#1b9e77",
    "#7b4ab5",
    "#c2185b",
    "#6b7280",
    "#a6761d",
    "#111827",
)  # distinct also in grey

Array = npt.NDArray[Any]


def _plain(name: str) -> str:
    """Return a name that matplotlib draws as typed: no formula, control characters as escapes."""
    return printable(name).replace("$", r"\$")


def _png(figure: "Figure", text: str) -> bytes:
    """Return a figure with a description as PNG; without a version, so that bytes are equal."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    out = io.BytesIO()
    FigureCanvasAgg(figure).print_png(  # type: ignore[no-untyped-call]
        out, metadata={"Software": None, _DESCRIPTION: _encodable(text)}
    )
    return out.getvalue()


def _encodable(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()


def description(content: bytes) -> str:
    """Return what a figure of this module shows, in words; "" for a picture that does not say so.

    Raise :class:`OSError` or :class:`ValueError` for bytes that are no picture.
    """
    try:
        with Image.open(io.BytesIO(content)) as picture:
            text = picture.info.get(_DESCRIPTION) or picture.info.get("comment") or ""
    except (SyntaxError, Image.DecompressionBombError) as failed:
        raise ValueError(failed) from failed
    return text.decode(errors="replace") if isinstance(text, bytes) else str(text)


def _blank(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=_DPI, layout="constrained")


def _figure(width: float, height: float) -> tuple["Figure", Any]:
    figure = _blank(width, height)
    axes = figure.add_subplot()
    axes.set_prop_cycle(color=_CYCLE)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def grey_scale(images: Array) -> tuple[float, float]:
    """Return the values that are drawn black and white: 0 and 1 if all values lie there.

    Otherwise they are the lowest and the highest finite value, so that none is cut off.
    """
    finite = images[np.isfinite(images)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    if low >= -_TOLERANCE and high <= 1 + _TOLERANCE:
        return 0.0, 1.0
    return _ends(finite)


def scale_note(scale: tuple[float, float]) -> str:
    """Return the part of a caption that states a grey scale other than 0 to 1."""
    return "" if scale == (0.0, 1.0) else f"; black is {scale[0]:.3g}, white {scale[1]:.3g}"


def tile(images: Array, columns: int, scale: tuple[float, float] | None = None) -> Array:
    """Tile images ``(n, channels, h, w)`` into one array of bytes ``(H, W, 3)``.

    ``scale`` has the values of black and white: those of :func:`grey_scale` by default. One grey
    pixel separates neighbours.
    """
    n, channels, h, w = images.shape
    rows = -(-n // columns)
    sheet = np.full((rows * (h + 1) + 1, columns * (w + 1) + 1, 3), 0.5)
    low, high = grey_scale(images) if scale is None else scale
    for i, image in enumerate((images - low) / (high - low)):
        top, left = (i // columns) * (h + 1) + 1, (i % columns) * (w + 1) + 1
        shown = image.transpose(1, 2, 0)[:, :, :3] if channels >= 3 else image[0][:, :, None]
        sheet[top : top + h, left : left + w] = shown
    return (np.nan_to_num(sheet).clip(0, 1) * 255).round().astype(np.uint8)


def _enlarged(sheet: Array, pixels: int = 640) -> Image.Image:
    factor = max(1, round(pixels / sheet.shape[1]))
    return Image.fromarray(sheet).resize(
        (sheet.shape[1] * factor, sheet.shape[0] * factor), Image.Resampling.NEAREST
    )


def image_grid(images: Array, columns: int, title: str) -> bytes:
    """Draw a sheet of images ``(n, channels, h, w)`` with a title, which states its grey scale."""
    scale = grey_scale(images)
    return titled(tile(images, columns, scale), title + scale_note(scale))


def titled(sheet: Array, title: str, rows: Sequence[str] = ()) -> bytes:
    """Draw an array of bytes ``(H, W, 3)`` with a title.

    ``rows`` are names of rows of equal height, from the top.
    """
    figure = _blank(6, 6 * sheet.shape[0] / sheet.shape[1] + 0.35)
    axes = figure.add_subplot()
    axes.imshow(sheet, interpolation="nearest")
    axes.set_title(_plain(title), fontsize=11, wrap=True)
    axes.set_axis_off()
    for i, name in enumerate(rows):
        axes.text(
            -3, (i + 0.5) * sheet.shape[0] / len(rows), name, ha="right", va="center", fontsize=8
        )
    return _png(figure, f"Sheet of images. {title}" + (f": {', '.join(rows)}" if rows else ""))


def animation(
    frames: Sequence[Array], labels: Sequence[str], columns: int, milliseconds: int = 120
) -> bytes:
    """Animate sheets of images, each with a line of text below; the last stays for two seconds.

    All have one grey scale, which the text states if it is not 0 to 1.
    """
    pictures, scale = [], grey_scale(np.concatenate(list(frames)))
    for frame, label in zip(frames, labels, strict=True):
        sheet = _enlarged(tile(frame, columns, scale), 360)
        picture = Image.new("RGB", (sheet.width, sheet.height + 22), "white")
        picture.paste(sheet, (0, 0))
        line = label + scale_note(scale)
        ImageDraw.Draw(picture).text((6, sheet.height + 4), line, fill="black", font_size=13)
        # few flat colours: a tenth of the size
        pictures.append(picture.quantize(32, dither=Image.Dither.NONE))
    out = io.BytesIO()
    text = f"Animation of {len(frames[0])} images from {labels[0]} to {labels[-1]}"
    pictures[0].save(
        out,
        "GIF",
        save_all=True,
        append_images=pictures[1:],
        duration=[milliseconds] * (len(pictures) - 1) + [2000],
        loop=0,
        comment=_encodable(text + scale_note(scale)),
    )
    return out.getvalue()


def _asinh_ticks(axis: Any, width: float) -> None:
    """Space the ticks of an asinh axis about evenly, so that those near 0 do not overprint."""
    from matplotlib.ticker import AsinhLocator, FuncFormatter, NullLocator

    axis.set_major_locator(AsinhLocator(width, numticks=7, base=0))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def histogram(values: Mapping[str, Array], xlabel: str, title: str, num_bins: int = 80) -> bytes:
    """Draw the shares of each set in common bins.

    The axis is linear around the first set and logarithmic far from it (asinh).
    """
    figure, axes = _figure(7.5, 4.4)
    first = next(iter(values.values()))
    width = 4 * float(first.std()) or 1.0
    ends = np.arcsinh(np.concatenate(list(values.values()))[:, None] / width)
    bins = np.sinh(np.linspace(ends.min() - 1e-6, ends.max() + 1e-6, num_bins + 1)) * width
    for i, (name, v) in enumerate(values.items()):
        is_filled = i < 2  # train and test: the others are compared with them
        style = (
            {"histtype": "stepfilled", "alpha": 0.35}
            if is_filled
            else {"histtype": "step", "lw": 1.6}
        )
        axes.hist(
            v, bins, weights=np.full(len(v), 1 / len(v)), label=f"{name} ({len(v):,})", **style
        )
    axes.set_xscale("asinh", linear_width=width)
    _asinh_ticks(axes.xaxis, width)
    axes.set(xlabel=xlabel, ylabel="share of the set in each bin", title=title)
    axes.legend(frameon=False, fontsize=9)
    medians = ", ".join(f"{name} {np.median(v):.3g}" for name, v in values.items())
    return _png(figure, f"Histogram. {title}. Medians of {xlabel}: {medians}")


def intervals(
    rows: Mapping[str, Mapping[str, tuple[float, float, float]]],
    xlabel: str,
    title: str,
    chance: float,
) -> bytes:
    """Draw values with intervals, ``{row: {series: (value, low, high)}}``, and chance (dashed).

    Each row is a line of the figure, each series a marker.
    """
    series = list(dict.fromkeys(name for row in rows.values() for name in row))
    figure, axes = _figure(7.5, 1.3 + len(rows) * max(0.55, 0.13 * len(series)))
    for i, name in enumerate(series):
        offset = 0.8 * ((i + 0.5) / len(series) - 0.5)
        points = [(y + offset, row[name]) for y, row in enumerate(rows.values()) if name in row]
        centre = np.array([value[0] for _, value in points])
        spread = np.abs(np.array([value[1:] for _, value in points]).T - centre)
        style = {"fmt": "o", "ms": 6} if i == 0 else {"fmt": "|", "ms": 9}
        axes.errorbar(
            centre, [y for y, _ in points], xerr=spread, label=name, capsize=2, lw=1.2, **style
        )
    axes.axvline(chance, color="#6b7280", ls="--", lw=1)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.hlines(np.arange(1, len(rows)) - 0.5, 0, 1, color="#e5e7eb", lw=0.8)
    axes.invert_yaxis()
    axes.set(xlabel=xlabel, title=title, xlim=(-0.03, 1.03))
    axes.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    first = ", ".join(f"{name} {row[series[0]][0]:.3f}" for name, row in rows.items())
    others = f"; the others are {', '.join(series[1:])}" if series[1:] else ""
    return _png(figure, f"{title}. {xlabel}. {series[0]}: {first}{others}")


def ranks(values: Mapping[str, float], num_sets: int, title: str) -> bytes:
    """Draw mean ranks over sets, 1 the best, and the critical difference of Nemenyi (Demsar 2006).

    Two means that are nearer to each other than the bar do not differ at 5 %.
    """
    from scipy.stats import studentized_range  # slow to import

    count, ordered = len(values), sorted(values.items(), key=lambda item: item[1])
    critical = studentized_range.ppf(0.95, count, np.inf) / np.sqrt(2)
    critical *= np.sqrt(count * (count + 1) / (6 * num_sets))
    figure, axes = _figure(7.5, 1.2 + 0.32 * count)
    for y, (_, rank) in enumerate(ordered):
        axes.plot([1, rank], [y, y], color="#e5e7eb", lw=1)
        axes.plot(rank, y, "o", ms=7, color=_CYCLE[0])
    best = ordered[0][1]
    axes.plot([best, best + critical], [-0.6, -0.6], color="#111827", lw=3, solid_capstyle="butt")
    axes.text(best, -0.85, f"critical difference {critical:.2f}", fontsize=9)
    axes.set_yticks(range(count), [f"{name}  {rank:.2f}" for name, rank in ordered])
    axes.set(xlabel=f"mean rank over {num_sets} sets", title=title, xlim=(1, count))
    axes.set_ylim(count - 0.5, -1.4)
    text = ", ".join(f"{name} {rank:.2f}" for name, rank in ordered)
    return _png(figure, f"{title}. Mean ranks: {text}. Critical difference {critical:.2f}")


def bars(values: Mapping[str, float], interval: tuple[float, float] | None, title: str) -> bytes:
    """Draw a bar with its number for each value; the first is coloured and may have an interval."""
    figure, axes = _figure(7.5, 1.0 + 0.32 * len(values))
    places, numbers = np.arange(len(values)), list(values.values())
    axes.barh(places, numbers, color=[_CYCLE[0], *["#b8c0c8"] * (len(values) - 1)], height=0.7)
    if interval:
        axes.errorbar(
            [sum(interval) / 2],
            [0],
            xerr=(interval[1] - interval[0]) / 2,
            color="#111827",
            capsize=3,
            lw=1.2,
        )
    low, high = min(0.0, *numbers), max(0.0, *numbers)
    room = 0.02 * (high - low or 1.0)
    for place, number in zip(places, numbers, strict=True):
        axes.text(
            max(number, 0.0, interval[1] if interval and place == 0 else 0.0) + room,
            place,
            f"{number:.4g}",
            va="center",
            fontsize=9,
        )
    axes.set_yticks(places, list(values), fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_title(title, fontsize=10, wrap=True)
    return _png(figure, f"{title}. {', '.join(f'{name} {x:.4g}' for name, x in values.items())}")


def curves(
    lines: Mapping[str, tuple[Sequence[float], ...]], xlabel: str, ylabel: str, title: str
) -> bytes:
    """Draw negative values with intervals, one line per name: ``{name: (x, value, low, high)}``.

    The legend has the last value. An infinite end of an interval is not drawn. The axis is
    logarithmic in the distance from 0, so close values remain distinct where others are far away.
    """
    figure, axes = _figure(7.0, 4.2)
    for name, (x, value, low, high) in lines.items():
        axes.plot(x, value, "o-", ms=4, lw=2, label=f"{name}: {value[-1]:.1f}")
        ends = (np.where(np.isfinite(end), end, value) for end in (low, high))
        axes.fill_between(x, *ends, alpha=0.2, lw=0)
    axes.set_yscale(
        "function", functions=(lambda y: -np.log(np.maximum(-y, 1e-9)), lambda y: -np.exp(-y))
    )
    bottom, top = axes.get_ylim()
    ticks = [-round(v, -1) for v in np.geomspace(-top, -bottom, 7)]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
    axes.legend(frameon=False, fontsize=10)
    last = {name: line[1][-1] for name, line in lines.items()}
    return _png(figure, _last_values(title, xlabel, ylabel, last))


def _last_values(title: str, xlabel: str, ylabel: str, last: Mapping[str, float]) -> str:
    values = ", ".join(f"{name} {value:.3g}" for name, value in last.items())
    return f"{title}. Curves of {ylabel} by {xlabel}; last values: {values}"


def bands(
    lines: Mapping[str, tuple[Any, ...]],
    xlabel: str,
    ylabel: str,
    title: str,
    *,
    log_x: bool = False,
    log_y: bool = False,
) -> bytes:
    """Draw a line in a band per name: ``{name: (x, middle, low, high)}``.

    Unless ``log_y``, the axis is linear around the last line and logarithmic far from it (asinh).
    """
    figure, axes = _figure(7.0, 4.2)
    for name, (x, middle, low, high) in lines.items():
        axes.plot(x, middle, lw=1.8, label=name)
        axes.fill_between(x, low, high, alpha=0.2, lw=0)
    if log_y:
        axes.set_yscale("log")
    else:
        *_, (_, _, low, high) = lines.values()
        width = float(np.abs([low.min(), high.max()]).max()) or 1.0
        axes.set_yscale("asinh", linear_width=width)
        _asinh_ticks(axes.yaxis, width)
    axes.set_xscale("log" if log_x else "linear")
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
    axes.legend(frameon=False, fontsize=10)
    last = {name: middle[-1] for name, (_, middle, _, _) in lines.items()}
    return _png(figure, _last_values(title, xlabel, ylabel, last))


def paths(sets: Mapping[str, Array], dots: Array, labels: tuple[str, str], title: str) -> bytes:
    """Draw paths ``(n, length, 2)`` in a plane over dots ``(m, 2)``.

    A ring marks the start of each path, a disc its end.
    """
    figure, axes = _figure(6.4, 5.6)
    axes.scatter(*dots.T, s=4, color="#c3c8d0", label="data")
    for colour, (name, group) in zip(_CYCLE, sets.items(), strict=False):
        for i, path in enumerate(group):
            axes.plot(*path.T, lw=0.8, alpha=0.7, color=colour, label="" if i else name)
        axes.scatter(*group[:, 0].T, s=40, fc="white", ec=colour, zorder=3)
        axes.scatter(*group[:, -1].T, s=40, color=colour, zorder=3)
    axes.set(xlabel=labels[0], ylabel=labels[1], title=title)
    axes.legend(frameon=False, fontsize=9, loc="upper right")
    return _png(figure, f"{title}. Paths of {', '.join(sets)} over data, by {' and '.join(labels)}")


def planes(
    points: Mapping[str, Array], log_densities: Mapping[str, Array], extent: float, title: str
) -> bytes:
    """Draw sets of points ``(n, 2)``, then densities ``(side, side)``, one panel each.

    The densities cover the square from -extent to extent. The colours of each end at 1e-4 of its
    largest value.
    """
    count = len(points) + len(log_densities)
    figure = _blank(3.0 * count + 0.6, 3.5)
    panels = list(figure.subplots(1, count, sharex=True, sharey=True))
    for axes, (name, x) in zip(panels, points.items(), strict=False):
        axes.scatter(*x.T, s=2, lw=0, alpha=0.4, color=_CYCLE[0])
        axes.set_title(name, fontsize=11)
    box = (-extent, extent, -extent, extent)
    for axes, (name, log_density) in zip(panels[len(points) :], log_densities.items(), strict=True):
        shown = np.maximum(log_density - log_density.max(), np.log(1e-4)) / np.log(10)
        image = axes.imshow(shown, origin="lower", extent=box, cmap="magma", vmin=-4, vmax=0)
        axes.set_title(name, fontsize=11)
    figure.colorbar(image, ax=panels[-1], label="log10 of density over its largest")
    for axes in panels:
        axes.set(xlim=(-extent, extent), ylim=(-extent, extent), aspect="equal")
    figure.suptitle(title, fontsize=12)
    return _png(figure, f"{title}. Panels: {', '.join([*points, *log_densities])}")


def regions(
    maps: Mapping[str, Array], points: Mapping[str, Array], extent: float, title: str
) -> bytes:
    """Draw maps ``(side, side)`` of values in [0, 1], one panel each, with points ``(n, 2)``.

    The maps cover the square from -extent to extent. Every panel has all points.
    """
    figure = _blank(3.4 * len(maps) + 0.6, 3.8)
    panels = list(figure.subplots(1, len(maps), sharex=True, sharey=True, squeeze=False)[0])
    for axes, (name, values) in zip(panels, maps.items(), strict=True):
        image = axes.imshow(
            values,
            origin="lower",
            extent=(-extent, extent, -extent, extent),
            vmin=0,
            vmax=1,
            cmap="magma",
        )
        axes.set_title(_plain(name), fontsize=11)
        for marker, (label, x) in zip("o^sDv", points.items(), strict=False):
            axes.scatter(
                *x.T,
                s=26,
                marker=marker,
                facecolor="white",
                edgecolor=_CYCLE[0],
                lw=1.2,
                label=_plain(label),
            )
        axes.set(xlim=(-extent, extent), ylim=(-extent, extent), aspect="equal")
    figure.colorbar(image, ax=panels[-1])
    figure.legend(
        *panels[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=len(points),
        frameon=False,
    )
    figure.suptitle(title, fontsize=12)
    return _png(figure, f"{title}. Panels: {', '.join(maps)}. Points: {', '.join(points)}")


def matrix(
    values: Array, columns: Sequence[str], rows: Sequence[str], xlabel: str, title: str
) -> bytes:
    """Draw shares ``(rows, columns)`` in [0, 1] as shaded cells; the cell of a NaN is empty."""
    figure, axes = _figure(6.4, 0.55 * len(rows) + 1.3)
    axes.imshow(values, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    axes.set_xticks(range(len(columns)), [_plain(name) for name in columns])
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0)
    axes.set(xlabel=xlabel, title=title)
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            axes.text(
                column,
                row,
                f"{value:.3f}",
                ha="center",
                va="center",
                color="white" if value > 0.6 else "black",
            )
    return _png(figure, f"{title}. Table of {', '.join(rows)} by {xlabel}")


def calibration(bins: Mapping[str, tuple[Sequence[float], Sequence[float]]], title: str) -> bytes:
    """Draw accuracy by confidence, ``{name: (mean probability, accuracy)}``, and the diagonal."""
    figure, axes = _figure(5.2, 4.2)
    axes.plot([0, 1], [0, 1], color=_CYCLE[5], lw=1, ls=":", label="perfectly calibrated")
    for marker, (name, (confidence, right)) in zip("os^D", bins.items(), strict=False):
        axes.plot(confidence, right, marker=marker, ms=5, lw=1.5, label=name)
    axes.set(
        xlim=(0, 1.02),
        ylim=(0, 1.02),
        xlabel="probability of the likeliest class",
        ylabel="share that is right",
        title=title,
    )
    axes.legend(frameon=False, fontsize=10)
    return _png(figure, f"{title}. Accuracy by confidence of {', '.join(bins)}")


def best_so_far(
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    xlabel: str,
    ylabel: str,
    title: str,
) -> bytes:
    """Draw the best value up to each x as steps, ``{name: (x, best)}``, on a logarithmic axis."""
    figure, axes = _figure(7.0, 4.2)
    end = max((max(x) for x, _ in lines.values() if len(x)), default=1.0)
    for style, (name, (x, best)) in zip(("-", "--", "-.", ":"), lines.items(), strict=False):
        label = f"{name}: {best[-1]:.3g}" if best else name
        axes.step(
            [*x, end] if best else [], [*best, *best[-1:]], style, where="post", lw=2, label=label
        )
    axes.set_yscale("log")
    _plain_ticks(axes.yaxis)
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title, xlim=(0, end))
    axes.legend(frameon=False, fontsize=10)
    last = {name: best[-1] for name, (_, best) in lines.items() if len(best)}
    return _png(figure, _last_values(title, xlabel, ylabel, last))


class Column(NamedTuple):
    """One setting, or the score, of all trials."""

    values: Sequence[Any]
    is_log: bool
    ends: tuple[float, float] | None
    """ends of the searched range; those of the values if absent"""


def parallel_coordinates(
    columns: Mapping[str, Column], scores: Array, score_name: str, title: str
) -> bytes:
    """Draw one line per trial through its values, coloured by score, dashed without one (NaN).

    The last axis is the score. Each axis covers the range of its value. Values that are not numbers
    have equal distances.
    """
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm

    figure = _blank(8.0, 4.6)
    axes = figure.add_subplot()
    scored = np.isfinite(scores)
    places = [
        *(_places(column) for column in columns.values()),
        _places(Column(scores[scored].tolist(), True, None)),
    ]
    end = np.full(len(scores), 1.12)  # above the axis: worse than anything that has a score
    end[scored] = places[-1][0]
    lines = np.column_stack([*(place for place, _ in places[:-1]), end])
    norm, colours = LogNorm(*_ends(scores[scored])), colormaps["viridis"]
    for i in np.argsort(-np.where(scored, scores, np.inf), kind="stable"):  # the best on top
        style = (
            {"color": colours(norm(scores[i])), "lw": 2}
            if scored[i]
            else {"color": _CYCLE[1], "lw": 1, "ls": "--"}
        )
        axes.plot(lines[i], **style)
    for x, (_, ticks) in enumerate(places):
        axes.axvline(x, ymax=0.87, color="black", lw=1)
        for y, text in ticks:
            box = {"fc": "white", "ec": "none", "alpha": 0.7, "pad": 1}
            axes.text(x - 0.03, y, text, fontsize=9, va="center", ha="right", bbox=box)
    if not scored.all():
        axes.text(
            len(places) - 0.95,
            1.12,
            "diverged\nor failed",
            fontsize=9,
            va="center",
            color=_CYCLE[1],
        )
    axes.set_xticks(range(len(places)), [*columns, score_name], fontsize=10)
    axes.tick_params(length=0)
    axes.set(title=title, yticks=[], ylim=(-0.06, 1.2), xlim=(-0.35, len(places) - 0.7))
    axes.spines[:].set_visible(False)
    text = f"{title}. One line per trial through {', '.join(columns)} and {score_name}"
    return _flat(_png(figure, text))


def _flat(png: bytes) -> bytes:
    """Reduce a PNG to 128 colours: a third of the size for many thin lines."""
    out, chunks = io.BytesIO(), PngInfo()
    chunks.add_text(_DESCRIPTION, description(png))
    Image.open(io.BytesIO(png)).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(
        out, "PNG", optimize=True, pnginfo=chunks
    )
    return out.getvalue()


def scatter(x: Column, y: Column, scores: Array, labels: tuple[str, str, str], title: str) -> bytes:
    """Draw scores over two values on logarithmic axes, one point per trial, coloured by score.

    Crosses are trials without a score (NaN). Nothing is drawn between the points: a score depends
    on other values too, and few points do not determine a surface.
    """
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import FuncFormatter, NullFormatter

    figure = _blank(7.0, 4.8)
    axes = figure.add_subplot()
    across, up, scored = np.array(x.values, float), np.array(y.values, float), np.isfinite(scores)
    text = f"{title}. Scatter of {labels[2]} by {labels[0]} and {labels[1]}"
    points = axes.scatter(
        across[scored],
        up[scored],
        c=scores[scored],
        norm=LogNorm(*_ends(scores[scored])),
        cmap="viridis",
        s=90,
        ec="black",
        lw=0.6,
        zorder=3,
    )
    if not scored.all():
        style: dict[str, Any] = {"marker": "x", "s": 60, "lw": 2, "color": _CYCLE[1], "zorder": 3}
        axes.scatter(across[~scored], up[~scored], label="diverged or failed", **style)
    if scored.any():
        best = np.flatnonzero(scored)[scores[scored].argmin()]
        style = {"s": 260, "fc": "none", "ec": "black", "lw": 1.5, "zorder": 4}
        axes.scatter(across[best], up[best], label=f"best: {scores[best]:.3g}", **style)
        text += f"; best {scores[best]:.3g} at {across[best]:.3g} and {up[best]:.3g}"
        bar = figure.colorbar(points, ax=axes, label=labels[2])
        _plain_ticks(bar.ax.yaxis)
    for values, ends, scale, limits in (
        (across, x.ends, axes.set_xscale, axes.set_xlim),
        (up, y.ends, axes.set_yscale, axes.set_ylim),
    ):
        first, last = ends or _ends(values)
        scale("log")
        limits(first / (last / first) ** 0.05, last * (last / first) ** 0.05)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.grid(color="#e5e7eb", lw=0.8, zorder=0)
    axes.set(xlabel=labels[0], ylabel=labels[1], title=title)
    if len(scores):
        figure.legend(frameon=False, fontsize=9, loc="outside lower left", ncols=2)
    return _png(figure, text)


def _places(column: Column) -> tuple[Array, list[tuple[float, str]]]:
    """Return positions of the values on an axis from 0 to 1, and the labels of the axis."""
    values = column.values
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        names = list(dict.fromkeys(map(str, values)))
        spots = np.linspace(0, 1, len(names)) if len(names) > 1 else np.array([0.5])
        return np.array([spots[names.index(str(value))] for value in values]), list(
            zip(spots.tolist(), names, strict=True)
        )
    numbers = np.array(values, float)
    low, high = column.ends or _ends(numbers)
    scaled = (
        np.log(numbers / low) / np.log(high / low)
        if column.is_log
        else (numbers - low) / (high - low)
    )
    middle = (low * high) ** 0.5 if column.is_log else (low + high) / 2
    return scaled, [(0.0, f"{low:.3g}"), (0.5, f"{middle:.3g}"), (1.0, f"{high:.3g}")]


def _ends(values: Array) -> tuple[float, float]:
    """Return the smallest and the largest value, moved apart where they are equal."""
    low, high = (float(values.min()), float(values.max())) if len(values) else (1.0, 2.0)
    return (low, high) if high > low else (low, low + abs(low) + 1e-9)


def _plain_ticks(axis: Any) -> None:
    """Label 1, 2 and 5 of each decade as plain numbers, because few scores span whole decades."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
