"""Own data in parts: mapped arrays and WebDataset tars, and what is refused."""

import dataclasses
import io
import tarfile

import numpy as np
import pytest
import webdataset
from PIL import Image

from ebm_dist.config import from_values
from ebm_dist.data import shards
from ebm_dist.data.loader import LogicalShard
from ebm_dist.datasets import parts
from ebm_dist.errors import DataError
from pipelines import sources
from tests import helpers

RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (60, 1, 6, 5), np.uint8)
Y = np.arange(60) % 4


def written(folder, kind, x=X, y=Y, pieces=3):
    """Write the samples in some parts, of which number 10 comes after number 2."""
    folder.mkdir(parents=True)
    for number, rows in zip((1, 2, 10), np.array_split(np.arange(len(x)), pieces), strict=False):
        path = folder / f"part-{number}.{kind.split()[0]}"
        if kind == "npy":
            np.save(path, x[rows])
        elif kind == "npz":
            np.savez(path, labels=y[rows], images=x[rows])
        else:
            with webdataset.TarWriter(str(path)) as tar:
                for row in rows:
                    member = {"npy": x[row]} if kind == "tar of arrays" else {"png": x[row, 0]}
                    tar.write({"__key__": f"{row:05d}", "cls": int(y[row]), **member})
    return folder


def load(folder, **more):
    return parts.load(parts.Config(path=str(folder), **more))


def all_of(data):
    x = np.concatenate([part.x[:] for part in data.splits.values()])
    y = [part.y for part in data.splits.values()]
    return x, None if y[0] is None else np.concatenate(y)


@pytest.mark.parametrize("kind", ["npy", "npz", "tar"])
def test_parts_are_one_array_in_the_order_of_their_numbers(tmp_path, kind):
    folder = written(tmp_path / "d", kind)
    whole = load(folder, val_fraction=0.0, test_fraction=0.0)
    assert list(whole.splits) == ["train"]
    np.testing.assert_array_equal(whole.splits["train"].x[:], X)
    rows = np.array([59, 0, 21, 20, 0])
    np.testing.assert_array_equal(whole.splits["train"].x[rows], X[rows])
    assert (whole.scale, whole.bounds, whole.is_official) == (255.0, (0.0, 1.0), False)
    if kind == "npy":
        assert whole.splits["train"].y is None and whole.num_classes == 0
    else:
        np.testing.assert_array_equal(whole.splits["train"].y, Y)
        assert whole.num_classes == 4


def test_held_out_samples_are_a_fixed_random_choice_and_each_is_in_one_split(tmp_path):
    first, again = (load(written(tmp_path / n, "npz")) for n in "ab")
    assert {split: len(part.x) for split, part in first.splits.items()} == {
        "train": 48, "test": 6, "val": 6,
    }  # fmt: skip
    x, y = all_of(first)
    order = np.lexsort(x.reshape(60, -1).T)
    expected = np.lexsort(X.reshape(60, -1).T)
    np.testing.assert_array_equal(x[order], X[expected])
    np.testing.assert_array_equal(y[order], Y[expected])
    np.testing.assert_array_equal(all_of(again)[0], x)


def test_folders_are_splits(tmp_path):
    written(tmp_path / "d/train", "npy", X[:40])
    written(tmp_path / "d/test", "npy", X[40:])
    data = load(tmp_path / "d", val_fraction=0.25)
    assert {k: len(v.x) for k, v in data.splits.items()} == {"train": 30, "test": 20, "val": 10}


def test_floats_stay_as_they_are_and_pictures_of_colours_have_three_channels(tmp_path):
    floats = RNG.normal(size=(60, 7)).astype(">f4")
    data = load(written(tmp_path / "f", "npy", floats))
    assert (data.scale, data.bounds) == (1.0, None)
    assert data.splits["train"].x[:].dtype == np.dtype("=f4")
    colour, folder = RNG.integers(0, 256, (6, 5, 3), np.uint8), tmp_path / "c"
    folder.mkdir()
    with webdataset.TarWriter(str(folder / "a.tar")) as tar:
        for i in range(20):
            tar.write({"__key__": str(i), "png": colour})
    x = load(folder).splits["train"].x[:]
    assert x.shape[1:] == (3, 6, 5)
    np.testing.assert_array_equal(x[0], np.moveaxis(colour, -1, 0))


def test_shards_of_parts_are_those_of_the_whole_array(tmp_path):
    written(tmp_path / "d", "npz")
    index = shards.write(tmp_path / "out", "parts", load(tmp_path / "d"))
    x, y = shards.read_split(index, "train")
    assert len(x) == 48 and index.shape == (1, 6, 5) and y.max() == 3
    chosen = from_values(
        helpers.values(dataset={"name": "parts", "path": str(tmp_path / "d")}), tmp_path
    )
    trainer = helpers.build(chosen, tmp_path / "out")
    assert np.isfinite(trainer.mean_over_shards(trainer.advance())["loss_energy"])


