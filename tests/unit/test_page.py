"""A run on one page: whole, safe, readable in light and dark."""

import html
import itertools
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from ebm_dist.cli import commands
from ebm_dist.errors import DataError
from ebm_dist.files import write_csv
from ebm_dist.report import figures, page
from ebm_dist.report.headlines import headlines
from tests import pages


@pytest.fixture
def reports(tmp_path):
    folder = tmp_path / "my <run>"
    (folder / "ood/plots").mkdir(parents=True)
    (folder / "train/0").mkdir(parents=True)
    Image.fromarray(np.full((20, 30), 200, np.uint8)).save(folder / "ood/plots/roc_curve.png")
    metrics = {
        "auroc": 0.9,
        "noise": {"auroc": 0.99},
        "seeds": {
            "0": {"auroc": 0.88, "noise": {"auroc": 0.98}},
            "1": {"auroc": 0.92, "noise": {"auroc": 1.0}},
        },
    }
    (folder / "ood/metrics.json").write_text(json.dumps(metrics))
    (folder / "train/0/run.json").write_text(
        json.dumps({"seconds": 30.0, "workers": 2, "hardware": {"cpu": "A & B", "cores": 2}})
    )
    write_csv(
        folder / "train/0/curves.csv",
        [
            {"step": 10, "loss": 3.0, "gap": 1.0},
            {"step": 20, "loss": 2.0},
            {"step": 30, "loss": 1.0, "gap": float("inf")},
        ],
    )
    said = {
        "model": "ebm",
        "version": 3,
        "aliases": ["candidate"],
        "gates": [
            {"metric": "ood.auroc", "value": 0.9, "bound": ">= 0.95", "passes": False},
            {"metric": "fid", "value": None, "bound": "<= 5", "passes": False, "skipped": "no fid"},
        ],
    }
    (folder / "registry.json").write_text(json.dumps(said))
    return folder


class Checker(HTMLParser):
    VOID = {"meta", "img", "br"}

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.texts = [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)


def test_everything_is_on_the_page_and_nothing_comes_from_elsewhere(reports):
    text = page.build(reports)
    found = Checker(text)
    assert "skipped: no fid" in text
    assert "my &lt;run&gt;" in text and "A &amp; B" in text
    sources = [value for name, value in found.attributes if name in ("src", "href")]
    assert all(value.startswith(("data:image/png;base64,", "#")) for value in sources)
    assert {value[1:] for value in sources if value.startswith("#")} <= {
        value for name, value in found.attributes if name == "id"
    }
    assert "http" not in re.sub(r"base64,[^\"]*", "", text) and "<script" not in text
    assert all(
        dict(attributes).get("alt") for attributes in [found.attributes] if "img" in found.tags
    )
    assert (
        "60 device-seconds" in text
        and "0.6459 to 1<" in text
        and '<span class="bad">fail</span>' in text
    )
    run = json.loads((reports / "train/0/run.json").read_text())
    (reports / "train/0/run.json").write_text(json.dumps(run | {"watts_a_worker": 500.0}))
    assert "60 device-seconds, 30 kJ by NVML" in page.build(reports)
    (reports / "train/0/run.json").write_text(json.dumps(run | {"workers": [1, 4]}))
    assert "on 1 to 4 workers" in page.build(
        reports
    ) and "at most 120 device-seconds" in page.build(reports)
    assert text.index(">0.9<") < text.index("<nav")  # headline figures first
    assert (
        text.count("<svg") == 2
        and "loss: 3 to" not in text
        and "loss: 1 to 3, last 1, steps 10 to 30" in text
    )
    assert "gap: 1 to 1, last 1, steps 10 to 10" in text  # a value that is not finite is not drawn


def test_a_keyboard_reaches_all_that_can_be_used(reports):
    """Links, and summaries of what opens, get the focus by themselves, in the order of the page, and show it."""
    text = page.build(reports)
    found = Checker(text)
    assert found.tags.count("summary") >= 1
    assert not {"button", "input", "select", "script"} & set(found.tags)
    assert not {"onclick", "tabindex"} & {name for name, _ in found.attributes}
    links = re.findall(r'<li><a href="#([^"]+)"', text)
    assert links == re.findall(r'<h2 id="([^"]+)"', text) == ["suite-ood", "training"]
    assert ":focus-visible { outline: 3px" in text and "outline: none" not in text


