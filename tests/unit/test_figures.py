"""Figures say what they show: ticks that can be read, grey scales that are stated, words for those who see none."""

import io
import itertools

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from ebm_dist.report import figures

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("axis", ["x", "y"])
@pytest.mark.parametrize(
    ("low", "high", "width"),
    [(-10, 160, 8), (-10, 160, 0.1), (-1e6, 2e5, 1), (-4, 3, 100), (5, 300, 1), (0, 1, 2), (-3, 0, 1)],
)  # fmt: skip
def test_ticks_of_an_asinh_axis_do_not_overprint(axis, low, high, width):
    figure = Figure(figsize=(7.5, 4.4), layout="constrained")
    axes = figure.add_subplot()
    getattr(axes, f"set_{axis}scale")("asinh", linear_width=width)
    getattr(axes, f"set_{axis}lim")(low, high)
    shown = getattr(axes, f"{axis}axis")
    figures._asinh_ticks(shown, width)
    FigureCanvasAgg(figure).draw()
    inside = [
        t for t in shown.get_major_ticks() if low <= t.get_loc() <= high and t.label1.get_text()
    ]
    boxes = [tick.label1.get_window_extent() for tick in inside]
    assert len(boxes) >= 2
    start, end = ("x0", "x1") if axis == "x" else ("y0", "y1")
    spans = sorted((getattr(box, start), getattr(box, end)) for box in boxes)
    assert all(before[1] < after[0] for before, after in itertools.pairwise(spans))


def test_a_histogram_says_the_medians_of_its_sets():
    energies = {"train": np.linspace(-9, 1, 101), "noise": np.linspace(50, 90, 41)}
    text = figures.description(figures.histogram(energies, "energy E(x)", "Energies"))
    assert text == "Histogram. Energies. Medians of energy E(x): train -4, noise 70"


@pytest.mark.parametrize(
    ("low", "high", "note"),
    [
        (0.0, 1.0, ""),
        (0.2, 0.4, ""),
        (-0.0005, 1.0005, ""),  # rounding of floats
        (-1.0, 1.0, "; black is -1, white 1"),
        (0.0, 255.0, "; black is 0, white 255"),
        (7.0, 7.0, "; black is 7, white 14"),
    ],
)
def test_a_sheet_states_the_grey_scale_of_values_beyond_0_and_1(low, high, note):
    images = np.full((4, 1, 3, 3), low)
    images[1:] = high
    scale = figures.grey_scale(images)
    sheet = figures.tile(images, 4)
    assert figures.scale_note(scale) == note
    if note:
        assert sheet[2, 2, 0] == 0 and (sheet[2, 6, 0] == 255 or low == high)
    else:
        assert abs(int(sheet[2, 6, 0]) - 255 * high) <= 1
    assert (
        figures.description(figures.image_grid(images, 4, "Title"))
        == f"Sheet of images. Title{note}"
    )
    animated = figures.animation([images, images], ["step 0", "step 9"], 4)
    assert figures.description(animated) == f"Animation of 4 images from step 0 to step 9{note}"


def test_values_between_the_ends_of_a_grey_scale_keep_their_order():
    images = RNG.normal(size=(1, 1, 5, 5))
    sheet = figures.tile(images, 1)[1:-1, 1:-1, 0].astype(float)
    order = images.ravel().argsort()
    assert (np.diff(sheet.ravel()[order]) >= 0).all() and len(np.unique(sheet)) > 20


def test_values_that_are_not_finite_do_not_decide_the_scale():
    images = np.array([[[[0.0, 0.5], [np.inf, np.nan]]]])
    assert figures.grey_scale(images) == (0.0, 1.0)
    assert figures.grey_scale(np.full((1, 1, 2, 2), np.nan)) == (0.0, 1.0)
    assert figures.tile(images, 1)[1, 2, 0] == 128


def test_nothing_is_drawn_between_the_trials_of_a_search():
    """The colours of the scores are within a disc of each trial, and nowhere else."""
    x, y = np.geomspace(0.001, 1, 5), np.array([0.01, 1.0, 0.01, 1.0, 0.1])
    columns = [figures.Column(v, True, (v.min(), v.max())) for v in (x, y)]
    scores = np.array([3.0, 9.0, 4.0, np.nan, 2.0])
    content = figures.scatter(*columns, scores, ("step", "penalty", "fid"), "5 trials")
    pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"), int)
    plot = pixels[50:420, 90:570]  # without the bar of colours
    is_coloured = np.ptp(plot, axis=2) > 40
    assert 0.0002 < is_coloured.mean() < 0.01  # of a surface: a third
    assert figures.description(content) == (
        "5 trials. Scatter of fid by step and penalty; best 2 at 1 and 0.1"
    )


def test_words_survive_any_name_and_pictures_without_words_have_none():
    cells = np.eye(2)
    content = figures.matrix(cells, ["a\ud800", "é"], ["1", "2"], "classes", "Title ∑")
    assert figures.description(content) == "Title ∑. Table of 1, 2 by classes"
    regions = figures.regions({"a\ud800": cells}, {"\x1b": RNG.random((3, 2))}, 1.0, "Title")
    assert figures.description(regions) == "Title. Panels: a\\ud800. Points: \x1b"
    plain = io.BytesIO()
    Image.new("L", (4, 4)).save(plain, "PNG")
    assert figures.description(plain.getvalue()) == ""
    for broken in (b"", b"png", content[:40]):
        with pytest.raises((OSError, ValueError)):
            figures.description(broken)