def damaged(folder):
    written(folder, "npz")
    path = folder / "part-2.npz"
    path.write_bytes(path.read_bytes()[:300])


def compressed(folder):
    folder.mkdir()
    np.savez_compressed(folder / "a.npz", images=X)


def pickled(folder):
    folder.mkdir()
    np.save(folder / "a.npy", np.array([{}, {}]), allow_pickle=True)


def two_kinds(folder):
    written(folder, "npy")
    np.savez(folder / "a.npz", images=X)


def other_shape(folder):
    written(folder, "npy")
    np.save(folder / "part-3.npy", X[:, :, :5])


def some_labels(folder):
    written(folder, "npz")
    np.savez(folder / "part-3.npz", images=X)


def signed(folder):
    written(folder, "npy", X.astype(np.int32))


def wrong_labels(folder):
    folder.mkdir()
    np.savez(folder / "a.npz", images=X, labels=np.arange(9))


def transparent(folder):
    folder.mkdir()
    with webdataset.TarWriter(str(folder / "a.tar"), encoder=False) as tar:
        out = io.BytesIO()
        Image.new("RGBA", (4, 4)).save(out, "png")
        tar.write({"__key__": "0", "png": out.getvalue()})


def two_pictures(folder):
    folder.mkdir()
    with webdataset.TarWriter(str(folder / "a.tar")) as tar:
        tar.write({"__key__": "0", "png": X[0, 0], "jpg": np.zeros((4, 4, 3))})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (damaged, "part-2.npz: not a plain .npz of numbers"),
        (compressed, "images is compressed and cannot be mapped"),
        (pickled, "a.npy: not a plain .npy of numbers"),
        (two_kinds, r"has .npy, .npz parts"),
        (other_shape, r"part-3.npy: samples are uint8 \(1, 5, 5\), those of part-1.npy"),
        (some_labels, "part-3.npz: only some parts have labels"),
        (signed, r"found int32 \(20, 1, 6, 5\)"),
        (wrong_labels, r"labels must be 60 integers from 0, found \(9,\)"),
        (transparent, "mode RGBA, expected grey or RGB"),
        (two_pictures, "has 2 pictures or arrays of 1 keys"),
        (lambda folder: folder.mkdir(), "has no parts"),
        (lambda folder: folder.write_bytes(b"x"), "is a file"),
    ],
)
def test_what_is_no_part_is_refused_with_its_name(tmp_path, make, message):
    make(tmp_path / "d")
    with pytest.raises(DataError, match=message):
        load(tmp_path / "d")


@pytest.mark.parametrize("kind", ["tar", "tar of arrays"])
def test_own_tars_train_where_they_are(tmp_path, kind):
    folder = written(tmp_path / "d", kind)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    data = load(folder)
    index = shards.write(tmp_path / "out", "parts", data)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert not list((tmp_path / "out").glob("*.tar"))  # nothing is copied
    assert (index.num_samples("train"), index.num_samples("val")) == (48, 6)
    x, y = shards.read_split(index, "train")
    whole = {tuple(row.ravel()): label for row, label in zip(X, Y, strict=True)}
    stored = (x * 255).round().to(int).flatten(1).numpy()
    assert [whole.pop(tuple(row)) for row in stored] == y.tolist()  # each once
    of_val = (shards.read_split(index, "val")[0] * 255).round().to(int).flatten(1).numpy()
    assert all(tuple(row) in whole for row in of_val)
    assert index.statistics["train"]["mean"] == pytest.approx(x.mean().item(), abs=1e-6)
    assert sum(index.statistics["train"]["class_counts"]) == 48
    shards.verify(index)
    chosen = from_values(
        helpers.values(dataset={"name": "parts", "path": str(folder)}, train={"num_shards": 2}),
        tmp_path,
    )
    trainer = helpers.build(chosen, tmp_path / "out")
    assert np.isfinite(trainer.mean_over_shards(trainer.advance())["loss_energy"])
    rewritten = shards.write(tmp_path / "again", "parts", load(folder, rewrite=True))
    assert len(list((tmp_path / "again").glob("*.tar"))) == 3 * shards.NUM_TARS
    assert rewritten.num_samples("train") == 48


def test_an_altered_tar_of_the_user_s_is_refused(tmp_path):
    folder = written(tmp_path / "d", "tar")
    index = shards.write(tmp_path / "out", "parts", load(folder))
    path = folder / "part-2.tar"
    content = bytearray(path.read_bytes())
    at = content.index(b"IDAT")
    content[at + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"part-2.tar: SHA-256 of .* samples differs"):
        shards.verify(index)
    path.unlink()
    with pytest.raises(DataError, match=r"part-2.tar: cannot be read \(No such file"):
        shards.verify(index)
    places = index.folder / "train.places.npy"
    places.write_bytes(places.read_bytes()[:-1] + b"x")
    shards._read_places.cache_clear()  # as in another process
    with pytest.raises(DataError, match=r"train.places.npy: SHA-256 differs"):
        shards.read_split(index, "train")


