"""Own files: values are kept or scaled by their type, classes keep their names, the rest is refused."""

import json
import logging
import struct
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from ebm_dist.config import from_values
from ebm_dist.data import shards
from ebm_dist.data.loader import LogicalShard
from ebm_dist.datasets import arrays, few_labels
from ebm_dist.errors import DataError, EbmError
from tests import helpers

RNG = np.random.default_rng(0)


def load(path, **keys):
    return arrays.load(arrays.Config(path=str(path), **keys))


def saved(folder, **content):
    np.savez(folder / "x.npz", **content)
    return folder / "x.npz"


def values(data):
    """All samples as a model sees them, in one array."""
    return np.concatenate([part.x for part in data.splits.values()]) / data.scale


def grey(*shape):
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def pictures(folder, images, **keys):
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
        picture.save(folder / f"{i}.{keys.get('suffix', 'png')}")
    return folder


# --- types of pictures


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_pictures_of_16_bits_keep_every_value(tmp_path, suffix):
    deep = np.arange(0, 65536, 64, dtype=np.uint16).reshape(16, 8, 8)
    data = load(pictures(tmp_path / "d", deep, suffix=suffix))
    assert data.scale == 65535 and data.bounds == (0.0, 1.0)
    assert np.array_equal(np.unique(values(data) * 65535), deep.ravel())
    assert "16-bit values are divided by 65535" in data.notes
    index = shards.write(tmp_path / "out", "arrays", data)
    x, _ = shards.read_split(index, "train")
    assert 0.9 < float(x.max()) <= 1.0 and len(x.unique()) > 500
    shard = LogicalShard(index, "train", 0, 1, 4, 0)
    assert shard.batch(0)[0].max() <= 1.0 and shard.only(range(1)).batch(1)[0].shape[0] == 4


def test_pictures_of_floats_are_not_scaled(tmp_path):
    data = load(pictures(tmp_path / "d", RNG.random((9, 8, 8), dtype=np.float32), suffix="tif"))
    assert data.splits["train"].x.shape[1:] == (1, 8, 8) and data.bounds is None
    assert len(np.unique(values(data))) > 500 and data.scale == 1.0
    bounded = load(tmp_path / "d", bounds=(0.0, 1.0))
    assert bounded.bounds == (0.0, 1.0) and np.array_equal(values(bounded), values(data))


def png(*rows, bits, colour):
    """A PNG of 16-bit channels, which Pillow reads but does not write."""

    def chunk(name, content):
        return (
            struct.pack(">I", len(content))
            + name
            + content
            + struct.pack(">I", zlib.crc32(name + content))
        )

    width = len(rows[0]) // {2: 3, 4: 2}[colour]
    body = b"".join(b"\0" + struct.pack(f">{len(row)}H", *row) for row in rows)
    header = struct.pack(">IIBBBBB", width, len(rows), bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(body)), chunk(b"IEND", b"")]
    )


def test_pictures_that_would_lose_values_are_refused_with_their_name(tmp_path):
    rgba = np.full((8, 8, 4), 255, np.uint8)
    rgba[2, 2, 3] = 100
    folder, frames = tmp_path / "d", [Image.fromarray(grey(8, 8)) for _ in range(2)]
    cases = {
        "mode I,": Image.fromarray(np.full((8, 8), 70000, np.int32)),
        "transparent pixels": Image.fromarray(rgba),
        "mode CMYK": Image.fromarray(rgba, "CMYK"),
    }
    for expected, image in cases.items():
        folder = pictures(tmp_path / expected, [image], suffix="tif")
        with pytest.raises(DataError, match=rf"0.tif: has .*{expected}"):
            load(folder)
    keyed = tmp_path / "keyed"
    keyed.mkdir()
    Image.fromarray(grey(8, 8, 3)).save(keyed / "a.png", transparency=(1, 2, 3))
    Image.fromarray(np.full((8, 8), 9, np.uint8)).save(keyed / "0.png", transparency=9)
    with pytest.raises(DataError, match=r"0.png: has transparent pixels.*flatten"):
        load(keyed)
    frames[0].save(folder / "1.tif", save_all=True, append_images=frames[1:])
    (folder / "0.tif").unlink()
    with pytest.raises(DataError, match=r"1.tif: has 2 pictures"):
        load(folder)
    (folder / "1.tif").unlink()
    for name, colour, width in (("a.png", 2, 12), ("b.png", 4, 8)):
        (folder / name).write_bytes(png(*[range(1000, 1000 + width)] * 4, bits=16, colour=colour))
        with pytest.raises(DataError, match=rf"{name}: has (16 bits a channel|transparent)"):
            load(folder)
        (folder / name).unlink()


