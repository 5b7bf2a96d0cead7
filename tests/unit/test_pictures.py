"""The pictures of the documentation come from a list, and a command copies them."""

import io
import subprocess
import sys

import numpy as np
from PIL import Image

from ebm_dist import config
from pipelines import ROOT, pictures


def test_each_picture_of_the_documentation_is_listed_and_on_the_page():
    entries, folder = pictures.listed(), ROOT / "docs/images"
    committed = {path.name for path in folder.iterdir()}
    assert committed <= {entry["file"] for entry in entries.values()}
    drawn = {name for name, entry in entries.items() if entry["file"] in committed}
    assert (ROOT / "docs/pictures.md").read_text() == pictures.page(entries, drawn)


def test_each_listed_picture_is_of_a_suite_that_its_recipe_runs():
    for name, entry in pictures.listed().items():
        recipe, suite, _ = entry["plot"].split("/")
        file = "params.yaml" if recipe == "main" else f"pipelines/recipes/{recipe}.yaml"
        values, _ = config.read(ROOT / file)
        assert suite in values["evaluation"], name


def test_pictures_are_copied_small_and_others_stay(tmp_path):
    plots = tmp_path / "reports/r/samples/plots"
    plots.mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (400, 1200, 3), np.uint8)
    Image.fromarray(noise).save(plots / "samples.png")
    rows = "a: {plot: r/samples/samples.png, of: a paper, shows: noise}\nb: {plot: s/x/y.png}\n"
    (tmp_path / "list.yaml").write_text(rows)
    command = [sys.executable, "-m", "pipelines.pictures", "--list", str(tmp_path / "list.yaml")]
    command += ["--reports", str(tmp_path / "reports"), "--out", str(tmp_path / "docs")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0 and done.stdout.endswith("1 of 2 pictures\n"), done.stderr
    copied = (tmp_path / "docs/images/a.png").read_bytes()
    assert Image.open(io.BytesIO(copied)).size == (900, 300)
    assert len(copied) < (plots / "samples.png").stat().st_size
    page = (tmp_path / "docs/pictures.md").read_text()
    assert "![noise](images/a.png)" in page and "b.png" not in page