def test_places_in_memory_or_streamed_give_the_same_batches(tmp_path):
    index = shards.write(tmp_path / "out", "parts", load(written(tmp_path / "d", "tar")))
    batches = [
        [LogicalShard(index, "train", 1, 4, 8, 0, cache=cache).batch(i)[0] for i in range(5)]
        for cache in ("memory", "stream")
    ]
    for one, other in zip(*batches, strict=True):
        assert np.array_equal(one, other)


def test_the_stamp_of_parts_changes_with_a_file(tmp_path):
    folder = written(tmp_path / "d", "tar")
    chosen = from_values(helpers.values(dataset={"name": "parts", "path": str(folder)}), tmp_path)
    before = sources.digests(chosen)
    assert list(before) == ["dataset"] and before == sources.digests(chosen)
    (folder / "part-2.tar").write_bytes(b"x" + (folder / "part-2.tar").read_bytes())
    assert sources.digests(chosen) != before


@pytest.mark.parametrize("rewrite", [False, True])
@pytest.mark.parametrize("last", [slice(-1, None), slice(-900, None)])
@pytest.mark.parametrize(
    ("other", "message"), [(X[0].astype(np.float32), "float32"), (X[0, :, :5], r"\(1, 5, 5\)")]
)
def test_arrays_of_two_types_in_a_tar_are_refused(tmp_path, rewrite, last, other, message):
    images = [*np.tile(X, (32, 1, 1, 1))]  # 64 packs of 30
    images[last] = [other] * len(images[last])
    (tmp_path / "d").mkdir()
    with webdataset.TarWriter(str(tmp_path / "d/a.tar")) as tar:
        for key, image in enumerate(images):
            tar.write({"__key__": str(key), "npy": image})
    with pytest.raises(DataError, match=f"a.tar.*{message}"):
        shards.write(tmp_path / "out", "parts", load(tmp_path / "d", rewrite=rewrite))
    if last.start == -900:
        with pytest.raises(DataError, match=f"a.tar.*{message}"):  # no sample of the first type
            load(tmp_path / "d", rewrite=rewrite).splits["train"].x[-1:]


@pytest.mark.parametrize("prefix", ["./", "v1.0/"])
def test_folders_with_dots_are_part_of_the_key(tmp_path, prefix):
    (tmp_path / "d").mkdir()
    with tarfile.open(tmp_path / "d/a.tar", "w") as tar:
        for key, x in enumerate(X):
            out = io.BytesIO()
            np.save(out, x)
            for name in (f"{key}.npy", "._.DS_Store"):
                member = tarfile.TarInfo(prefix + name)
                member.size = out.tell()
                out.seek(0)
                tar.addfile(member, out)
    x, _ = all_of(load(tmp_path / "d"))
    assert sorted(map(bytes, x)) == sorted(map(bytes, X))


def test_the_stamp_follows_links(tmp_path):
    written(tmp_path / "elsewhere", "npy")
    (tmp_path / "d").mkdir()
    (tmp_path / "d/train").symlink_to(tmp_path / "elsewhere")
    config = parts.Config(path=str(tmp_path / "d"))
    before = parts.stamp(config)
    np.save(tmp_path / "elsewhere/part-11.npy", X)
    assert parts.stamp(config) != before


@pytest.mark.parametrize("kind", ["npy", "tar of arrays"])
@pytest.mark.parametrize(
    ("value", "keys", "message"),
    [
        (np.nan, {}, "NaN, infinite or too large values"),
        (1e39, {}, "NaN, infinite or too large values"),
        (1e300, {}, "NaN, infinite or too large values"),
        (7.0, {"bounds": (0.0, 1.0)}, "outside the bounds 0 to 1"),
    ],
)
def test_values_of_parts_are_checked(tmp_path, kind, value, keys, message):
    x = np.random.default_rng(0).random((60, 1, 6, 5))
    x[:, 0, 0, 0] = value
    written(tmp_path / "d", kind, x)
    with pytest.raises(DataError, match=message):
        shards.write(tmp_path / "out", "parts", load(tmp_path / "d", **keys))


@pytest.mark.parametrize("dtype", ["uint32", "uint64"])
def test_integers_without_a_usual_range_need_a_scale(tmp_path, dtype):
    (tmp_path / "parts").mkdir()
    np.save(tmp_path / "parts/0.npy", np.full((40, 3), 7, dtype))
    config = parts.Config(path=str(tmp_path / "parts"))
    with pytest.raises(DataError, match=f"has {dtype}, which has no usual largest value"):
        parts.load(config)
    assert parts.load(dataclasses.replace(config, scale=10.0)).scale == 10.0
