"""Pictures of the chains over a training: one a checkpoint, whole, in order, and no trouble where there is nothing to see."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from ebm_dist.files import encode
from ebm_dist.report import figures
from ebm_dist.runs import snapshots
from ebm_dist.training.checkpoint import MANIFEST


@pytest.fixture
def run(tmp_path):
    def put(step, shape=(30, 1, 8, 8), *, is_whole=True):
        folder = tmp_path / f"step-{step:08d}"
        folder.mkdir()
        for shard in (0, 1):
            position = torch.full(shape, step / 1000 if shard == 0 else 1.0)
            (folder / f"chains-{shard:05d}.safetensors").write_bytes(encode({"position": position}))
        if is_whole:
            (folder / MANIFEST).write_text(json.dumps({}))

    return tmp_path, put


def grey(path):
    return np.asarray(Image.open(path).convert("L"))[4, 4]


def test_each_whole_checkpoint_has_one_picture_of_its_first_chains(run):
    folder, put = run
    put(0)
    put(200)
    put(400, is_whole=False)
    snapshots.take(folder)
    pictures = snapshots.taken(folder)
    assert list(pictures) == [0, 200] and grey(pictures[0]) == 0 and grey(pictures[200]) == 51
    before = pictures[0].stat().st_mtime_ns
    put(1000)
    snapshots.take(folder)
    assert (
        list(snapshots.taken(folder)) == [0, 200, 1000] and pictures[0].stat().st_mtime_ns == before
    )


def test_a_deleted_checkpoint_and_what_is_no_image_are_passed_over(run):
    folder, put = run
    put(0, shape=(30, 2))
    put(200)
    (folder / "step-00000200/chains-00000.safetensors").unlink()
    (folder / "step-00000200/chains-00001.safetensors").unlink()
    snapshots.take(folder)
    assert snapshots.taken(folder) == {} and snapshots.strip(folder) is None


def test_they_are_taken_while_a_block_runs_and_once_at_its_end(run):
    folder, put = run
    with snapshots.sync_while_running(folder):
        put(200)
    assert list(snapshots.taken(folder)) == [200]


def test_values_beyond_0_and_1_are_scaled_and_the_strip_says_so(run):
    folder, put = run
    put(200)
    snapshots.take(folder)
    assert "black" not in figures.description(snapshots.strip(folder))
    put(3000)
    snapshots.take(folder)
    text = figures.description(snapshots.strip(folder))
    assert "; black and white are the lowest and highest value of a row: 200, 3,000" in text
    assert list(snapshots.taken(folder)) == [200, 3000]


def test_the_strip_has_a_dozen_rows_at_most_the_first_and_the_last_among_them(run):
    folder, put = run
    for step in range(0, 4000, 200):
        put(min(step, 1000) if step <= 1000 else step, shape=(20, 1, 8, 8))
    snapshots.take(folder)
    picture = Image.open(io.BytesIO(snapshots.strip(folder)))
    rows = np.asarray(picture.convert("L")).astype(float)
    assert picture.width < 800 and rows.std() > 10 and len(snapshots.taken(folder)) == 20