def test_an_opaque_alpha_channel_is_dropped_with_a_word(tmp_path):
    rgb = grey(6, 8, 8, 3)
    rgba = np.concatenate([rgb, np.full((6, 8, 8, 1), 255, np.uint8)], axis=3)
    data = load(pictures(tmp_path / "d", rgba))
    assert np.array_equal(np.sort(values(data).ravel()), np.sort(rgb.ravel() / 255))
    assert data.notes == ("images without their alpha channel, which is opaque: 6",)


def test_a_palette_is_what_it_holds(tmp_path):
    x = grey(6, 8, 8)
    images = [Image.fromarray(image) for image in x]
    images[3:] = [image.convert("P") for image in images[3:]]
    data = load(pictures(tmp_path / "grey", images))
    assert data.splits["train"].x.shape[1:] == (1, 8, 8)
    assert np.array_equal(np.sort(values(data).ravel()), np.sort(x.ravel() / 255))
    colour = [Image.fromarray(grey(8, 8, 3)).convert("P") for _ in range(3)]
    assert load(pictures(tmp_path / "c", colour)).splits["train"].x.shape[1:] == (3, 8, 8)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_exif_orientation_is_applied(tmp_path, dtype):
    upright = np.zeros((6, 8), dtype)
    upright[:2] = 200
    for i in range(4):
        image = Image.fromarray(upright if i % 2 else upright[::-1, ::-1].copy())
        exif = image.getexif()
        exif[0x0112] = 1 if i % 2 else 3
        image.save(tmp_path / f"{i}.png", exif=exif)
    data = load(tmp_path, val_fraction=0.0, test_fraction=0.0)
    assert all(np.array_equal(x[0], upright) for x in data.splits["train"].x)
    assert "images turned as their EXIF orientation says: 2" in data.notes


def test_pictures_of_two_types_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"1.png: .*uint16, but 0.png .*uint8"):
        load(pictures(tmp_path / "d", [grey(8, 8), np.zeros((8, 8), np.uint16)]))


# --- scale and bounds of arrays


@pytest.mark.parametrize("dtype", [np.uint8, bool])
def test_bytes_of_0_and_1_are_binary(tmp_path, dtype, caplog):
    x = (RNG.random((60, 4, 4)) < 0.3).astype(dtype)
    data = load(saved(tmp_path, images=x))
    assert data.scale == 1.0 and data.bounds == (0.0, 1.0)
    assert values(data).mean() == pytest.approx(x.mean()) and set(np.unique(values(data))) == {0, 1}
    with caplog.at_level(logging.WARNING):
        index = shards.write(tmp_path / "out", "arrays", data)
    assert "only 0 and 1: binary data" in caplog.text
    assert any("binary data" in note for note in json.loads((index.folder / "index.json").read_text())["notes"])  # fmt: skip
    assert load(tmp_path / "x.npz", scale=255.0).scale == 255.0


def test_integers_of_16_bits_and_the_settings_of_scale_and_bounds(tmp_path):
    deep = RNG.integers(0, 4096, (30, 4, 4)).astype(">u2")
    data = load(saved(tmp_path, images=deep))
    assert data.scale == 65535 and data.splits["train"].x.dtype == np.uint16
    assert load(tmp_path / "x.npz", scale=4095.0).bounds == (0.0, 1.0)
    with pytest.raises(DataError, match=r"x.npz: train .* to 2.\d+ after division by 1800.*correct"):  # fmt: skip
        load(tmp_path / "x.npz", scale=1800.0)
    saved(tmp_path, images=np.arange(-4.0, 4.0)[:, None])
    assert load(tmp_path / "x.npz", bounds=(-5.0, 5.0)).bounds == (-5.0, 5.0)
    with pytest.raises(DataError, match=r"outside the bounds 0 to 1"):
        load(tmp_path / "x.npz", bounds=(0.0, 1.0))
    for bad in ({"bounds": [1.0, 0.0]}, {"bounds": [0.0, 1.0], "standardise": True}, {"scale": 0}):
        settings = helpers.values(dataset={"name": "arrays", "path": "x.npz", **bad})
        with pytest.raises(EbmError, match=r"dataset"):
            from_values(settings, tmp_path)