def test_another_run_is_a_second_column(reports, tmp_path):
    other = tmp_path / "other"
    (other / "ood").mkdir(parents=True)
    (other / "ood/metrics.json").write_text(json.dumps({"auroc": 0.75}))
    text = page.build(reports, other)
    assert (
        "<td class=n>0.75</td>" in text
        and "reference</th>" in text
        and "reference</th>" not in page.build(reports)
    )


def test_a_folder_without_reports_says_so(tmp_path):
    with pytest.raises(DataError, match=r"no suite's metrics\.json; run 'dvc repro'"):
        page.build(tmp_path)


MARKUP = "<b title='x' id=\"y\">&amp;"


def test_markup_from_outside_is_text_everywhere(reports, tmp_path):
    """In names of folders, files and columns, in attributes, and in every string of the records."""
    folder = tmp_path / f"run {MARKUP}".replace("/", "")
    suite = folder / f"suite {MARKUP}"
    (suite / "plots").mkdir(parents=True)
    shutil.copy(reports / "ood/plots/roc_curve.png", suite / "plots" / f"{MARKUP}.png")
    (suite / "metrics.json").write_text(json.dumps({MARKUP: {MARKUP: 1.0}}))
    (folder / "train" / MARKUP).mkdir(parents=True)
    run = {"seconds": 1, "workers": 1, "hardware": {"cpu": MARKUP, "cores": 1}}
    (folder / "train" / MARKUP / "run.json").write_text(json.dumps(run))
    write_csv(folder / "train" / MARKUP / "curves.csv", [{"step": 1, MARKUP: 2.0}])
    gate = {"metric": MARKUP, "value": 1, "bound": MARKUP, "passes": True}
    registry = {"model": MARKUP, "version": MARKUP, "aliases": [MARKUP], "gates": [gate]}
    (folder / "registry.json").write_text(json.dumps(registry))
    checked = Checker(page.build(folder))
    assert "b" not in checked.tags and ("id", "y") not in checked.attributes
    texts = " ".join(checked.texts + [value for _, value in checked.attributes if value])
    # title, heading, suite (heading, link, caption), picture (alt, caption), metric (twice), run
    # (name, machine), curve (label, caption), model, version, alias, gate and bound
    assert texts.count(MARKUP) >= 18
    assert {name for name, _ in checked.attributes} <= {
        "lang", "charset", "name", "content", "id", "class", "href", "aria-label", "alt", "src",
        "scope", "role", "viewbox", "width", "height", "d", "open", "aria-labelledby", "x", "y", "text-anchor",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("ood/metrics.json", "[1, 2]", r"expected numbers by name, found \[1, 2\]; delete it and"),
        ("ood/metrics.json", '{"a": {"b": "<b>"}}', "a.b: expected a number, found '<b>'"),
        ("ood/metrics.json", '{"a": []}', r"a: expected a number, found \[\]"),
        ("ood/metrics.json", '{"a": true}', "a: expected a number, found True"),
        ("ood/metrics.json", '{"a": [1]}', r"a: expected a number, found \[1\]"),
        ("ood/metrics.json", f'{{"a": 1{"0" * 400}}}', "a: expected a number, found 1000"),
        ("ood/metrics.json", '{"a": 1, "seeds": [1]}', r"seeds: expected a number, found \[1\]"),
        ("ood/metrics.json", '{"a": 1, "seeds": {"0": 1}}', "seeds.0: expected metrics of one"),
        ("ood/metrics.json", '{"a": ' * 100 + "1" + "}" * 100, "at most 20 mappings in each other"),
        ("ood/metrics.json", "{", "not readable as JSON"),
        ("train/0/run.json", "3", "content: .* found 3; delete it and run 'dvc repro train'"),
        ("train/0/run.json", '{"seconds": "soon"}', "seconds: .* found 'soon'"),
        ("train/0/run.json", '{"seconds": 1, "workers": []}', "workers"),
        ("train/0/run.json", '{"seconds": 1, "workers": 1, "hardware": 2}', "hardware: .* found 2"),
        ("registry.json", '{"model": "ebm"}', "registry.json: version: .*dvc repro register"),
        (
            "registry.json",
            '{"model": "m", "version": 1, "aliases": [], "gates": [{"metric": "a", "bound": "<= 1",'
            ' "value": "low", "passes": true}]}',
            "gates.0.value: .* found 'low'",
        ),
        ("train/0/curves.csv", "a,b\n1,2\n", "a table of numbers with a column step"),
        ("train/0/curves.csv", "step,b\n1,<b>\n", "a table of numbers with a column step"),
        ("train/0/curves.csv", "step,b\n,1\n", "a table of numbers with a column step"),
        ("train/0/curves.csv", 'step,b\n1,"2\n', "a table of numbers with a column step"),
        ("train/0/curves.csv", b"step,b\n1,\xff\n", "a table of numbers with a column step"),
        ("ood/plots/roc_curve.png", "no picture", "not readable as a picture .*dvc repro evaluate"),
    ],
)
def test_a_malformed_report_is_one_message(reports, file, content, expected):
    (reports / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=expected) as error:
        page.build(reports)
    assert str(error.value).startswith(str(reports / file)) and len(str(error.value)) < 400


