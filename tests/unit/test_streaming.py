"""Data larger than memory: written in one pass, read pack by pack, the same bits as in memory."""

import hashlib
import itertools
import tarfile

import numpy as np
import pytest
import torch
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from ebm_dist.data import loader, shards, streamed
from ebm_dist.data.loader import LogicalShard
from ebm_dist.datasets import Arrays, Dataset
from ebm_dist.datasets._lazy import Lazy
from ebm_dist.errors import DataError

NUM = 3000


def numbered(n: int = NUM, lazy: bool = False) -> Dataset:
    """Sample i has the bytes of i; its label is i % 3."""
    x = np.arange(n, dtype=np.uint32).view(np.uint8).reshape(n, 1, 2, 2)
    return Dataset(
        {"train": Arrays(Lazy(lambda rows: x[rows], x.shape, x.dtype) if lazy else x, np.arange(n) % 3)},
        255.0, (0.0, 1.0), 3, "test", False,
    )  # fmt: skip


def numbers(x):
    """The number of each sample ``(n, 1, 2, 2)`` of a batch."""
    return (x * 255).round().to(torch.uint8).numpy().reshape(len(x), 4).copy().view(np.uint32)[:, 0]


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """32 tars of packs of 10 samples, as if 3,000 samples were large."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streamed, "LARGE", 0)
        patch.setattr(streamed, "layout", lambda arrays, fewest: streamed.Layout(32, 10))
        return shards.write(tmp_path_factory.mktemp("large") / "d", "numbers", numbered())


def shard_of(index, cache="stream", window=4, batch_size=7, shard=1, num_shards=2):
    return LogicalShard(
        index, "train", shard, num_shards, batch_size, seed=3, window=window, cache=cache
    )


def test_a_large_split_has_every_sample_once_and_the_statistics_of_a_small_one(index, tmp_path):
    assert len(index.splits["train"]) == 32
    assert shards.is_streamed(index, "train")
    x, y = shards.read_split(index, "train")
    assert sorted(numbers(x)) == list(range(NUM))
    assert (numbers(x) % 3 == y.numpy()).all()
    small = shards.write(tmp_path / "small", "numbers", numbered())
    assert not shards.is_streamed(small, "train")
    own, other = (i.statistics["train"] for i in (index, small))
    assert own.keys() == other.keys()
    for key, value in other.items():
        assert own[key] == pytest.approx(value), key
    shards.verify(index)


def test_a_tar_has_a_part_of_each_block_and_a_pack_a_random_part_of_its_block(index):
    reader = shards.Packs(index, "train", range(1))
    blocks = [numbers(torch.from_numpy(reader.read(i)[0]) / 255) // 320 for i in range(len(reader))]
    assert [set(block) for block in blocks] == [{i} for i in range(len(blocks))]
    first = numbers(torch.from_numpy(reader.read(0)[0]) / 255)
    assert list(first) != sorted(first)


def test_webdataset_reads_the_tars_itself_and_packs_have_their_digests(index):
    tar = index.splits["train"][3]
    packs = list(webdataset.WebDataset([str(index.folder / tar.file)], shardshuffle=False).decode())
    assert sum(len(pack["x.npy"]) for pack in packs) == tar.num_samples
    with tarfile.open(index.folder / tar.file) as archive:
        members = archive.getmembers()
        content = b"".join(archive.extractfile(m).read() for m in members[:2])
    assert hashlib.sha256(content).hexdigest() == tar.packs[0].sha256


def test_equal_data_gives_equal_bytes_and_lazy_data_those_of_arrays(tmp_path, monkeypatch):
    small = [shards.write(tmp_path / f"s{i}", "n", numbered(lazy=bool(i))) for i in (0, 1)]
    assert small[0].digest == small[1].digest
    monkeypatch.setattr(streamed, "LARGE", 0)
    large = [shards.write(tmp_path / f"l{i}", "n", numbered(lazy=bool(i))) for i in (0, 1)]
    assert large[0].digest == large[1].digest != small[0].digest


@pytest.mark.parametrize(
    ("samples", "side", "tars", "pack"),
    [(10**7, 28, 64, 256), (10**6, 224, 512, 3), (5000, 2048, 16, 1)],
)
def test_tars_follow_the_size_of_the_data_and_a_block_is_bounded(samples, side, tars, pack):
    channels = 1 if side == 28 else 3
    x = Lazy(lambda rows: None, (samples, channels, side, side), np.uint8)
    chosen = streamed.layout(Arrays(x, None), 16)
    assert chosen == (tars, pack)
    block = chosen.num_tars * chosen.pack_size * channels * side * side
    assert block <= 1 << 28


@pytest.mark.parametrize("window", [None, 1, 4, 1000])
def test_streamed_batches_are_those_of_memory(index, window):
    a, b = (shard_of(index, cache, window) for cache in ("stream", "memory"))
    assert a.window == (window or 64)
    for step in [*range(300), 1000, 5, 431]:
        for one, other in zip(a.batch(step), b.batch(step), strict=True):
            assert torch.equal(one, other), step
    assert len(a.store.held) <= 2 * a.store.window
    assert len(a.store.ahead) <= a.store.window


@given(st.integers(1, 50), st.integers(0, 500), st.integers(0, 500))
@settings(max_examples=30, deadline=None)
def test_a_batch_does_not_depend_on_what_was_asked_before(index, batch_size, step, before):
    one, other = (shard_of(index, batch_size=batch_size) for _ in range(2))
    other.batch(before)
    assert torch.equal(one.batch(step)[0], other.batch(step)[0])


def test_an_epoch_has_every_sample_once_in_another_order(index):
    own = shard_of(index, batch_size=1500, shard=0, num_shards=1)
    epochs = [np.concatenate([numbers(own.batch(2 * e + i)[0]) for i in (0, 1)]) for e in (0, 1)]
    assert all(sorted(epoch) == list(range(NUM)) for epoch in epochs)
    assert (epochs[0] != epochs[1]).mean() > 0.9


def test_a_window_has_whole_packs_in_a_random_order(index):
    own = shard_of(index, window=2, batch_size=20, shard=0, num_shards=1)
    own.window = 2
    packs = [set(own._windows(0)[0][i]) for i in range(3)]
    assert all(len(p) == 2 for p in packs) and not set.intersection(*map(set, packs))
    assert sorted(itertools.chain(*own._windows(0)[0])) == list(range(len(own.starts)))
    first = [list(w) for w in own._windows(0)[0]]
    assert first != [list(w) for w in own._windows(1)[0]]


@pytest.mark.parametrize("cache", ["stream", "memory"])
@pytest.mark.parametrize("num_shards", [1, 4, 32, 64, 256])
def test_shards_share_the_samples_whether_there_are_more_of_them_or_of_tars(
    index, num_shards, cache
):
    parts = [shard_of(index, cache, shard=s, num_shards=num_shards) for s in range(num_shards)]
    seen = [numbers(p.store.take(p.rows).x / 255) for p in parts]
    assert sorted(np.concatenate(seen)) == list(range(NUM))


def test_shards_that_do_not_divide_the_tars_are_refused(index):
    with pytest.raises(DataError, match="32 tars cannot be dealt evenly to 5 logical shards"):
        shard_of(index, num_shards=5)


def test_batches_of_shared_tars_are_those_of_memory(index):
    a, b = (shard_of(index, c, shard=40, num_shards=64) for c in ("stream", "memory"))
    assert all(torch.equal(a.batch(s)[0], b.batch(s)[0]) for s in range(50))


def test_some_classes_alone(index):
    one, other = (shard_of(index, cache).only(range(1, 3)) for cache in ("stream", "memory"))
    for step in (0, 3, 200):
        (x, y), (again, _) = one.batch(step), other.batch(step)
        assert torch.equal(x, again)
        assert set(y.tolist()) <= {1, 2}
    whole = shard_of(index)
    assert len(one) == (whole.store.labels(whole.rows) > 0).sum()


def test_a_sum_over_all_samples_is_that_of_memory(index):
    one, other = (shard_of(index, cache) for cache in ("stream", "memory"))
    assert torch.equal(one.sum(lambda x: x**2), other.sum(lambda x: x**2))


def test_an_altered_pack_is_found_when_it_is_read(index, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(index.folder, copy)
    tar = index.splits["train"][1]
    path, (offset, size) = copy / tar.file, tar.packs[2].x
    content = bytearray(path.read_bytes())
    content[offset + size - 1] ^= 1
    path.write_bytes(content)
    own = shards.Packs(shards.read_index(copy), "train", range(1, 2))
    own.read(1)
    with pytest.raises(DataError, match="SHA-256 of pack 2 differs from the index: altered"):
        own.read(2)


def test_a_set_without_digests_of_packs_streams_too(tmp_path):
    small = shards.write(tmp_path / "small", "numbers", numbered())
    a, b = (
        LogicalShard(small, "train", 0, 4, 8, 0, window=2, cache=cache)
        for cache in ("stream", "memory")
    )
    assert all(torch.equal(a.batch(s)[0], b.batch(s)[0]) for s in range(60))
    assert loader.default_window(small, "train") is None


def test_what_reads_a_split_at_once_gets_a_random_part_of_a_streamed_set(
    index, monkeypatch, caplog
):
    monkeypatch.setattr(shards, "_MOST_READ", 4 * 4 * 700)
    x, y = shards.read_split(index, "train")
    assert "a random part of 700 of 3,000 samples is read" in caplog.text
    seen = numbers(x)
    assert len(set(seen)) == 700
    assert (seen % 3 == y.numpy()).all()
    assert abs(seen.mean() - NUM / 2) < 300, "of the whole split"
    assert sum(len(part) for part, _ in shards.read_parts(index, "train", 64)) == NUM


def test_a_small_set_is_always_read_whole(tmp_path, monkeypatch):
    small = shards.write(tmp_path / "small", "numbers", numbered())
    monkeypatch.setattr(shards, "_MOST_READ", 4 * 4 * 700)
    assert len(shards.read_split(small, "train")[0]) == NUM


def test_a_large_data_set_streams_each_split_of_more_than_a_tar(monkeypatch):
    monkeypatch.setattr(streamed, "LARGE", 1000)
    monkeypatch.setattr(streamed, "_TAR", 100)
    sized = lambda **sizes: {k: Arrays(np.zeros((n, 1), np.uint8), None) for k, n in sizes.items()}
    assert streamed.large(sized(train=700, val=350, test=90)) == ["train", "val"]
    assert streamed.large(sized(train=700, val=200)) == []