# --- layouts


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize(
    ("shape", "layout", "expected"),
    [
        ((30, 8, 7, 3), "auto", (3, 8, 7)),
        ((30, 3, 8, 7), "image", (3, 8, 7)),
        ((30, 8, 7), "auto", (1, 8, 7)),
        ((30, 8, 7), "table", (56,)),
        ((30, 9), "auto", (9,)),
        ((30, 3, 4, 4), "channels_first", (3, 4, 4)),
        ((30, 4, 4, 3), "channels_last", (3, 4, 4)),
    ],
)
def test_floats_have_the_layouts_of_bytes(tmp_path, dtype, shape, layout, expected):
    x = (200 * RNG.random(shape)).astype(dtype)
    data = load(saved(tmp_path, images=x), layout=layout, standardise=False)
    assert data.splits["train"].x.shape[1:] == expected
    rows = np.moveaxis(x, 3, 1) if shape[3:] == (3,) else x
    assert np.allclose(
        np.sort(values(data).reshape(30, -1), axis=0),
        np.sort(rows.reshape(30, -1) / data.scale, axis=0),
    )


def test_ambiguous_shapes_are_refused(tmp_path):
    for shape, layout in (((9, 3, 4, 4), "auto"), ((9, 2, 5, 3), "image")):
        with pytest.raises(DataError, match=r"fit .* and .*set dataset.layout: channels_first"):
            load(saved(tmp_path, images=RNG.random(shape)), layout=layout)
    for shape, layout in (((9, 5), "image"), ((9, 5, 5, 5, 5), "auto"), ((9, 5, 6, 7), "auto")):
        with pytest.raises(DataError, match=r"are no images.*set dataset.layout: table"):
            load(saved(tmp_path, images=RNG.random(shape)), layout=layout)


# --- damaged and odd files