@pytest.mark.parametrize("table", ["", "step\n", "step,a\n", "step,a\n1,\n", "step,a\n1,nan\n"])
def test_a_table_without_values_has_no_curves(reports, table):
    (reports / "train/0/curves.csv").write_text(table)
    assert "<svg" not in page.build(reports)


def test_what_a_page_shows_may_be_extreme(reports, monkeypatch, tmp_path):
    """The largest numbers, text without UTF-8, and gates that do not apply."""
    table = "step,a\n1,-1.7e308\n2,1.7e308\n3,0\n1e999,1\n"
    (reports / "train/0/curves.csv").write_text(table)
    (reports / "ood/metrics.json").write_text('{"a\\ud800": 1e308, "b": NaN}')
    gate = {"metric": "fid", "value": None, "bound": "<= 1", "passes": False, "skipped": "a < b"}
    registry = {"model": "ebm\x1b[31m", "version": 1, "aliases": [], "gates": [gate]}
    (reports / "registry.json").write_text(json.dumps(registry))
    monkeypatch.setattr("sys.argv", ["ebm-dist", "report", str(reports), "--out", f"{tmp_path}/o"])
    commands.main()
    text = (tmp_path / "o").read_text()
    assert "\x1b" not in text and "ebm\\x1b[31m" in text
    assert '<path d="M0.0,90.0 120.0,0.0 240.0,45.0"/>' in text
    assert "a\\ud800" in text and "skipped: a &lt; b" in text


def test_headline_figures_come_with_what_they_are_read_against():
    suites = {
        "samples": {
            "fid_clf": 26.0,
            "fid_clf_floor": 18.0,
            "fid_clf_gaussian": 85.0,
            "copies": None,
        },
        "ood": {
            "mean_auroc": 0.97,
            "mean_auroc_of": {"fall of E (model)": 0.99, "total variation": 0.95, "PNG size": 0.84},
        },
        "of_a_plugin": {"auroc": 1.0},
    }
    first, second = headlines(suites)
    assert (first.metric, first.value) == ("samples.fid_clf", 26.0)
    assert first.reading == "real images 18, fitted Gaussian 85"
    assert second.reading == "best single baseline 0.95"  # scores by the energy are no baselines
    assert headlines({}) == []


def test_test_splits_with_anomalies_say_nothing_of_memorisation():
    suites = {"histogram": {"train_test_auroc": 0.7}, "anomaly": {"auroc": 0.8}}
    assert [line.metric for line in page.leading_figures(suites)] == ["anomaly.auroc"]
    del suites["anomaly"]
    assert [line.metric for line in page.leading_figures(suites)] == ["histogram.train_test_auroc"]


