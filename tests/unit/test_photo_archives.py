"""CIFAR-10 and SVHN as they are published, in small."""

import contextlib
import io
import tarfile

import numpy as np
import pytest
from scipy.io import savemat

from ebm_dist.datasets import cifar10, svhn
from ebm_dist.datasets._download import read_idx
from ebm_dist.errors import DataError


def archive(path, files):
    with tarfile.open(path, "w:gz") as out:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            out.addfile(member, io.BytesIO(content))
    return path


def test_cifar10_records_become_images_and_labels(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (7, 3, 32, 32), np.uint8)
    labels = np.arange(7, dtype=np.uint8)
    content = np.concatenate([labels[:, None], images.reshape(7, -1)], axis=1).tobytes()
    found = cifar10.read(
        archive(
            tmp_path / "c.tar.gz", {"a.bin": content[: 4 * 3073], "b.bin": content[4 * 3073 :]}
        ),
        ["a.bin", "b.bin"],
    )
    assert np.array_equal(found.x, images) and np.array_equal(found.y, labels)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [(b"x" * 100, "reshape"), (b"\x0b" + bytes(3072), "label 11"), (None, "not the archive")],
)
def test_a_wrong_cifar10_archive_is_refused(tmp_path, content, complaint):
    path = archive(
        tmp_path / "c.tar.gz", {"other.bin" if content is None else "a.bin": content or b""}
    )
    with pytest.raises(DataError, match=complaint):
        cifar10.read(path, ["a.bin"])
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(DataError, match="not the archive"):
        cifar10.read(path, ["a.bin"])


def test_each_damage_of_a_compressed_archive_is_one_message(tmp_path):
    content = np.random.default_rng(0).integers(0, 9, 3 * 3073, np.uint8).tobytes()
    path = archive(tmp_path / "c.tar.gz", {"a.bin": content})
    good = path.read_bytes()
    for place in range(10, len(good) - 8, max(1, len(good) // 40)):
        path.write_bytes(good[:place] + bytes([good[place] ^ 0xFF]) + good[place + 1 :])
        with contextlib.suppress(DataError):  # tar has no checksum of a file's content
            cifar10.read(path, ["a.bin"])
        with pytest.raises(DataError, match=r"c.tar.gz: not a gzipped IDX file"):
            read_idx(path)


def test_svhn_images_have_their_axes_and_zero_is_zero(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 32, 32), np.uint8)
    savemat(
        tmp_path / "s.mat",
        {"X": images.transpose(2, 3, 1, 0), "y": np.array([[1], [10], [9], [10], [5]])},
    )
    found = svhn.read(tmp_path / "s.mat")
    assert np.array_equal(found.x, images) and found.y.tolist() == [1, 0, 9, 0, 5]


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>" * 40])
def test_a_wrong_svhn_file_is_refused(tmp_path, content):
    (tmp_path / "s.mat").write_bytes(content)
    with pytest.raises(DataError, match="not a file of SVHN"):
        svhn.read(tmp_path / "s.mat")
