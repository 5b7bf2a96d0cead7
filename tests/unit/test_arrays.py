"""The user's own data."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from ebm_dist.datasets import arrays
from ebm_dist.errors import DataError

RNG = np.random.default_rng(0)


def load(path, **keys):
    return arrays.load(arrays.Config(path=str(path), **keys))


def images(*shape):
    return RNG.integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((30, 6, 5), (1, 6, 5)),
        ((30, 6, 5, 3), (3, 6, 5)),
        ((30, 3, 6, 5), (3, 6, 5)),
        ((30, 6, 5, 1), (1, 6, 5)),
    ],
)
def test_images_in_every_usual_order(tmp_path, shape, expected):
    x = images(*shape)
    np.save(tmp_path / "x.npy", x)
    data = load(tmp_path / "x.npy")
    assert data.splits["train"].x.shape[1:] == expected
    assert {name: len(part.x) for name, part in data.splits.items()} == {
        "train": 22,
        "val": 2,
        "test": 6,
    }
    assert not data.is_official and data.num_classes == 0 and data.bounds == (0.0, 1.0)
    together = np.concatenate([part.x for part in data.splits.values()])
    assert sorted(map(bytes, together)) == sorted(
        map(bytes, x.reshape(30, *expected) if x.shape[-1] != 3 else x.transpose(0, 3, 1, 2).copy())
    )


def test_named_parts_with_labels(tmp_path):
    np.savez(tmp_path / "x.npz", train_images=images(20, 4, 4), train_labels=np.arange(20) % 3, test_images=images(7, 4, 4), test_labels=np.full(7, 4))  # fmt: skip
    data = load(tmp_path / "x.npz")
    assert len(data.splits["test"].x) == 7 and data.splits["test"].y.tolist() == [3] * 7
    assert data.num_classes == 3 and data.class_names == ("0", "1", "2", "4")
    assert data.notes == ("classes without train samples, so anomalies: 4",)
    assert len(load(tmp_path / "x.npz", max_samples=10).splits["train"].x) == 9


def test_a_folder_of_images_with_a_sub_folder_a_class(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(6):
            Image.fromarray(images(5, 4, 3)).save(tmp_path / name / f"{i}.png")
    data = load(tmp_path)
    assert data.num_classes == 2 and data.splits["train"].x.shape[1:] == (3, 5, 4)


def test_bad_input_is_one_clear_message(tmp_path):
    def refused(pattern, path):
        with pytest.raises(DataError, match=pattern):
            load(path)

    refused("no such file or folder", tmp_path / "none.npz")
    refused("no images", tmp_path)
    (tmp_path / "x.npz").write_bytes(b"<html>")
    refused("not a plain .npy or .npz", tmp_path / "x.npz")
    np.savez(tmp_path / "x.npz", pictures=images(3, 4, 4))
    refused("has pictures; expected the samples under images, x, X, data", tmp_path / "x.npz")
    np.savez(tmp_path / "x.npz", images=images(3, 4, 4), labels=np.zeros(2, int))
    refused("labels must be 3 integers", tmp_path / "x.npz")
    np.save(tmp_path / "x.npy", np.array([object()] * 3), allow_pickle=True)
    refused("not a plain .npy or .npz", tmp_path / "x.npy")
    np.save(tmp_path / "x.npy", np.full((4, 2), np.nan))
    refused("NaN or infinite", tmp_path / "x.npy")
    np.save(tmp_path / "x.npy", images(4, 5, 5, 9))
    refused("expected \\(n, h, w\\)", tmp_path / "x.npy")
    np.save(tmp_path / "x.npy", images(1, 5, 5))
    refused("at least 2", tmp_path / "x.npy")
    folder = tmp_path / "folder"
    folder.mkdir()
    Image.fromarray(images(5, 4)).save(folder / "a.png")
    Image.fromarray(images(5, 5)).save(folder / "b.png")
    refused("b.png: has the shape .* convert all images to one size", folder)
    (folder / "b.png").write_bytes(b"no image")
    refused("b.png: not a readable image", folder)


def test_linked_folders_are_classes_and_a_link_to_nothing_is_refused(tmp_path):
    for folder in ("im/cat", "elsewhere/dog"):
        (tmp_path / folder).mkdir(parents=True)
        for i in range(6):
            Image.fromarray(images(4, 4)).save(tmp_path / folder / f"{i}.png")
    (tmp_path / "im/dog").symlink_to(tmp_path / "elsewhere/dog")
    data = load(tmp_path / "im", val_fraction=0.0, test_fraction=0.0)
    assert len(data.splits["train"].x) == 12 and data.class_names == ("cat", "dog")
    (tmp_path / "im/cat/.#0.png").symlink_to("nothing")  # the lock of an editor
    assert load(tmp_path / "im").num_classes == 2
    (tmp_path / "im/cat/7.png").symlink_to("nothing")
    with pytest.raises(DataError, match=r"7\.png: is a link to nothing"):
        load(tmp_path / "im")
    (tmp_path / "im/cat/7.png").unlink()
    (tmp_path / "im/all").symlink_to(tmp_path / "im")
    with pytest.raises(DataError, match="all: is a link to a folder above it"):
        load(tmp_path / "im")


def test_a_gap_in_the_first_row_is_no_name(tmp_path):
    for gap in ("", "NA"):
        (tmp_path / "x.csv").write_text(f"{gap},1.5\n1,2\n3,4\n")
        with pytest.raises(DataError, match="columns have missing values: 'f0'"):
            load(tmp_path / "x.csv")


def test_the_row_numbers_of_a_frame_are_no_column(tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": np.arange(20) / 7, "b": np.arange(20) % 3 / 2})
    frame[frame.b > 0].to_parquet(tmp_path / "x.parquet")
    config = arrays.Config(path=str(tmp_path / "x.parquet"))
    assert arrays.column_names(config) == ("a", "b")
    data = arrays.load(config)
    assert data.splits["train"].x.shape[1] == 2
    assert "columns that are not used: '__index_level_0__'" in data.notes
    named = dataclasses.replace(config, columns=("__index_level_0__", "a"))
    assert arrays.load(named).splits["train"].x.shape[1] == 2
