"""Files on a disk: nothing is left of what was refused, modes are kept, links are not followed."""

import os
import stat

import pytest

from ebm_dist import faults, storage
from ebm_dist.errors import ClusterError, DataError
from ebm_dist.runs import cluster
from infra.local import write_private
from tests import helpers
from tests.helpers import Silent


@pytest.fixture(autouse=True)
def disarmed():
    yield
    faults.arm(None)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("point", ["write.content", "write.sync", "write.rename"])
@pytest.mark.parametrize("action", ["full", "broken"])
def test_nothing_is_left_of_a_file_that_the_disk_refused(tmp_path, point, action):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    faults.arm(f"{point}:1:{action}")
    with pytest.raises(DataError, match="cannot be written"):
        storage.write_whole(path, b"new content")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"file": b"old"}


@pytest.mark.parametrize("point", ["write.open", "write.content", "write.sync", "write.rename"])
@pytest.mark.parametrize("count", [1, 4, 7, 9])
def test_nothing_is_left_of_a_checkpoint_that_the_disk_refused(digits_data, tmp_path, point, count):
    trainer = helpers.build(helpers.params(), digits_data)
    trainer.fit(tmp_path, Silent(4))
    faults.arm(f"{point}:{count}:full")
    with pytest.raises(DataError, match="No space left"):
        trainer.fit(tmp_path, Silent())
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000004"]


@pytest.mark.parametrize("of_file", [0o600, 0o640, 0o664])
def test_a_file_that_is_replaced_keeps_its_mode(tmp_path, of_file):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(of_file)
    storage.write_whole(path, b"new")
    assert path.read_bytes() == b"new" and mode(path) == of_file


def test_a_link_in_place_of_the_temporary_file_is_not_followed(tmp_path):
    other = tmp_path / "other"
    other.write_bytes(b"precious")
    (tmp_path / "file.part").symlink_to(other)
    storage.write_whole(tmp_path / "file", b"new")
    assert other.read_bytes() == b"precious" and (tmp_path / "file").read_bytes() == b"new"
    assert not (tmp_path / "file").is_symlink()


def test_a_file_with_a_secret_is_narrowed_and_no_link_is_followed(tmp_path):
    path = tmp_path / "env"
    path.write_text("a longer content from before")
    path.chmod(0o644)
    write_private(path, "secret")
    assert path.read_text() == "secret" and mode(path) == 0o600
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(OSError, match="symbolic links"):
        write_private(tmp_path / "link", "elsewhere")
    assert path.read_text() == "secret"


def test_a_lock_is_not_opened_through_a_link(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    run, target = tmp_path / "run", tmp_path / "target"
    run.mkdir()
    os.symlink(target, run / "lock")
    with (
        pytest.raises(ClusterError, match=r"cannot be locked .*not a link; remove it"),
        cluster.exclusive_lock(run, "0" * 64),
    ):
        pass
    assert not target.exists()
    (run / "lock").unlink()
    with cluster.exclusive_lock(run, "0" * 64):
        assert mode(run / "lock") == 0o600
