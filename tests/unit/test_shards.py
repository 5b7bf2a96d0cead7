import json
import shutil

import numpy as np
import pytest
import torch
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from ebm_dist.data import shards
from ebm_dist.data.loader import LogicalShard
from ebm_dist.datasets import Arrays, Dataset, digits
from ebm_dist.errors import DataError


def small(n: int = 50, labels: bool = True) -> Dataset:
    x = np.arange(n * 4, dtype=np.uint8).reshape(n, 1, 2, 2)
    return Dataset(
        {"train": Arrays(x, np.arange(n) % 3 if labels else None)},
        255.0,
        (0.0, 1.0),
        3 if labels else 0,
        "test",
        False,
    )


@pytest.fixture
def folder(tmp_path):
    shards.write(tmp_path / "d", "small", small())
    return tmp_path / "d"


def test_what_is_written_is_read_in_model_units(folder):
    index = shards.read_index(folder)
    x, y = shards.read_split(index, "train")
    source = small().splits["train"]
    order = np.lexsort(x.numpy().reshape(len(x), -1).T[::-1])
    np.testing.assert_allclose(x.numpy()[order], source.x / 255.0, rtol=1e-6)
    np.testing.assert_array_equal(y.numpy()[order], source.y)
    assert (index.bounds, index.num_classes, index.is_official, index.shape) == (
        (0.0, 1.0),
        3,
        False,
        (1, 2, 2),
    )
    stats = index.statistics["train"]
    assert stats["mean"] == pytest.approx(source.x.mean() / 255)
    assert stats["sd"] == pytest.approx(source.x.std() / 255)
    assert stats["class_counts"] == [17, 17, 16]


def test_equal_data_gives_equal_bytes(tmp_path):
    a, b = (shards.write(tmp_path / name, "small", small()) for name in "ab")
    assert a.digest == b.digest
    assert all(
        (tmp_path / "a" / p.name).read_bytes() == p.read_bytes() for p in (tmp_path / "b").iterdir()
    )


def test_webdataset_reads_the_tars_itself(folder):
    files = sorted(str(p) for p in folder.glob("*.tar"))
    packs = list(webdataset.WebDataset(files, shardshuffle=False, empty_check=False).decode())
    assert sum(len(pack["x.npy"]) for pack in packs) == 50
    assert packs[0]["x.npy"].dtype == np.uint8


def test_data_without_labels(tmp_path):
    index = shards.write(tmp_path, "small", small(labels=False))
    assert shards.read_split(index, "train")[1].unique().tolist() == [0]
    assert index.statistics["train"]["class_counts"] is None


def rows_of(shard):
    return shard.store.take(shard.rows).x


@pytest.mark.parametrize("num_shards", [1, 2, 4, 8, 16])
def test_logical_shards_partition_the_data(folder, num_shards):
    index = shards.read_index(folder)
    parts = [rows_of(LogicalShard(index, "train", s, num_shards, 2, 0)) for s in range(num_shards)]
    together = torch.cat(parts).flatten(1)
    assert len(together) == 50 == len(together.unique(dim=0))


def test_each_epoch_has_every_sample_once_in_another_order(folder):
    shard = LogicalShard(shards.read_index(folder), "train", 0, 1, 10, seed=1)
    epochs = [
        torch.cat([shard.batch(step)[0] for step in range(first, first + 5)]) for first in (0, 5)
    ]
    assert len(epochs[0].flatten(1).unique(dim=0)) == 50 == len(epochs[1].flatten(1).unique(dim=0))
    assert not torch.equal(*epochs)


@given(st.integers(1, 130), st.integers(0, 40))
@settings(max_examples=40, deadline=None)
def test_a_batch_is_full_and_a_function_of_its_step(digits_data, batch_size, step):
    index = shards.read_index(digits_data)
    one, other = (LogicalShard(index, "train", 1, 16, batch_size, 0) for _ in range(2))
    other.batch(max(0, step - 1))  # what was asked before must not matter
    (x, y), (again, _) = one.batch(step), other.batch(step)
    assert x.shape == (batch_size, 1, 8, 8) and y.shape == (batch_size,)
    assert torch.equal(x, again)


def broken(folder, change):
    copy = folder.parent / "broken"
    shutil.copytree(folder, copy)
    change(copy)
    with pytest.raises(DataError) as caught:
        shards.verify(shards.read_index(copy))
    message = str(caught.value)
    assert str(copy) in message and "prepare" in message
    return message