def test_the_outline_of_the_page_serves_those_who_do_not_see_it(reports):
    sheet = figures.image_grid(np.zeros((2, 1, 4, 4)), 2, "Two black <images>")
    (reports / "ood/plots/sheet.png").write_bytes(sheet)
    (reports / "samples/plots").mkdir(parents=True)
    (reports / "samples/plots/chains.gif").write_bytes(
        figures.animation([np.zeros((1, 1, 4, 4))], ["step 0"], 1)
    )
    (reports / "samples/metrics.json").write_text('{"fid_clf": 20.0, "fid_clf_floor": 18.0}')
    text = page.build(reports)
    checked = Checker(text)
    levels = [int(tag[1]) for tag in checked.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    for tag in ("header", "nav", "main"):
        assert checked.tags.count(tag) == 1, tag
    assert checked.tags.count("caption") == checked.tags.count("table") == 3
    assert checked.tags.index("a") < checked.tags.index("header") and 'href="#main"' in text
    assert 'alt="Sheet of images. Two black &lt;images&gt;"' in text
    ids = [value for name, value in checked.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    labels = {value for name, value in checked.attributes if name == "aria-labelledby"}
    assert labels <= set(ids)
    # an animation runs only in details that are open, so that it can be stopped
    assert re.search(
        r"<details>\s*<summary>Play[^<]*</summary>\s*<figure id=[^>]*>\s*<a[^>]*><img", text
    )
    places = [text.index(f'<h2 id="{name}"') for name in ("suite-samples", "suite-ood", "training")]
    assert places == sorted(places)
    assert "FID-clf of samples" in text and "real images 18" in text
    assert ">training step</text>" in text


def luminance(colour):
    """Relative luminance of WCAG 2.2 of a colour ``#rrggbb``."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_has_the_contrast_of_wcag_aa_in_light_and_dark(reports):
    schemes = re.findall(r":root \{([^}]*)\}", page.build(reports))
    assert len(schemes) == 2
    for scheme in schemes:
        colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", scheme))
        for name in ("ink", "soft", "mark", "bad"):
            light, dark = sorted(
                (luminance(colours[name]), luminance(colours["paper"])), reverse=True
            )
            assert (light + 0.05) / (dark + 0.05) >= 4.5, name


@pytest.mark.parametrize("is_dark", [False, True])
def test_it_is_readable_in_light_and_dark(reports, tmp_path, is_dark):
    browser = pages.browser()
    (tmp_path / "page.html").write_text(page.build(reports))
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile", "--window-size=900,1000",
        *(["--blink-settings=preferredColorScheme=0"] if is_dark else []), f"--screenshot={tmp_path}/shot.png", f"file://{tmp_path}/page.html",
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    picture = np.asarray(Image.open(tmp_path / "shot.png").convert("L"), np.float64)
    background = np.median(picture)
    assert (background < 60) == is_dark
    assert (np.abs(picture - background) > 120).mean() > 0.005  # text stands out from it


def test_nothing_is_cut_off_on_a_narrow_screen(reports, tmp_path):
    """In a frame of 360 pixels the page is no wider than the frame, also with long names."""
    metrics = json.loads((reports / "ood/metrics.json").read_text())
    metrics["a_long_name" * 6] = {"of_a_metric" * 4: 123456.789}
    (reports / "ood/metrics.json").write_text(json.dumps(metrics))
    script = "document.title = this.contentDocument.documentElement.scrollWidth + ' wide'"
    (tmp_path / "frame.html").write_text(
        f'<iframe width="360" height="800" onload="{script}"'
        f' srcdoc="{html.escape(page.build(reports))}"></iframe>'
    )
    seen = pages.look(
        pages.browser(), f"file://{tmp_path}/frame.html", tmp_path / "a.png", tmp_path / "profile"
    )
    assert int(re.search(r"<title>(\d+) wide", seen)[1]) <= 360
