"""A run on one page: whole, safe, readable in light and dark."""

import json
import re
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from ebm_dist.errors import DataError
from ebm_dist.files import write_csv
from ebm_dist.report import page
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
        "gates": [{"metric": "ood.auroc", "value": 0.9, "bound": ">= 0.95", "passes": False}],
    }
    (folder / "registry.json").write_text(json.dumps(said))
    return folder


class Checker(HTMLParser):
    VOID = {"meta", "img", "br", "rect", "path"}

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)


def test_everything_is_on_the_page_and_nothing_comes_from_elsewhere(reports):
    text = page.build(reports)
    found = Checker(text)
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
    assert (
        found.tags.count("a") == found.tags.count("section") > 1
        and found.tags.count("summary") >= 1
    )
    assert not {"button", "input", "select", "script"} & set(found.tags)
    assert not {"onclick", "tabindex"} & {name for name, _ in found.attributes}
    links = re.findall(r'<a href="#([^"]+)"', text)
    assert links == re.findall(r'<h2 id="([^"]+)"', text)
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