def tar_of(copy):
    return copy / "train-000003.tar"


def edit(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def test_bad_shards_are_named_with_what_to_do(folder):
    cases = {
        "missing": (lambda c: tar_of(c).unlink(), "train-000003.tar: cannot be read"),
        "empty": (lambda c: tar_of(c).write_bytes(b""), "truncated or another file"),
        "truncated": (
            lambda c: tar_of(c).write_bytes(tar_of(c).read_bytes()[:-600]),
            "truncated or another file",
        ),
        "altered": (
            lambda c: tar_of(c).write_bytes(tar_of(c).read_bytes()[:-700] + b"x" * 700),
            "SHA-256 differs",
        ),
        "foreign": (
            lambda c: shutil.copy(c / "train-000004.tar", tar_of(c)),
            "SHA-256 differs|truncated",
        ),
        "no index": (lambda c: (c / "index.json").unlink(), "index.json: missing"),
        "broken index": (lambda c: (c / "index.json").write_text("{"), "not readable as JSON"),
        "HTML index": (lambda c: (c / "index.json").write_text("<html>"), "not readable as JSON"),
        "other schema": (
            lambda c: edit(c / "index.json", lambda v: v.update(schema=99)),
            "schema 99",
        ),
        "key gone": (
            lambda c: edit(c / "index.json", lambda v: v.pop("scale")),
            "not an index of a prepared data set",
        ),
        "path outside": (
            lambda c: edit(
                c / "index.json", lambda v: v["splits"]["train"][3].update(file="../x.tar")
            ),
            "shard name",
        ),
        "wrong shape": (
            lambda c: edit(c / "index.json", lambda v: v.update(shape=[1, 2, 3])),
            "not a shard of this data set",
        ),
        "packs gone": (
            lambda c: edit(c / "index.json", lambda v: v["splits"]["train"][3].update(packs=[])),
            "not an index of a prepared data set",
        ),
        "wrong offset": (
            lambda c: edit(
                c / "index.json", lambda v: v["splits"]["train"][3]["packs"][0].update(x=[7, 99])
            ),
            "not a shard",
        ),
    }
    for name, (change, expected) in cases.items():
        message = broken(folder, change)
        assert any(part in message for part in expected.split("|")), f"{name}: {message}"
        shutil.rmtree(folder.parent / "broken")


def test_an_object_array_cannot_run_code(folder, tmp_path):
    """A shard with pickled content, and an index that vouches for it, is refused without being unpickled."""
    mark = tmp_path / "mark"

    class Evil:
        def __reduce__(self):
            return (mark.write_text, ("ran",))

    evil = np.empty(3, object)
    evil[:] = Evil()
    path = tar_of(folder)
    with webdataset.TarWriter(str(path), mtime=0) as tar:
        import io

        out = io.BytesIO()
        np.save(out, evil, allow_pickle=True)
        tar.write({"__key__": "000000", "x.npy": out.getvalue(), "y.npy": out.getvalue()})
    import hashlib

    content = path.read_bytes()
    start = content.index(b"\x93NUMPY")

    def vouch(value):
        entry = value["splits"]["train"][3]
        entry.update(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        entry["packs"] = [
            {"num_samples": 3, "x": [start, len(out.getvalue())], "y": [start, len(out.getvalue())]}
        ]

    edit(folder / "index.json", vouch)
    with pytest.raises(DataError, match="not a shard of this data set"):
        shards.verify(shards.read_index(folder))
    assert not mark.exists()


def test_too_few_samples_for_a_logical_shard(tmp_path):
    index = shards.write(tmp_path, "small", small(5))
    with pytest.raises(DataError, match="logical shard 5 of 16 has no train samples"):
        LogicalShard(index, "train", 5, 16, 2, 0)


def test_prepared_digits_are_all_there(digits_data):
    index = shards.read_index(digits_data)
    data = digits.load(digits.Config())
    assert {split: index.num_samples(split) for split in index.splits} == {
        "train": 1257,
        "val": 180,
        "test": 360,
    }
    x = torch.cat([shards.read_split(index, split)[0] for split in index.splits])
    assert float(x.min()) == 0.0 and float(x.max()) == 1.0
    assert sum(len(a.x) for a in data.splits.values()) == 1797