def odd_files(folder):
    """Yield name and content of files that are no data set, made by a change of a good one."""
    x, y = grey(20, 6, 6), np.arange(20) % 3
    with zipfile.ZipFile(folder / "good.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, value in {"images": x, "labels": y}.items():
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, value)
    good = (folder / "good.npz").read_bytes()
    yield "truncated", good[: len(good) // 2]
    for place in range(20, len(good), max(1, len(good) // 60)):
        yield f"byte {place}", good[:place] + bytes([good[place] ^ 0xFF]) + good[place + 1 :]
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (999999999, 99999999), }"
    yield "huge", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
    for name, content in {
        "no samples": {"images": x[:0]},
        "no pixels": {"images": x[:, :0]},
        "a number": {"images": np.float64(3.0)},
        "no labels": {"images": x, "labels": np.zeros((20, 1), int)},
        "float labels": {"images": x, "labels": y.astype(float)},
        "negative labels": {"images": x, "labels": y - 1},
        "labels of a number": {"images": x, "labels": np.int64(1)},
        "complex": {"images": x.astype(complex)},
        "text": {"images": x.astype(str)},
        "dates": {"images": x.astype("datetime64[s]")},
        "records": {"images": np.zeros((5, 3), "i4,f4")},
        "int64": {"images": x.astype(int)},
        "empty test": {"train_images": x, "test_images": x[:0]},
        "types": {"train_images": x, "test_images": x / np.float32(255)},
        "sizes": {"train_images": x, "test_images": x[:, 1:]},
        "validation sizes": {"train_images": x, "val_images": x[:, 1:]},
        "kinds of labels": {
            "train_images": x,
            "train_labels": y,
            "test_images": x,
            "test_labels": y.astype(str),
        },
    }.items():
        np.savez(folder / "odd.npz", **content)
        yield name, (folder / "odd.npz").read_bytes()


def test_each_odd_file_is_one_message_or_the_data(tmp_path):
    refused = []
    for name, content in odd_files(tmp_path):
        path = tmp_path / "x.npz"
        path.write_bytes(content)
        try:
            shards.write(tmp_path / "out", "arrays", load(path))
            assert name.startswith("byte"), f"{name} was accepted"  # some bits of zip do not matter
        except DataError as error:
            refused.append((name, str(error)))
    assert len(refused) > 60 and DataError.exit_code == 4
    assert all("x.npz" in message and "\n" not in message for _, message in refused)


def test_huge_and_distant_labels_are_classes(tmp_path):
    y = np.array([10**12, 3, 10**12, 77] * 10, np.uint64)
    data = load(saved(tmp_path, images=grey(40, 4, 4), labels=y))
    assert data.num_classes == 3 and data.class_names == ("3", "77", "1000000000000")


def test_floats_beyond_float32_are_refused_where_they_are_stored(tmp_path):
    path = saved(tmp_path, images=np.r_[np.full((9, 2), 1e300), np.zeros((9, 2))])
    with pytest.raises(DataError, match=r"x.npz.*too large values for float32.*rescale"):
        shards.write(tmp_path / "out", "arrays", load(path, standardise=False))


# --- classes


def classes(folder, *names, num=5):
    for k, name in enumerate(names):
        pictures(folder / name, np.full((num, 8, 8), 9 * k + 1, np.uint8) + np.arange(num, dtype=np.uint8)[:, None, None])  # fmt: skip
    return folder


def test_labels_are_numbered_from_0_and_keep_their_names(tmp_path):
    y = np.array([3, 10, 77] * 20)
    data = load(saved(tmp_path, images=np.repeat(y[:, None, None], 4, 1).astype(np.uint8), labels=y))  # fmt: skip
    assert data.num_classes == 3 and data.class_names == ("3", "10", "77")
    for part in data.splits.values():
        assert [data.class_names[k] for k in part.y] == [str(v) for v in part.x[:, 0, 0, 0]]
    index = shards.write(tmp_path / "out", "arrays", data)
    assert index.class_names == ("3", "10", "77")
    assert index.statistics["train"]["class_counts"] == np.bincount(data.splits["train"].y).tolist()
    assert shards.read_index(tmp_path / "out").class_names == index.class_names


def test_strings_are_labels(tmp_path):
    y = np.array(["dog", "cat"] * 20)
    data = load(saved(tmp_path, images=grey(40, 4, 4), labels=y))
    assert data.class_names == ("cat", "dog") and data.num_classes == 2


def test_folders_are_in_the_order_of_their_numbers(tmp_path):
    data = load(classes(tmp_path / "d", *(str(k) for k in range(12))))
    assert data.class_names == tuple(str(k) for k in range(12))
    for part in data.splits.values():
        assert np.array_equal(part.x[:, 0, 0, 0] // 9, part.y)


def test_a_rare_class_stays_in_the_training_part(tmp_path):
    for place in range(0, 60, 3):
        y = np.zeros(60, int)
        y[place] = 5
        data = load(saved(tmp_path, images=grey(60, 4, 4), labels=y))
        assert data.num_classes == 2 and 1 in data.splits["train"].y
        assert sum(len(part.x) for part in data.splits.values()) == 60


def test_few_labels_keep_the_names(tmp_path):
    own = arrays.Config(path=str(classes(tmp_path / "d", "cat", "dog", num=9)))
    data = few_labels.load(few_labels.Config(of=own, per_class=2))
    assert data.class_names == ("cat", "dog")
    index = shards.write(tmp_path / "out", "few_labels", data)
    assert (
        index.class_names == ("cat", "dog") and "duplicates" not in index.statistics["labelled-0"]
    )


def test_an_index_without_names_has_the_numbers(digits_data):
    index = shards.read_index(digits_data)
    assert "class_names" not in json.loads((digits_data / "index.json").read_text())
    assert index.class_names == tuple("0123456789") and index.standardisation is None


# --- folders


def test_hidden_files_are_skipped_and_counted(tmp_path):
    folder = classes(tmp_path / "d", "a", "b")
    pictures(folder / "a/.ipynb_checkpoints", [grey(8, 8)])
    pictures(folder / "__MACOSX/a", [grey(8, 8)])
    (folder / "a/._0.png").write_bytes(b"\0\5\26\7junk")
    (folder / "notes.txt").write_text("x")
    data = load(folder)
    assert data.class_names == ("a", "b")
    assert data.notes == ("hidden files: 3", "files of other types: 1")


def test_train_and_test_folders_are_splits(tmp_path):
    for split, num in (("train", 6), ("Val", 2), ("test", 3)):
        classes(tmp_path / "d" / split, "cat", "dog", num=num)
    data = load(tmp_path / "d")
    assert {name: len(part.x) for name, part in data.splits.items()} == {
        "train": 12,
        "val": 4,
        "test": 6,
    }
    assert data.class_names == ("cat", "dog")
    for part in data.splits.values():
        assert np.array_equal(part.x[:, 0, 0, 0] >= 10, part.y == 1)
    vehicles = load(classes(tmp_path / "v", "bus", "train"))
    assert vehicles.class_names == ("bus", "train")
    pictures(tmp_path / "v", [grey(8, 8)])
    with pytest.raises(DataError, match=r"0.png: is in no sub-folder"):
        load(tmp_path / "v")


def test_samples_in_two_splits_are_counted(tmp_path, caplog):
    path = saved(tmp_path, images=np.repeat(grey(50, 4, 4), 4, axis=0))
    with caplog.at_level(logging.WARNING):
        index = shards.write(tmp_path / "out", "arrays", load(path))
    train, _ = shards.read_split(index, "train")
    test, _ = shards.read_split(index, "test")
    rows = {row.numpy().tobytes() for row in train}
    count = sum(row.numpy().tobytes() in rows for row in test)
    assert count > 20 and index.statistics["test"]["duplicates"]["train"] == count
    assert f"{count} of 40 test samples are in train too" in caplog.text


def test_arrays_that_are_not_used_are_named(tmp_path):
    data = load(saved(tmp_path, images=grey(9, 4, 4), label=np.zeros(9), extra=np.zeros(2)))
    assert data.notes == ("arrays that are not used: label, extra",)


# --- tables of floats


def raw_table():
    return np.c_[
        RNG.normal(13, 1, 300), RNG.normal(1e9, 2, 300), RNG.normal(1e5, 2e4, 300), np.full(300, 7)
    ]


def test_tables_are_standardised_with_a_word_and_converted_back(tmp_path, caplog):
    x = raw_table()
    with caplog.at_level(logging.WARNING):
        index = shards.write(tmp_path / "out", "arrays", load(saved(tmp_path, images=x)))
    train, _ = shards.read_split(index, "train")
    assert train[:, :3].mean(dim=0).abs().max() < 1e-4 and train[:, 3].abs().max() == 0
    assert (train[:, :3].std(dim=0, correction=0) - 1).abs().max() < 1e-4
    assert "constant columns: 3" in caplog.text and "columns are standardised: means 7 to 1e+09" in caplog.text  # fmt: skip
    parts = [shards.read_split(index, split)[0].numpy() for split in index.splits]
    restored = np.concatenate([index.standardisation.undo(part) for part in parts])
    assert np.allclose(np.sort(restored, axis=0), np.sort(x, axis=0), rtol=0, atol=1e-2)
    assert shards.read_index(tmp_path / "out").digest == index.digest


def test_values_far_from_the_start_of_chains_are_warned_of(tmp_path):
    data = load(saved(tmp_path, images=raw_table()), standardise=False)
    assert any("means up to 1e+09" in note and "standardise: true" in note for note in data.notes)
    assert data.standardisation is None and np.allclose(data.splits["train"].x.mean(axis=0)[0], 13, atol=0.5)  # fmt: skip
    near = load(saved(tmp_path, images=RNG.normal(size=(40, 3))), standardise=False)
    assert near.notes == () and near.bounds is None


def test_floats_as_images_are_not_standardised(tmp_path):
    x = RNG.random((40, 5, 5))
    data = load(saved(tmp_path, images=x))
    assert data.standardisation is None and np.allclose(np.sort(values(data).ravel()), np.sort(x.ravel()))  # fmt: skip


def test_torch_reads_what_the_index_says(tmp_path):
    """A damaged standardisation or list of names is no index."""
    index = shards.write(tmp_path / "out", "arrays", load(saved(tmp_path, images=raw_table())))
    content = json.loads((index.folder / "index.json").read_text())
    for key, value in {
        "class_names": [3],
        "standardisation": {"mean": [0.0] * 4, "sd": [0.0] * 4},
    }.items():
        (index.folder / "index.json").write_text(json.dumps({**content, key: value}))
        with pytest.raises(DataError, match=r"not an index"):
            shards.read_index(index.folder)
    assert torch.get_default_dtype() == torch.float32
