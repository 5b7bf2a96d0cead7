"""Arrays to pictures: PNG and GIF as bytes, the same bytes for the same arrays."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

_DPI = 110
_CYCLE = ("#0b6fb8", "#d95f02", "#1b9e77", "#7b4ab5", "#c2185b", "#6b7280", "#a6761d", "#111827")  # distinct also in grey

Array = npt.NDArray[Any]


def _png(figure: Figure) -> bytes:
    out = io.BytesIO()
    FigureCanvasAgg(figure).print_png(  # type: ignore[no-untyped-call]
        out, metadata={"Software": None}
    )  # no version: equal content is equal bytes
    return out.getvalue()


def _figure(width: float, height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.set_prop_cycle(color=_CYCLE)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def tile(images: Array, columns: int) -> Array:
    """Images ``(n, channels, h, w)`` in [0, 1] to one ``(H, W, 3)`` array of bytes, one grey pixel between neighbours."""
    n, channels, h, w = images.shape
    rows = -(-n // columns)
    sheet = np.full((rows * (h + 1) + 1, columns * (w + 1) + 1, 3), 0.5)
    for i, image in enumerate(images):
        top, left = (i // columns) * (h + 1) + 1, (i % columns) * (w + 1) + 1
        shown = image.transpose(1, 2, 0)[:, :, :3] if channels >= 3 else image[0][:, :, None]
        sheet[top : top + h, left : left + w] = shown
    return (sheet.clip(0, 1) * 255).round().astype(np.uint8)


def _enlarged(sheet: Array, pixels: int = 640) -> Image.Image:
    factor = max(1, round(pixels / sheet.shape[1]))
    return Image.fromarray(sheet).resize((sheet.shape[1] * factor, sheet.shape[0] * factor), Image.Resampling.NEAREST)


def image_grid(images: Array, columns: int, title: str) -> bytes:
    """A sheet of images with a title above."""
    sheet = tile(images, columns)
    figure = Figure(figsize=(6, 6 * sheet.shape[0] / sheet.shape[1] + 0.35), dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(sheet, interpolation="nearest")
    axes.set_title(title, fontsize=11)
    axes.set_axis_off()
    return _png(figure)


def animation(frames: Sequence[Array], labels: Sequence[str], columns: int, milliseconds: int = 120) -> bytes:
    """Sheets of images one after another, each with a line of text below; the last stays for two seconds."""
    pictures = []
    for frame, label in zip(frames, labels, strict=True):
        sheet = _enlarged(tile(frame, columns), 360)
        picture = Image.new("RGB", (sheet.width, sheet.height + 22), "white")
        picture.paste(sheet, (0, 0))
        ImageDraw.Draw(picture).text((6, sheet.height + 4), label, fill="black", font_size=13)
        pictures.append(picture.quantize(32, dither=Image.Dither.NONE))  # few flat colours: a tenth of the size
    out = io.BytesIO()
    durations = [milliseconds] * (len(pictures) - 1) + [2000]
    pictures[0].save(out, "GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0)
    return out.getvalue()


def histogram(values: Mapping[str, Array], xlabel: str, title: str, num_bins: int = 80) -> bytes:
    """Shares of each set in common bins. The axis is linear around the first set and logarithmic far from it (asinh)."""
    figure, axes = _figure(7.5, 4.4)
    first = next(iter(values.values()))
    width = 4 * float(first.std()) or 1.0
    ends = np.arcsinh(np.concatenate(list(values.values()))[:, None] / width)
    bins = np.sinh(np.linspace(ends.min() - 1e-6, ends.max() + 1e-6, num_bins + 1)) * width
    for i, (name, v) in enumerate(values.items()):
        is_filled = i < 2  # train and test are what the others are compared with
        style = {"histtype": "stepfilled", "alpha": 0.35} if is_filled else {"histtype": "step", "lw": 1.6}
        axes.hist(v, bins, weights=np.full(len(v), 1 / len(v)), label=f"{name} ({len(v):,})", **style)
    axes.set_xscale("asinh", linear_width=width)
    axes.set(xlabel=xlabel, ylabel="share of the set in each bin", title=title)
    axes.legend(frameon=False, fontsize=9)
    return _png(figure)


def intervals(rows: Mapping[str, Mapping[str, tuple[float, float, float]]], xlabel: str, title: str, chance: float) -> bytes:
    """Values with intervals: a line a row, a mark a series; dashed: chance. ``{row: {series: (value, low, high)}}``."""
    series = list(dict.fromkeys(name for row in rows.values() for name in row))
    figure, axes = _figure(7.5, 1.3 + 0.55 * len(rows))
    for i, name in enumerate(series):
        offset = 0.16 * (i - (len(series) - 1) / 2)
        found = [(y + offset, row[name]) for y, row in enumerate(rows.values()) if name in row]
        centre = np.array([value[0] for _, value in found])
        spread = np.abs(np.array([value[1:] for _, value in found]).T - centre)
        style = {"fmt": "o", "ms": 6} if i == 0 else {"fmt": "|", "ms": 9}
        axes.errorbar(centre, [y for y, _ in found], xerr=spread, label=name, capsize=2, lw=1.2, **style)
    axes.axvline(chance, color="#6b7280", ls="--", lw=1)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.invert_yaxis()
    axes.set(xlabel=xlabel, title=title, xlim=(-0.03, 1.03))
    axes.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return _png(figure)


def curves(lines: Mapping[str, tuple[Sequence[float], ...]], xlabel: str, ylabel: str, title: str) -> bytes:
    """Values with intervals along a line each: ``{name: (x, value, low, high)}``; the last value stands in the legend."""
    figure, axes = _figure(7.0, 4.2)
    for name, (x, value, low, high) in lines.items():
        axes.plot(x, value, "o-", ms=4, lw=2, label=f"{name}: {value[-1]:.1f}")
        axes.fill_between(x, np.nan_to_num(low, neginf=min(value)), high, alpha=0.2, lw=0)
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
    axes.legend(frameon=False, fontsize=10)
    return _png(figure)
